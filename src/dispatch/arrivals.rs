//! What arrives from the broker, read and put into one bounded queue.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Messages};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::{HeaderMap, Message, jetstream};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::input::{Input, Pause, Request};
use super::load::task_event;
use super::spans;
use crate::bus::Bus;
use crate::bus::read::Reading;
use crate::domain::name::NodeName;
use crate::domain::trace::{TRACEPARENT, TraceOrigin};
use crate::telemetry::trace;
use crate::wire::command::JobCommand;
use crate::wire::event::Problem;
use crate::wire::manifest;
use crate::wire::subject::{JobVerb, Subjects};
use crate::wire::worker::{Heartbeat, Registration, RegistrationReply};

/// Arrivals that wait for the state; whoever brings more waits, and the broker keeps the rest.
pub(super) const QUEUE: usize = 4_096;
/// The durable consumer of `PREWARM_JOBS`, shared by all dispatchers of a cell.
const REQUESTS_CONSUMER: &str = "dispatcher";
/// How long a request may be in the hands of a leader before it is delivered again; the next leader does not wait for that.
const REQUEST_ACK_WAIT: Duration = Duration::from_secs(30);
/// Requests in the hands of a dispatcher at once. One, so that they are applied strictly in their
/// order: a submission that came again after the deletion of its job would make the job anew.
const MAX_REQUESTS_IN_HAND: i64 = 1;

/// Something for the state, with what the shell needs to answer it.
pub(super) enum Arrival {
    Input(Input),
    Request {
        request: Request,
        sequence: u64,
        taken: Taken,
    },
    Registered {
        node: NodeName,
        registration: Box<Registration>,
        reply: async_nats::Subject,
    },
    /// A source ended or failed: nothing more will come from it.
    Broken(String),
}

/// Silence after which it is looked whether events are stored that do not come: the consumer went with its server of a
/// cluster then, and the client would take its time to find that out.
const SILENCE: Duration = Duration::from_secs(1);
/// How often the broker says that nothing was asked for. When it misses two, the consumer is gone.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(5);

/// A request's message: how it is answered, and the trace it says it belongs to.
pub(super) struct Taken {
    pub(super) acker: Box<Acker>,
    pub(super) trace: Option<TraceOrigin>,
}

type Queue = mpsc::Sender<Arrival>;

/// Starts to listen to everything. The tasks end when the set is dropped.
pub(super) async fn listen(
    bus: &Bus,
    events: Reading,
    queue: &Queue,
) -> Result<JoinSet<()>, String> {
    let mut sources = JoinSet::new();
    let subscribe = async |subject: String| {
        let subscribed = bus.client.subscribe(subject.clone()).await;
        subscribed.map_err(|error| format!("cannot subscribe to {subject}: {error}"))
    };
    let workers = subscribe(bus.subjects.workers()).await?;
    let heartbeats = subscribe(bus.subjects.heartbeats()).await?;
    let requests = requests(bus).await?;
    sources.spawn(take_events(events, queue.clone()));
    sources.spawn(take_registrations(bus.clone(), workers, queue.clone()));
    sources.spawn(take_heartbeats(
        bus.subjects.clone(),
        heartbeats,
        queue.clone(),
    ));
    sources.spawn(take_requests(bus.subjects.clone(), requests, queue.clone()));
    Ok(sources)
}

async fn requests(bus: &Bus) -> Result<Messages, String> {
    let config = PullConfig {
        durable_name: Some(REQUESTS_CONSUMER.to_owned()),
        description: Some("prewarm: what users ask".to_owned()),
        filter_subjects: JobVerb::ALL.map(|verb| bus.subjects.job(verb)).to_vec(),
        ack_wait: REQUEST_ACK_WAIT,
        max_ack_pending: MAX_REQUESTS_IN_HAND,
        ..PullConfig::default()
    };
    take_from_jobs(bus, config).await
}

/// The messages of `PREWARM_JOBS` by a consumer; each is delivered until it is acknowledged.
pub(super) async fn take_from_jobs(bus: &Bus, config: PullConfig) -> Result<Messages, String> {
    let stream = bus.subjects.jobs_stream();
    let failed = |error: &dyn std::fmt::Display| format!("cannot consume {stream}: {error}");
    let handle = bus
        .jetstream
        .get_stream_no_info(&stream)
        .await
        .map_err(|e| failed(&e))?;
    // What the leader before had in its hands comes at once, and in order, by a consumer that is made anew; by the old one it
    // came after the ack wait, and everything else after that. A request that was answered meanwhile is known by its sequence.
    if let Some(name) = &config.durable_name
        && let Err(error) = handle.delete_consumer(name).await
        && !is_missing(&error)
    {
        return Err(failed(&error));
    }
    let config = PullConfig {
        ack_policy: AckPolicy::Explicit,
        max_deliver: -1,
        ..config
    };
    let consumer = handle
        .create_consumer(config)
        .await
        .map_err(|e| failed(&e))?;
    let messages = consumer.stream().heartbeat(IDLE_HEARTBEAT);
    messages.messages().await.map_err(|e| failed(&e))
}

