//! Doing what the state asks for, in order.
//!
//! Nothing is tried twice here. An effect that fails, or whose outcome is not known, ends the
//! leadership: the next one begins by reading everything back, which is the one way in which
//! uncertainty is resolved. Writes that must not cross another dispatcher's carry the revision or
//! sequence they expect.

use std::collections::HashMap;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind, Stream};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::arrivals::{Arrival, Taken};
use super::buckets::{deletion, kv_subject};
use super::input::{Effect, Input, ReplyToken};
use super::resolve::Resolver;
use super::spans;
use super::welcome::Welcomer;
use crate::bus::Bus;
use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};
use crate::telemetry::trace;
use crate::wire::record::NodeRecord;
use crate::wire::subject::PullKey;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::Revocation;

/// Messages that are withdrawn at once.
const WITHDRAWN_AT_ONCE: usize = 64;
/// Messages sent and not yet confirmed by the broker.
const MAX_UNCONFIRMED: usize = 1_024;

/// Why an effect could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub(super) struct PerformError {
    what: String,
    reason: String,
}

impl PerformError {
    pub(super) fn new(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}

pub(super) type Done<T = ()> = Result<T, PerformError>;

/// A message on its way.
enum Unconfirmed {
    Release {
        key: PullKey,
        run: Run,
        ack: PublishAckFuture,
        /// Ends when the broker has the message.
        span: tracing::Span,
    },
    Other {
        what: String,
        ack: PublishAckFuture,
    },
}

pub(super) struct Performer {
    pub(super) bus: Bus,
    tasks: Stream<()>,
    revisions: HashMap<JobName, u64>,
    /// The newest message known to be in the task stream.
    newest_task: u64,
    unconfirmed: Vec<Unconfirmed>,
    pub(super) replies: HashMap<ReplyToken, async_nats::Subject>,
    pub(super) requests: HashMap<u64, Taken>,
    resolver: Resolver,
    arrivals: mpsc::Sender<Arrival>,
    background: JoinSet<()>,
    welcomer: Welcomer,
    pub(super) source: String,
}

impl Performer {
    pub(super) async fn new(
        bus: Bus,
        (revisions, newest_task): (HashMap<JobName, u64>, u64),
        resolver: Resolver,
        arrivals: mpsc::Sender<Arrival>,
    ) -> Done<Self> {
        let name = bus.subjects.tasks_stream();
        let tasks = bus.jetstream.get_stream_no_info(&name).await;
        let tasks = tasks.map_err(|error| PerformError::new(format!("stream {name}"), error))?;
        let source = format!("/{}/dispatcher", bus.subjects.prefix());
        let welcomer = Welcomer::new(bus.clone(), tasks.clone()).await?;
        Ok(Self {
            bus,
            tasks,
            revisions,
            newest_task,
            unconfirmed: Vec::new(),
            replies: HashMap::new(),
            requests: HashMap::new(),
            resolver,
            arrivals,
            background: JoinSet::new(),
            welcomer,
            source,
        })
    }

    /// Does everything, and says what the state has to know of it.
    pub(super) async fn perform(&mut self, effects: Vec<Effect>) -> Done<Vec<Input>> {
        let mut known = Vec::new();
        let mut effects = effects.into_iter().peekable();
        while let Some(effect) = effects.next() {
            if self.unconfirmed.len() >= MAX_UNCONFIRMED || effect.is_barrier() {
                self.settle(&mut known).await?;
            }
            let Effect::WithdrawPull(key) = effect else {
                self.perform_one(effect).await?;
                continue;
            };
            let mut keys = vec![key];
            while let Some(Effect::WithdrawPull(key)) =
                effects.next_if(|effect| matches!(effect, Effect::WithdrawPull(_)))
            {
                keys.push(key);
            }
            self.withdraw_pulls(keys).await?;
        }
        self.settle(&mut known).await?;
        while self.background.try_join_next().is_some() {}
        Ok(known)
    }

    async fn perform_one(&mut self, effect: Effect) -> Done {
        match effect {
            Effect::PutRecord(record) => {
                let name = record.metadata.name.clone();
                self.write_record(&name, encode(&record)?, HeaderMap::new())
                    .await
            }
            Effect::DeleteRecord(name) => self.delete_record(name).await,
            Effect::PutNode(record) => self.put_node(&record).await,
            Effect::DeleteNode(name) => self.delete_node(&name).await,
            Effect::TellJob {
                id,
                time,
                event,
                trace,
            } => self.tell_job(id, time, *event, trace).await,
            Effect::TellNode { id, time, event } => self.tell_node(id, time, *event).await,
            Effect::TellPull {
                time,
                event,
                traceparent,
            } => self.tell_pull(time, *event, traceparent).await,
            Effect::Release(task) => self.release(*task).await,
            Effect::WithdrawJob(name) => self.withdraw(self.bus.subjects.tasks_of_job(&name)).await,
            Effect::WithdrawPull(key) => self.withdraw_pulls(vec![key]).await,
            Effect::Revoke { node, revocation } => self.revoke(&node, &revocation).await,
            Effect::Resolve {
                job,
                run,
                images,
                pull_secrets,
                trace,
            } => {
                let span = spans::resolve(&job, &run, trace);
                self.resolve((job, run), images, pull_secrets, span);
                Ok(())
            }
            Effect::Welcome {
                node,
                remake,
                start,
                reply,
            } => {
                if let Some(reply) = self.replies.remove(&reply) {
                    // Made aside: what is released meanwhile lies after its start.
                    self.welcomer.welcome(node, remake, start, reply);
                }
                Ok(())
            }
            Effect::Acknowledge { sequence } => match self.requests.remove(&sequence) {
                Some(taken) => taken
                    .acker
                    .ack()
                    .await
                    .map_err(|error| PerformError::new("acknowledging a request", error)),
                None => Ok(()),
            },
        }
    }

