//! The streams and buckets of a cell: made when they are missing, checked when they are there.
//!
//! What the contract needs of a stream has to be so; where it is not, and the broker cannot be asked
//! to change it, that is an error which says what was found. What an operator may well have set
//! otherwise (limits, age, placement) is left as it is.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::{HeaderMap, jetstream};
use serde::Deserialize;

use super::Bus;
use crate::wire::subject::{JobVerb, Subjects};

/// How long events are kept.
pub const EVENTS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long the broker remembers a message's id, so that a repeat is dropped.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Most requests that wait for a dispatcher; one more is refused with an error.
pub const MAX_WAITING_REQUESTS: i64 = 100_000;
/// Least that the broker has to take in one message, in bytes: nats-server's default. What prewarm stores is bounded
/// to stay below it.
pub const MIN_MAX_PAYLOAD: usize = 1 << 20;
/// Most consumers of a stream: one per node, and as many again for whoever watches. nats-server 2.15
/// refuses more than 1,000 unless the stream says otherwise (nats-server PR 8337).
const MAX_CONSUMERS: i32 = 100_000;
/// A name that no stream can have (`IsValidStreamName` forbids spaces).
const NO_STREAM: &str = "no stream";

/// What an operator sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopologySettings {
    /// Replicas of streams and buckets: 1, 3 or 5, at most as many as there are servers.
    pub replicas: usize,
}

impl Default for TopologySettings {
    fn default() -> Self {
        Self { replicas: 1 }
    }
}

/// Why the broker cannot hold a cell.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A stream exists and is not what the contract says.
    #[error(
        "stream {stream} is not as prewarm needs it: {}; move its messages elsewhere and delete it, or choose another --subject-prefix",
        .differences.join("; ")
    )]
    Wrong {
        /// The stream.
        stream: String,
        /// Each difference: what was found and what was expected.
        differences: Vec<String>,
    },
    /// The broker refused.
    #[error("the broker refused {what} of stream {stream}: {reason}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// The stream.
        stream: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker has no JetStream, or not for this account.
    #[error(
        "the broker has JetStream switched off for this account; start nats-server with -js, or enable jetstream for the account"
    )]
    NoJetStream,
    /// The broker takes only small messages.
    #[error(
        "the broker takes messages of {0} bytes at most, and prewarm needs {MIN_MAX_PAYLOAD}; leave max_payload of nats-server at its default, or raise it"
    )]
    SmallPayload(usize),
    /// The broker did not answer in time. Trying again may help.
    #[error("the broker did not answer while stream {stream} was looked at: {reason}")]
    Unanswered {
        /// The stream.
        stream: String,
        /// What the client saw.
        reason: String,
    },
    /// The leader of a cluster knows of too few servers to keep the replicas. The others may be about to come.
    #[error(
        "the cluster has fewer servers than the {replicas} replicas of stream {stream} ({reason}); start the missing ones, lower \
         --replicas, or see \"A cluster that finds no peers\" in the runbook"
    )]
    TooFewServers {
        /// The stream.
        stream: String,
        /// What was asked for.
        replicas: usize,
        /// The broker's words.
        reason: String,
    },
}

impl TopologyError {
    /// Whether trying again can help without anybody changing anything.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::TooFewServers { .. })
    }
}

/// Everything a cell keeps on the broker, as it is made.
#[must_use]
pub fn streams(subjects: &Subjects, settings: TopologySettings) -> Vec<Config> {
    let base = |name: String, subjects: Vec<String>| Config {
        name,
        subjects,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        max_consumers: MAX_CONSUMERS,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    };
    let mut requests: Vec<String> = JobVerb::ALL.map(|verb| subjects.job(verb)).to_vec();
    requests.push(subjects.push());
    let jobs = Config {
        retention: RetentionPolicy::WorkQueue,
        max_messages: MAX_WAITING_REQUESTS,
        discard: DiscardPolicy::New,
        description: Some("prewarm: what users ask, until a dispatcher took it".to_owned()),
        ..base(subjects.jobs_stream(), requests)
    };
    let tasks = Config {
        max_messages_per_subject: 1,
        // Should an operator limit it: an error is better than a task that is gone.
        discard: DiscardPolicy::New,
        description: Some("prewarm: released pulls, one message each".to_owned()),
        ..base(subjects.tasks_stream(), vec![subjects.tasks()])
    };
    let events = Config {
        max_age: EVENTS_KEPT,
        allow_direct: true,
        description: Some("prewarm: everything that happened".to_owned()),
        ..base(subjects.events_stream(), vec![subjects.events()])
    };
    // A bucket is a stream of this form (NATS ADR-8); made as one because the client's bucket
    // configuration has no max_consumers, and every watcher is a consumer.
    let bucket = |name: String| Config {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..base(format!("KV_{name}"), vec![format!("$KV.{name}.>")])
    };
    let buckets = [
        subjects.jobs_bucket(),
        subjects.nodes_bucket(),
        subjects.leases_bucket(),
        subjects.rules_bucket(),
    ];
    [jobs, tasks, events]
        .into_iter()
        .chain(buckets.into_iter().map(bucket))
        .collect()
}

