//! One attempt: it starts, it ends, what it came to is stored, and only then the task is answered.

use std::sync::Arc;
use std::time::Duration;

use super::WorkerState;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::time::Timestamp;
use crate::wire::event::{FailureReport, PullResult, PullState, TaskEvent};
use crate::work::effect::{DeliveryToken, Effect, EventToStore, PullHandle, StoreHandle};
use crate::work::hand::{Answer, Held, OnDisk, Stage};
use crate::work::retry::{Jitter, after_attempt, doubled};
use crate::work::state::DeadlineReason;
use crate::work::state::kept::KEEP_AFTER;

/// First delay before the broker is asked again to keep an event.
const FIRST_STORE_DELAY: Duration = Duration::from_millis(500);
/// Longest delay between two times the broker is asked to keep an event. It is asked for as long as it
/// takes: a result is never given up.
pub const MAX_STORE_DELAY: Duration = Duration::from_secs(2);
/// Longest failure message in an event, in bytes: a registry may answer with a page.
pub const MAX_FAILURE_MESSAGE_BYTES: usize = 2_000;

impl Held {
    /// When time alone changes this task's stage.
    pub(super) fn deadline(&self) -> Option<(Timestamp, DeadlineReason)> {
        match self.stage {
            Stage::Waiting => self
                .until
                .expires_at
                .map(|at| (at, DeadlineReason::AttemptOver)),
            Stage::Running {
                stop_at, stopping, ..
            } => (!stopping).then_some((stop_at, DeadlineReason::AttemptOver)),
            Stage::Storing {
                again_at, on_disk, ..
            } => {
                let keep = match on_disk {
                    OnDisk::At(at) => Some((at, DeadlineReason::Keep)),
                    OnDisk::No | OnDisk::Yes => None,
                };
                let again = again_at.map(|at| (at, DeadlineReason::StoreAgain));
                keep.into_iter().chain(again).min()
            }
        }
    }

    fn has_expired(&self, now: Timestamp) -> bool {
        self.until.expires_at.is_some_and(|at| at <= now)
    }

    /// When an attempt that starts now is stopped, and what it has failed of then.
    fn limit(&self, now: Timestamp) -> (Timestamp, FailureKind) {
        let seconds = u64::from(self.task.pull_policy.timeout_seconds.max(1));
        let timeout = now.after(Duration::from_secs(seconds));
        match self.until.expires_at {
            Some(expires_at) if expires_at <= timeout => {
                (expires_at, FailureKind::DeadlineExceeded)
            }
            _ => (timeout, FailureKind::Timeout),
        }
    }

    /// Why an attempt that was stopped for its time has failed.
    fn stopped(&self, kind: FailureKind) -> Failure {
        let message = match kind {
            FailureKind::Timeout => format!(
                "the pull took longer than pullPolicy.timeoutSeconds ({} s); what was fetched is kept for the next attempt",
                self.task.pull_policy.timeout_seconds
            ),
            _ => "the job's deadline (completionPolicy.activeDeadlineSeconds) passed before the image was on the node".to_owned(),
        };
        Failure::new(kind, message)
    }
}

/// When the broker is asked again to keep an event.
pub(super) fn store_again_at(now: Timestamp, tries: u32, jitter: &mut Jitter) -> Timestamp {
    now.after(jitter.around(doubled(FIRST_STORE_DELAY, tries, MAX_STORE_DELAY)))
}

