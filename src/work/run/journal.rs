//! What a worker writes into the log: once for each change, not once for each try.

use crate::domain::name::NodeName;
use crate::image::RuntimeInfo;
use crate::wire::event::PullState;
use crate::work::effect::{ConsumerName, EventToStore, Note, StoreHandle};

/// Remembers what was said last.
#[derive(Debug)]
pub(super) struct Journal {
    node: NodeName,
    /// `None` until the first answer; `Ok` while registered, else why not.
    registered: Option<Result<ConsumerName, String>>,
    /// The newest event that was written down: one that is stored again is no news.
    newest: Option<StoreHandle>,
}

impl Journal {
    pub(super) const fn new(node: NodeName) -> Self {
        Self {
            node,
            registered: None,
            newest: None,
        }
    }

    pub(super) fn begins(&self, runtime: &RuntimeInfo, capacity: u32) {
        tracing::info!(
            node = %self.node,
            runtime = %format_args!("{} {}", runtime.name, runtime.version),
            platform = %runtime.platform,
            capacity,
            "worker started"
        );
    }

    pub(super) fn stops(&self, in_hand: u32) {
        tracing::info!(node = %self.node, in_hand, "stopping: no new tasks are taken");
    }

    pub(super) fn registered(&mut self, consumer: &ConsumerName) {
        let now = Some(Ok(consumer.clone()));
        if self.registered != now {
            tracing::info!(node = %self.node, stream = consumer.stream, consumer = consumer.consumer, "registered");
            self.registered = now;
        }
    }

    pub(super) fn not_registered(&mut self, reason: String) {
        let now = Some(Err(reason.clone()));
        if self.registered != now {
            tracing::warn!(node = %self.node, reason, "not registered; trying on");
            self.registered = now;
        }
    }

    pub(super) fn unreadable_revocation(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(node = %self.node, %error, "a revocation cannot be read and is dropped");
    }

    /// Says whether it is news.
    pub(super) fn told(&mut self, stored: &EventToStore) -> bool {
        if self.newest >= Some(stored.store) {
            return false;
        }
        self.newest = Some(stored.store);
        let event = &stored.event;
        let context = stored.traceparent.as_ref();
        let trace_id = context.map(|context| tracing::field::display(context.trace_id));
        let (job, node, image, attempt) = (&event.job, &event.node, &event.image, event.attempt);
        let failure = event.failure.as_ref();
        let kind = failure
            .map(|failure| failure.kind.as_str())
            .unwrap_or_default();
        let reason = failure
            .map(|failure| failure.message.as_str())
            .unwrap_or_default();
        match event.state {
            PullState::Started => {
                tracing::info!(%job, %node, %image, attempt, trace_id, "pull started")
            }
            PullState::Retrying => {
                let next = event.next_attempt_at.unwrap_or_default();
                tracing::warn!(%job, %node, %image, attempt, trace_id, kind, reason, next = %next, "pull failed and is tried again");
            }
            PullState::Succeeded => {
                let (bytes, present) = event.result.as_ref().map_or((0, false), |result| {
                    (
                        result.bytes_registry + result.bytes_elsewhere,
                        result.already_present,
                    )
                });
                tracing::info!(%job, %node, %image, attempt, trace_id, bytes, present, "image is on the node");
            }
            PullState::Failed => {
                tracing::error!(%job, %node, %image, attempt, trace_id, kind, reason, "pull failed for good");
            }
        }
        true
    }

    pub(super) fn note(&self, note: &Note) {
        let node = &self.node;
        match note {
            Note::Undecodable { subject, problem } => {
                tracing::error!(%node, subject, problem, "a task cannot be read; is this worker older than the dispatcher?");
            }
            Note::ForAnotherNode { pull, node: other } => {
                tracing::error!(%node, job = %pull.job, image = pull.image, %other, "a task of another node was delivered and is dropped; check the consumer's filter and the broker's permissions");
            }
            Note::Superseded { pull, by } => {
                tracing::info!(%node, job = %pull.job, image = pull.image, generation = by.generation, round = by.round, "a pull gives way to another run of its job");
            }
            Note::Outdated(pull) => {
                tracing::debug!(%node, job = %pull.job, image = pull.image, "a task of an earlier run is dropped");
            }
            Note::Revoked(pull) => {
                tracing::info!(%node, job = %pull.job, image = pull.image, "a pull is revoked and stops");
            }
            Note::RevokedBefore(pull) | Note::NoSlot(pull) | Note::Stopping(pull) => {
                tracing::debug!(%node, job = %pull.job, image = pull.image, ?note, "a task goes back");
            }
        }
    }
}