    /// Waits until the broker has confirmed everything that was sent.
    async fn settle(&mut self, known: &mut Vec<Input>) -> Done {
        for sent in self.unconfirmed.drain(..) {
            match sent {
                Unconfirmed::Release {
                    key,
                    run,
                    ack,
                    span,
                } => {
                    let ack = ack.await.map_err(|error| {
                        trace::fail(&span, &error);
                        PerformError::new(format!("releasing {} to {}", key.job, key.node), error)
                    })?;
                    span.in_scope(|| tracing::debug!(sequence = ack.sequence, "released"));
                    self.newest_task = self.newest_task.max(ack.sequence);
                    known.push(Input::Released {
                        key,
                        run,
                        sequence: ack.sequence,
                    });
                }
                Unconfirmed::Other { what, ack } => {
                    ack.await.map_err(|error| PerformError::new(what, error))?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn send(
        &mut self,
        what: String,
        subject: String,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Done {
        match self.bus.store(subject, headers, body.into()).await {
            Ok(ack) => {
                self.unconfirmed.push(Unconfirmed::Other { what, ack });
                Ok(())
            }
            Err(error) => Err(PerformError::new(what, error)),
        }
    }

    async fn put_node(&mut self, record: &NodeRecord) -> Done {
        let key = kv_subject(&self.bus.subjects.nodes_bucket(), &record.name.token());
        let what = format!("the record of node {}", record.name);
        self.send(what, key, HeaderMap::new(), encode(record)?)
            .await
    }

    /// Asks aside; the answer arrives like everything else.
    fn resolve(
        &mut self,
        (job, run): (JobName, Run),
        images: Vec<ImageRef>,
        pull_secrets: Vec<String>,
        span: tracing::Span,
    ) {
        let (resolver, arrivals) = (self.resolver.clone(), self.arrivals.clone());
        self.background.spawn(async move {
            let resolving = resolver.resolve(images, &pull_secrets);
            let images = resolving.instrument(span).await;
            let resolved = Arrival::Input(Input::Resolved { job, run, images });
            // Nobody listens any more: the next leader asks again.
            let _ = arrivals.send(resolved).await;
        });
    }

    /// Looks aside for the pulls that have a message in the task stream. One that fails is made good
    /// by the next.
    pub(super) fn look_through(&mut self, as_of: u64) {
        let (bus, tasks) = (self.bus.clone(), self.tasks.clone());
        let arrivals = self.arrivals.clone();
        self.background.spawn(async move {
            let found = tasks.info_with_subjects(bus.subjects.tasks()).await;
            let keys = match found {
                Ok(found) => found.try_collect::<Vec<_>>().await,
                Err(error) => Err(error),
            };
            match keys {
                Ok(found) => {
                    let key = |(subject, _): (String, usize)| bus.subjects.parse_task(&subject);
                    let keys = found.into_iter().filter_map(key).collect();
                    // Nobody listens any more: the next leader looks for itself.
                    let _ = arrivals
                        .send(Arrival::Input(Input::Kept { keys, as_of }))
                        .await;
                }
                Err(error) => tracing::debug!(%error, "the task stream was not looked through"),
            }
        });
    }

    async fn release(&mut self, mut task: PullTask) -> Done {
        let span = spans::release(&mut task);
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let message = PublishMessage::build()
            .expected_last_subject_sequence(0)
            .payload(encode(&task)?.into());
        let subject = self.bus.subjects.task(&key);
        let ack = self
            .bus
            .jetstream
            .send_publish(subject, message)
            .await
            .map_err(|error| {
                PerformError::new(format!("releasing {} to {}", key.job, key.node), error)
            })?;
        self.unconfirmed.push(Unconfirmed::Release {
            key,
            run: task.run,
            ack,
            span,
        });
        Ok(())
    }

    /// Writes a record over the revision this dispatcher knows; another one's write makes it fail.
    async fn write_record(&mut self, name: &JobName, body: Vec<u8>, headers: HeaderMap) -> Done {
        let what = || format!("the record of job {name}");
        let expected = self.revisions.get(name).copied().unwrap_or(0);
        let message = PublishMessage::build()
            .headers(headers)
            .expected_last_subject_sequence(expected)
            .payload(body.into());
        let subject = kv_subject(&self.bus.subjects.jobs_bucket(), &name.token());
        let sent = self.bus.jetstream.send_publish(subject, message).await;
        let ack = sent.map_err(|error| PerformError::new(what(), error))?;
        let ack = ack
            .await
            .map_err(|error| PerformError::new(what(), error))?;
        self.revisions.insert(name.clone(), ack.sequence);
        Ok(())
    }

    /// Leaves a marker, so that watchers see the deletion, then removes it, so that a cell whose CI
    /// makes a job an hour does not grow for ever.
    async fn delete_record(&mut self, name: JobName) -> Done {
        let bucket = self.bus.subjects.jobs_bucket();
        self.write_record(&name, Vec::new(), deletion()).await?;
        purge_subject(&self.bus, &bucket, &kv_subject(&bucket, &name.token())).await?;
        self.revisions.remove(&name);
        Ok(())
    }

    async fn delete_node(&mut self, name: &NodeName) -> Done {
        let bucket = self.bus.subjects.nodes_bucket();
        let key = kv_subject(&bucket, &name.token());
        let ack = self
            .bus
            .store(key.clone(), deletion(), Vec::new().into())
            .await;
        let what = || format!("forgetting node {name}");
        ack.map_err(|error| PerformError::new(what(), error))?
            .await
            .map_err(|error| PerformError::new(what(), error))?;
        purge_subject(&self.bus, &bucket, &key).await?;
        if let Err(error) = self.tasks.delete_consumer(&name.token()).await {
            tracing::debug!(node = %name, %error, "the node had no consumer to delete");
        }
        Ok(())
    }

    /// Removes single messages by their sequence. A purge of a subject would do the same, but costs the broker a look
    /// at every consumer (`stream.purgeLocked` of nats-server): when a thousand of ten thousand nodes leave at once, it
    /// would be busy with that for so long that others seem to be gone, too.
    async fn withdraw_pulls(&self, keys: Vec<PullKey>) -> Done {
        let mut withdrawn = futures::stream::iter(keys)
            .map(|key| self.withdraw_pull(key))
            .buffer_unordered(WITHDRAWN_AT_ONCE);
        while let Some(done) = withdrawn.next().await {
            done?;
        }
        Ok(())
    }

    async fn withdraw_pull(&self, key: PullKey) -> Done {
        let subject = self.bus.subjects.task(&key);
        let failed = |error: &dyn std::fmt::Display| {
            PerformError::new(format!("withdrawing {subject}"), error)
        };
        let Some(sequence) = self.stored(&subject).await.map_err(|e| failed(&e))? else {
            return Ok(());
        };
        // As with a purge: what the next leader has released is not for this one to take.
        if sequence > self.newest_task {
            return Ok(());
        }
        let Err(error) = self.delete(sequence).await else {
            return Ok(());
        };
        // Somebody else may have removed it between the two.
        match self.stored(&subject).await.map_err(|e| failed(&e))? {
            Some(still) if still == sequence => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// Removes a message of the task stream. The client's own deletion has the message overwritten as well, for which
    /// nats-server writes the whole block file anew (`fileStore.EraseMsg`): megabytes for each of ten thousand tasks.
    async fn delete(&self, sequence: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let subject = format!("STREAM.MSG.DELETE.{}", self.bus.subjects.tasks_stream());
        let body = serde_json::json!({"seq": sequence, "no_erase": true});
        let response: Response<serde_json::Value> =
            self.bus.jetstream.request(subject, &body).await?;
        match response {
            Response::Ok(_) => Ok(()),
            Response::Err { error } => Err(error.into()),
        }
    }

    /// The sequence of the message on a task's subject.
    async fn stored(&self, subject: &str) -> Result<Option<u64>, LastRawMessageError> {
        match self.tasks.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message.sequence)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Withdraws only what this leader knows of: a purge that is held up on its way must not take
    /// what the next leader has released.
    async fn withdraw(&self, filter: String) -> Done {
        let purge = self.tasks.purge().sequence(self.newest_task + 1);
        let purged = purge.filter(&filter).await;
        let purged =
            purged.map_err(|error| PerformError::new(format!("withdrawing {filter}"), error))?;
        tracing::debug!(filter, messages = purged.purged, "withdrew tasks");
        Ok(())
    }

    async fn revoke(&self, node: &NodeName, revocation: &Revocation) -> Done {
        let body = encode(revocation)?;
        let sent = self
            .bus
            .client
            .publish(self.bus.subjects.revoke(node), body.into())
            .await;
        sent.map_err(|error| PerformError::new(format!("revoking pulls and pins of {node}"), error))
    }
}

pub(super) fn encode<T: serde::Serialize>(value: &T) -> Done<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| PerformError::new("encoding a message", error))
}

/// Removes every trace of a bucket's key.
pub(super) async fn purge_subject(bus: &Bus, bucket: &str, subject: &str) -> Done {
    let failed =
        |error: &dyn std::fmt::Display| PerformError::new(format!("removing {subject}"), error);
    let stream = bus
        .jetstream
        .get_stream_no_info(format!("KV_{bucket}"))
        .await;
    let stream = stream.map_err(|error| failed(&error))?;
    stream
        .purge()
        .filter(subject)
        .await
        .map_err(|error| failed(&error))?;
    Ok(())
}