impl WorkerState {
    /// Starts what waits and can start, and ends what waited past its job's deadline.
    pub(super) fn start_waiting(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let expired = |held: &Held| held.stage == Stage::Waiting && held.has_expired(now);
        while let Some(position) = self.hand.held.iter().position(expired) {
            let failure = self.hand.held[position].stopped(FailureKind::DeadlineExceeded);
            self.attempt_failed(now, position, failure, effects);
        }
        while let Some(position) = self.hand.next_to_start() {
            let pull = PullHandle(self.next_handle());
            let held = &mut self.hand.held[position];
            let (stop_at, stop_as) = held.limit(now);
            held.stage = Stage::Running {
                pull,
                stop_at,
                stop_as,
                stopping: false,
            };
            self.memory.attempt(&held.id, held.attempt, held.until, now);
            effects.push(Effect::StartPull {
                pull,
                task: Arc::clone(&held.task),
                attempt: held.attempt,
            });
            // Nobody waits for the broker to keep this one: if it is lost, the end still tells.
            let started = self.event(now, position, PullState::Started);
            effects.push(Effect::Store(started));
        }
    }

    /// Stops what takes too long, and stores again what was not stored.
    pub(super) fn advance_attempts(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for held in &mut self.hand.held {
            match &mut held.stage {
                Stage::Running {
                    pull,
                    stop_at,
                    stopping,
                    ..
                } if !*stopping && *stop_at <= now => {
                    *stopping = true;
                    effects.push(Effect::CancelPull(*pull));
                }
                Stage::Storing {
                    event,
                    tries,
                    again_at,
                    on_disk,
                    ..
                } => {
                    if matches!(*on_disk, OnDisk::At(at) if at <= now) {
                        *on_disk = OnDisk::Yes;
                        effects.push(Effect::Keep(Arc::clone(event)));
                    }
                    if again_at.is_some_and(|at| at <= now) {
                        *again_at = None;
                        *tries = tries.saturating_add(1);
                        effects.push(Effect::Store(Arc::clone(event)));
                    }
                }
                Stage::Waiting | Stage::Running { .. } => {}
            }
        }
    }

    pub(super) fn pull_ended(
        &mut self,
        now: Timestamp,
        pull: PullHandle,
        result: Result<PullResult, Failure>,
        effects: &mut Vec<Effect>,
    ) {
        // It may have pinned what it named, however it ended.
        self.pins.outdate();
        let Some(position) = self.hand.running(pull) else {
            self.hand.ended(pull);
            return;
        };
        match result {
            Ok(result) => {
                let mut event = self.describe(position, PullState::Succeeded);
                event.result = Some(result);
                self.conclude(now, position, event, Answer::Ack, effects);
            }
            Err(failure) => {
                let held = &self.hand.held[position];
                let failure = match held.stage {
                    Stage::Running {
                        stopping: true,
                        stop_as,
                        ..
                    } => held.stopped(stop_as),
                    _ => failure,
                };
                self.attempt_failed(now, position, failure, effects);
            }
        }
    }

    /// Fails a task in hand that could not be read: who released it has to know.
    pub(super) fn fail_unread(
        &mut self,
        now: Timestamp,
        token: DeliveryToken,
        problem: &str,
        effects: &mut Vec<Effect>,
    ) {
        let unread = |held: &Held| held.token == token && held.stage == Stage::Waiting;
        if let Some(position) = self.hand.held.iter().position(unread) {
            let message = format!(
                "the node's worker cannot read the task: {problem}; it is probably older than the dispatcher"
            );
            let failure = Failure::new(FailureKind::Internal, message);
            self.attempt_failed(now, position, failure, effects);
        }
    }

    fn attempt_failed(
        &mut self,
        now: Timestamp,
        position: usize,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        let held = &self.hand.held[position];
        let gives_up =
            failure.kind.is_permanent() || held.attempt > held.task.pull_policy.backoff_limit;
        let (state, answer) = if gives_up {
            (PullState::Failed, Answer::Ack)
        } else {
            let delay = after_attempt(held.attempt, failure.retry_after, &mut self.jitter);
            (PullState::Retrying, Answer::PutBack(now.after(delay)))
        };
        let mut event = self.describe(position, state);
        event.failure = Some(FailureReport {
            kind: failure.kind,
            message: shortened(failure.message),
        });
        if let Answer::PutBack(at) = answer {
            event.next_attempt_at = Some(at);
        }
        self.conclude(now, position, event, answer, effects);
    }