/// Makes what is missing and checks what is there.
///
/// # Errors
/// The broker cannot hold the cell, or does not answer.
pub async fn ensure(bus: &Bus, settings: TopologySettings) -> Result<(), TopologyError> {
    takes_enough(bus)?;
    for wanted in streams(&bus.subjects, settings) {
        ensure_stream(&bus.jetstream, wanted).await?;
    }
    Ok(())
}

/// Says what is not as the contract needs it, without changing anything; for `prewarm check`.
///
/// # Errors
/// The first thing that is missing or wrong.
pub async fn check(bus: &Bus, settings: TopologySettings) -> Result<(), TopologyError> {
    takes_enough(bus)?;
    for wanted in streams(&bus.subjects, settings) {
        check_stream(bus, wanted).await?;
    }
    Ok(())
}

/// Whether pushes would be kept, and by the stream that is meant to; in the way that is open to who may publish pushes and
/// nothing else: it publishes one that only a stream of a name that none can have is to keep. The stream answers that it
/// is another, and which, and keeps nothing. (The name is compared before anything else, in `processJetStreamMsg` and
/// `processClusteredInboundMsg` of nats-server.) Who subscribes to pushes without JetStream sees an empty message.
///
/// # Errors
/// No stream keeps pushes, or another one does, or nobody answers.
pub async fn check_pushes(bus: &Bus) -> Result<(), TopologyError> {
    let (stream, subject) = (bus.subjects.jobs_stream(), bus.subjects.push());
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_EXPECTED_STREAM, NO_STREAM);
    let request = async_nats::Request::new().headers(headers);
    let answer = match bus.client.send_request(subject.clone(), request).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            return Err(missing(stream));
        }
        Err(error) => return Err(unanswered(&stream, &error)),
    };
    let answer: Refusal =
        serde_json::from_slice(&answer.payload).map_err(|error| unanswered(&stream, &error))?;
    if answer.stream == stream {
        return Ok(());
    }
    let differences = vec![format!("it keeps {subject}, which is for {stream} to keep")];
    Err(TopologyError::Wrong {
        stream: answer.stream,
        differences,
    })
}

/// What a stream says that does not keep a message.
#[derive(Deserialize)]
struct Refusal {
    stream: String,
}

async fn check_stream(bus: &Bus, wanted: Config) -> Result<(), TopologyError> {
    match find(&bus.jetstream, &wanted.name).await? {
        Some(found) => verify(&found, &wanted),
        None => Err(missing(wanted.name)),
    }
}

fn missing(stream: String) -> TopologyError {
    let differences = vec!["it is missing; a dispatcher makes it".to_owned()];
    TopologyError::Wrong {
        stream,
        differences,
    }
}

fn takes_enough(bus: &Bus) -> Result<(), TopologyError> {
    match bus.client.max_payload() {
        found if found < MIN_MAX_PAYLOAD => Err(TopologyError::SmallPayload(found)),
        _ => Ok(()),
    }
}

async fn ensure_stream(
    jetstream: &jetstream::Context,
    wanted: Config,
) -> Result<(), TopologyError> {
    let Some(found) = find(jetstream, &wanted.name).await? else {
        let (name, replicas) = (wanted.name.clone(), wanted.num_replicas);
        tracing::info!(stream = name, "making the stream");
        return match jetstream.create_stream(wanted).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                CreateStreamErrorKind::TimedOut => unanswered(&name, &error),
                CreateStreamErrorKind::JetStream(inner) if has_no_leader(&inner) => {
                    unanswered(&name, &error)
                }
                CreateStreamErrorKind::JetStream(inner) if has_too_few_servers(&inner) => {
                    too_few_servers(name, replicas, &error)
                }
                _ => refused("the creation", name, &error),
            }),
        };
    };
    verify(&found, &wanted)?;
    let missing: Vec<String> = wanted
        .subjects
        .iter()
        .filter(|s| !found.subjects.contains(s))
        .cloned()
        .collect();
    let grown = found.num_replicas != wanted.num_replicas;
    if missing.is_empty() && !grown {
        return Ok(());
    }
    let mut updated = found.clone();
    updated.subjects.extend(missing.iter().cloned());
    updated.num_replicas = wanted.num_replicas;
    tracing::warn!(
        stream = wanted.name,
        ?missing,
        replicas_found = found.num_replicas,
        replicas_wanted = wanted.num_replicas,
        "changing the stream: its subjects or replicas differ from the settings"
    );
    match jetstream.update_stream(updated).await {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(inner) if has_too_few_servers(&inner) => {
                too_few_servers(wanted.name, wanted.num_replicas, &error)
            }
            _ => refused("a change", wanted.name, &error),
        }),
    }
}

fn unanswered(stream: &str, error: &dyn std::fmt::Display) -> TopologyError {
    TopologyError::Unanswered {
        stream: stream.to_owned(),
        reason: error.to_string(),
    }
}