fn is_missing(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

async fn take_events(mut events: Reading, queue: Queue) {
    let mut was_behind = false;
    loop {
        let Ok(next) = tokio::time::timeout(SILENCE, events.next()).await else {
            let is_behind = events.is_behind().await;
            if was_behind && is_behind {
                tracing::warn!("events are stored and do not come; reading on by another consumer");
                if let Err(error) = events.again().await {
                    return broken(&queue, error.to_string()).await;
                }
            }
            was_behind = is_behind && !was_behind;
            continue;
        };
        was_behind = false;
        match next {
            Ok(message) => {
                let Some(input) = task_event(&message) else {
                    continue;
                };
                if let Input::TaskEvent { event, .. } = &input {
                    spans::pull_told(event);
                }
                if queue.send(Arrival::Input(input)).await.is_err() {
                    return;
                }
            }
            Err(error) => return broken(&queue, format!("the events ended: {error}")).await,
        }
    }
}

pub(super) async fn broken(queue: &mpsc::Sender<Arrival>, reason: String) {
    // Nobody listens any more: the leadership is over already.
    let _ = queue.send(Arrival::Broken(reason)).await;
}

async fn take_registrations(bus: Bus, mut workers: async_nats::Subscriber, queue: Queue) {
    while let Some(message) = workers.next().await {
        let Some(reply) = message.reply.clone() else {
            continue;
        };
        match read_registration(&bus.subjects, &message) {
            Ok((node, registration)) => {
                let registration = Box::new(registration);
                if queue
                    .send(Arrival::Registered {
                        node,
                        registration,
                        reply,
                    })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(
                    subject = message.subject.as_str(),
                    error,
                    "a registration was refused"
                );
                let answer = RegistrationReply {
                    error,
                    ..RegistrationReply::default()
                };
                let body = serde_json::to_vec(&answer).unwrap_or_default();
                // A worker that gets no answer asks again.
                let _ = bus.client.publish(reply, body.into()).await;
            }
        }
    }
    broken(&queue, "the subscription to workers ended".to_owned()).await;
}

fn read_registration(
    subjects: &Subjects,
    message: &Message,
) -> Result<(NodeName, Registration), String> {
    let node = subjects.parse_node(&message.subject);
    let node = node.ok_or("the subject does not end in the token of a node's name")?;
    let registration = serde_json::from_slice(&message.payload)
        .map_err(|error| format!("the registration cannot be read: {error}"))?;
    Ok((node, registration))
}

async fn take_heartbeats(subjects: Subjects, mut heartbeats: async_nats::Subscriber, queue: Queue) {
    while let Some(message) = heartbeats.next().await {
        let Some(node) = subjects.parse_node(&message.subject) else {
            continue;
        };
        let Ok(heartbeat) = serde_json::from_slice::<Heartbeat>(&message.payload) else {
            continue;
        };
        if queue
            .send(Arrival::Input(Input::Heartbeat { node, heartbeat }))
            .await
            .is_err()
        {
            return;
        }
    }
    broken(&queue, "the subscription to heartbeats ended".to_owned()).await;
}

async fn take_requests(subjects: Subjects, mut requests: Messages, queue: Queue) {
    while let Some(next) = requests.next().await {
        let message = match next {
            Ok(message) => message,
            Err(error) => return broken(&queue, format!("the requests ended: {error}")).await,
        };
        let Ok(sequence) = message.info().map(|info| info.stream_sequence) else {
            continue;
        };
        let mut request = read_request(&subjects, &message.subject, &message.payload);
        let taken = Taken::from(message);
        if let Request::Submit(submission) = &mut request {
            submission.trace = taken.trace.or_else(trace::new_trace);
        }
        if queue
            .send(Arrival::Request {
                request,
                sequence,
                taken,
            })
            .await
            .is_err()
        {
            return;
        }
    }
    broken(&queue, "the requests ended".to_owned()).await;
}

impl From<jetstream::Message> for Taken {
    fn from(message: jetstream::Message) -> Self {
        let said = |headers: &HeaderMap| trace::read(headers.get(TRACEPARENT)?.as_str());
        Self {
            trace: message.headers.as_ref().and_then(said),
            acker: Box::new(message.split().1),
        }
    }
}

fn read_request(subjects: &Subjects, subject: &str, body: &[u8]) -> Request {
    let Some(verb) = subjects.parse_job(subject) else {
        let message = format!("{subject} is no request");
        let problems = vec![Problem {
            path: String::new(),
            message,
        }];
        return Request::Unreadable {
            name: None,
            problems,
        };
    };
    if verb == JobVerb::Submit {
        return match manifest::parse(body) {
            Ok(submission) => Request::Submit(Box::new(submission)),
            Err(rejection) => Request::Unreadable {
                name: rejection.name,
                problems: rejection.problems,
            },
        };
    }
    match JobCommand::parse(body) {
        Err(problem) => Request::Unreadable {
            name: None,
            problems: vec![problem],
        },
        Ok(command) => match verb {
            JobVerb::Cancel => Request::Cancel(command.name),
            JobVerb::Delete => Request::Delete(command.name),
            JobVerb::Pause => Request::Pause(command.name, Pause::Pause),
            JobVerb::Resume | JobVerb::Submit => Request::Pause(command.name, Pause::Resume),
        },
    }
}