    /// Stores what the attempt came to; the answer follows when the broker keeps it.
    fn conclude(
        &mut self,
        now: Timestamp,
        position: usize,
        event: TaskEvent,
        then: Answer,
        effects: &mut Vec<Effect>,
    ) {
        let event = self.stamped(now, position, event);
        effects.push(Effect::Store(Arc::clone(&event)));
        self.hand.held[position].stage = Stage::Storing {
            event,
            tries: 1,
            again_at: None,
            then,
            on_disk: match then {
                Answer::Ack => OnDisk::At(now.after(KEEP_AFTER)),
                Answer::PutBack(_) => OnDisk::No,
            },
        };
    }

    /// The broker is there again: what it could not be told is told now.
    pub(super) fn hasten_stores(&mut self, now: Timestamp) {
        self.hasten_kept(now);
        for held in &mut self.hand.held {
            if let Stage::Storing {
                again_at: Some(at), ..
            } = &mut held.stage
            {
                *at = (*at).min(now);
            }
        }
    }

    pub(super) fn stored(&mut self, now: Timestamp, store: StoreHandle, effects: &mut Vec<Effect>) {
        let Some((position, then)) = self.storing(store) else {
            return self.kept_stored(now, store, effects);
        };
        let (held, _) = self.hand.release(position);
        let to_discard = held.to_discard();
        effects.push(match then {
            Answer::Ack => {
                self.memory.ended(&held.id);
                Effect::Ack(held.token)
            }
            Answer::PutBack(at) => Effect::Nak {
                token: held.token,
                delay: (at > now).then(|| at.since(now)),
            },
        });
        effects.extend(to_discard.map(Effect::Discard));
    }

    pub(super) fn not_stored(&mut self, now: Timestamp, store: StoreHandle) {
        let Some((position, _)) = self.storing(store) else {
            return self.kept_not_stored(now, store);
        };
        if let Stage::Storing {
            tries, again_at, ..
        } = &mut self.hand.held[position].stage
        {
            *again_at = Some(store_again_at(now, *tries, &mut self.jitter));
        }
    }

    fn storing(&self, store: StoreHandle) -> Option<(usize, Answer)> {
        let answer = |held: &Held| match &held.stage {
            Stage::Storing { event, then, .. } if event.store == store => Some(*then),
            _ => None,
        };
        let held = self.hand.held.iter().enumerate();
        held.filter_map(|(position, held)| Some((position, answer(held)?)))
            .next()
    }

    fn describe(&self, position: usize, state: PullState) -> TaskEvent {
        let Held { task, attempt, .. } = &self.hand.held[position];
        TaskEvent {
            job: task.job.clone(),
            run: task.run.clone(),
            node: task.node.clone(),
            image: task.image.clone(),
            state,
            attempt: *attempt,
            failure: None,
            next_attempt_at: None,
            result: None,
            labels: task.labels.clone(),
            annotations: task.annotations.clone(),
        }
    }

    fn event(&mut self, now: Timestamp, position: usize, state: PullState) -> Arc<EventToStore> {
        let event = self.describe(position, state);
        self.stamped(now, position, event)
    }

    fn stamped(&mut self, now: Timestamp, position: usize, event: TaskEvent) -> Arc<EventToStore> {
        let store = StoreHandle(self.next_handle());
        let traceparent = self.hand.held[position].task.traceparent;
        Arc::new(EventToStore {
            store,
            message_id: format!("{}.{}.{store}", event.id(), self.settings.instance),
            at: now,
            event,
            traceparent,
        })
    }
}

/// The message, cut at a character if it is too long.
fn shortened(mut message: String) -> String {
    if message.len() > MAX_FAILURE_MESSAGE_BYTES {
        let mut end = MAX_FAILURE_MESSAGE_BYTES;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}