fn too_few_servers(
    stream: String,
    replicas: usize,
    error: &dyn std::fmt::Display,
) -> TopologyError {
    TopologyError::TooFewServers {
        stream,
        replicas,
        reason: error.to_string(),
    }
}

fn refused(what: &'static str, stream: String, error: &dyn std::fmt::Display) -> TopologyError {
    TopologyError::Refused {
        what,
        stream,
        reason: error.to_string(),
    }
}

async fn find(jetstream: &jetstream::Context, name: &str) -> Result<Option<Config>, TopologyError> {
    match jetstream.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(inner)
                if inner.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            GetStreamErrorKind::JetStream(inner)
                if matches!(
                    inner.error_code(),
                    jetstream::ErrorCode::JETSTREAM_NOT_ENABLED
                        | jetstream::ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
                ) =>
            {
                Err(TopologyError::NoJetStream)
            }
            GetStreamErrorKind::JetStream(inner) if has_no_leader(&inner) => {
                Err(unanswered(name, &error))
            }
            GetStreamErrorKind::JetStream(inner) => Err(TopologyError::Refused {
                what: "a look",
                stream: name.to_owned(),
                reason: inner.to_string(),
            }),
            _ if no_responders(&error) => Err(TopologyError::NoJetStream),
            _ => Err(unanswered(name, &error)),
        },
    }
}

/// A cluster that starts, or lost its leader, refuses until it has one.
fn has_no_leader(error: &jetstream::Error) -> bool {
    error.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE
}

fn has_too_few_servers(error: &jetstream::Error) -> bool {
    error.error_code() == ErrorCode::CLUSTER_NO_PEERS
}

/// A broker without JetStream has nobody who answers its API.
fn no_responders(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let request = error.downcast_ref::<async_nats::client::RequestError>();
        if request.is_some_and(|error| error.kind() == RequestErrorKind::NoResponders) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Compares what cannot be changed in place and what the contract rests on.
fn verify(found: &Config, wanted: &Config) -> Result<(), TopologyError> {
    let mut differences = Vec::new();
    let mut differ = |what: &str, found: String, wanted: String| {
        if found != wanted {
            differences.push(format!("{what} is {found}, expected {wanted}"));
        }
    };
    let debug = |value: &dyn std::fmt::Debug| format!("{value:?}");
    differ(
        "retention",
        debug(&found.retention),
        debug(&wanted.retention),
    );
    differ("discard", debug(&found.discard), debug(&wanted.discard));
    differ(
        "max messages per subject",
        found.max_messages_per_subject.max(0).to_string(),
        wanted.max_messages_per_subject.max(0).to_string(),
    );
    differ(
        "no_ack",
        found.no_ack.to_string(),
        wanted.no_ack.to_string(),
    );
    differ(
        "sealed",
        found.sealed.to_string(),
        wanted.sealed.to_string(),
    );
    differ(
        "deny_purge",
        found.deny_purge.to_string(),
        wanted.deny_purge.to_string(),
    );
    if found.mirror.is_some() || found.subject_transform.is_some() {
        differences.push("it is a mirror or transforms subjects".to_owned());
    }
    let foreign: Vec<&String> = found
        .subjects
        .iter()
        .filter(|subject| !wanted.subjects.contains(subject))
        .collect();
    if !foreign.is_empty() {
        differences.push(format!("it also keeps {foreign:?}"));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(TopologyError::Wrong {
            stream: wanted.name.clone(),
            differences,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_three_streams_and_four_buckets() {
        let names: Vec<String> = streams(&Subjects::default(), TopologySettings::default())
            .into_iter()
            .map(|stream| stream.name)
            .collect();
        assert_eq!(
            names,
            [
                "PREWARM_JOBS",
                "PREWARM_TASKS",
                "PREWARM_EVENTS",
                "KV_prewarm_jobs",
                "KV_prewarm_nodes",
                "KV_prewarm_leases",
                "KV_prewarm_rules"
            ]
        );
    }

    #[test]
    fn every_difference_that_matters_is_named() {
        let wanted = streams(&Subjects::default(), TopologySettings::default()).swap_remove(1);
        assert!(verify(&wanted, &wanted).is_ok());
        let found = Config {
            retention: RetentionPolicy::WorkQueue,
            max_messages_per_subject: -1,
            subjects: vec!["prewarm.task.>".to_owned(), "other.>".to_owned()],
            max_age: Duration::from_secs(1),
            ..wanted.clone()
        };
        let error = verify(&found, &wanted).unwrap_err().to_string();
        assert!(
            error.contains("retention is WorkQueue, expected Limits"),
            "{error}"
        );
        assert!(
            error.contains("max messages per subject is 0, expected 1"),
            "{error}"
        );
        assert!(error.contains("also keeps [\"other.>\"]"), "{error}");
        assert!(
            error.contains("--subject-prefix") && !error.contains("max age"),
            "{error}"
        );
    }
}
