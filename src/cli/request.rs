//! Asking for something: a message the broker keeps until a dispatcher has acted on it, and the answer,
//! which is an event.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use tracing::field::Empty;

use super::exit::Failure;
use super::journal::{self, From, Journal};
use crate::bus::Bus;
use crate::domain::name::JobName;
use crate::domain::trace::TRACEPARENT;
use crate::telemetry::trace::{self, Kind};
use crate::wire::event::{Event, JobEvent};
use crate::wire::subject::JobVerb;

/// How often a request is sent before the broker counts as silent; its id makes copies harmless.
const ATTEMPTS: u32 = 3;
/// How long a dispatcher may take to answer before we say that there seems to be none.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The variable by which whoever starts a program, such as a CI, says which trace it belongs to.
const TRACEPARENT_VARIABLE: &str = "TRACEPARENT";
/// Most jobs that are listened to one by one; beyond, all jobs are, and the others passed over.
const MAX_FILTERS: usize = 16;

/// Sends a request and returns its sequence in the stream of jobs, by which its answer is known.
///
/// # Errors
/// Nobody set the broker up, it does not answer, or the body is too large for it.
pub async fn send(bus: &Bus, verb: JobVerb, body: Vec<u8>) -> Result<u64, Failure> {
    let body = Bytes::from(body);
    let mut headers = HeaderMap::new();
    let id: u128 = rand::random();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, format!("{id:032x}"));
    let span = tracing::error_span!("request", verb = verb.token(), trace_id = Empty);
    let said = std::env::var(TRACEPARENT_VARIABLE).ok();
    let origin = said.as_deref().and_then(trace::read);
    let origin = origin.or_else(trace::new_trace);
    trace::join(&span, origin, Kind::Producer);
    if let Some(context) = trace::context(&span, origin) {
        headers.insert(TRACEPARENT, context.to_string());
    }
    let mut silent = None;
    for _ in 0..ATTEMPTS {
        let stored = match bus
            .store(bus.subjects.job(verb), headers.clone(), body.clone())
            .await
        {
            Ok(stored) => stored.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(ack) => return Ok(ack.sequence),
            Err(error) => match error.kind() {
                PublishErrorKind::StreamNotFound => return Err(journal::not_set_up()),
                PublishErrorKind::MaxPayloadExceeded => {
                    let limit = bus.client.max_payload();
                    return Err(Failure::input(format!(
                        "the request has {} bytes; this broker takes {limit} at most",
                        body.len()
                    )));
                }
                _ => match refusal(&error) {
                    Some(refusal) => return Err(refused(bus, &refusal)),
                    None => silent = Some(error),
                },
            },
        }
    }
    let reason = silent.map(|error| error.to_string()).unwrap_or_default();
    Err(
        journal::unanswered("a request that it should keep", &reason).advise(
            "`prewarm check` looks at JetStream and permissions; the log of nats-server tells of a full disk, after which it has to be started again",
        ),
    )
}

/// The broker's words, if it is the broker that does not want the message.
fn refusal(error: &PublishError) -> Option<jetstream::Error> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().cloned()
}

fn refused(bus: &Bus, refusal: &jetstream::Error) -> Failure {
    let stream = bus.subjects.jobs_stream();
    let words = refusal.to_string();
    let advice = if refusal.error_code() == ErrorCode::STREAM_STORE_FAILED && is_full(&words) {
        "requests wait for a dispatcher that does not take them: see that one runs, `prewarm check` looks at it"
    } else {
        "see the log of nats-server: a limit of the stream or of the account, or a full disk"
    };
    Failure::unreachable(format!(
        "the broker did not take the request into {stream}: {words}"
    ))
    .advise(advice)
}

/// Whether these are the words for a stream at its limit (`ErrMaxMsgs`, `ErrMaxBytes` of `server/store.go`).
fn is_full(words: &str) -> bool {
    ["maximum messages exceeded", "maximum bytes exceeded"]
        .iter()
        .any(|limit| words.contains(limit))
}

/// Events of jobs from a moment on, in order.
pub struct JobEvents {
    journal: Journal,
}

/// An event and its sequence in the stream of events.
pub struct Told {
    /// Its sequence.
    pub sequence: u64,
    /// The event.
    pub event: Event<JobEvent>,
}

impl JobEvents {
    /// Listens from now on; to be called before the request is sent, so that no answer is missed.
    ///
    /// # Errors
    /// Nobody set the broker up, or it does not answer.
    pub async fn of(bus: &Bus, jobs: &[JobName]) -> Result<Self, Failure> {
        let stream = journal::stream(bus, &bus.subjects.events_stream()).await?;
        let from = From::After(stream.cached_info().state.last_sequence);
        let subjects = if jobs.len() <= MAX_FILTERS {
            jobs.iter()
                .map(|job| bus.subjects.job_events(Some(job)))
                .collect()
        } else {
            vec![bus.subjects.job_events(None)]
        };
        let journal = Journal::open(&stream, subjects, from).await?;
        Ok(Self { journal })
    }

    /// The next event, whenever it comes.
    ///
    /// # Errors
    /// The broker refuses to be read.
    pub async fn next(&mut self) -> Result<Told, Failure> {
        loop {
            let entry = self.journal.next().await?;
            match serde_json::from_slice(&entry.payload) {
                Ok(event) => {
                    return Ok(Told {
                        sequence: entry.sequence,
                        event,
                    });
                }
                Err(error) => {
                    tracing::warn!(subject = entry.subject, %error, "not an event of ours")
                }
            }
        }
    }

    /// The answer to a request: the first event that its message caused.
    ///
    /// # Errors
    /// The broker refuses to be read.
    pub async fn answer(&mut self, sequence: u64) -> Result<Told, Failure> {
        loop {
            let told = self.next().await?;
            if told.event.data.request_sequence == Some(sequence) {
                return Ok(told);
            }
        }
    }
}

/// The rejection of a request, as a failure with every problem.
#[must_use]
pub fn rejected(what: &str, event: &JobEvent) -> Failure {
    let problems: Vec<String> = event.problems.iter().map(ToString::to_string).collect();
    let problems = if problems.is_empty() {
        vec![event.message.clone()]
    } else {
        problems
    };
    Failure::input(format!("{what} was rejected: {}", problems.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    #[test]
    fn a_rejection_tells_every_problem() {
        let event = serde_json::json!({
            "event": "rejected",
            "problems": [{"path": "spec.images", "message": "is empty"}, {"path": "", "message": "too late"}],
        });
        let failure = rejected("job/base", &serde_json::from_value(event).unwrap());
        assert_eq!(failure.exit, Exit::BadInput);
        assert_eq!(
            failure.message,
            "job/base was rejected: spec.images: is empty\ntoo late"
        );
    }
}
