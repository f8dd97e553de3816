//! Pulls that are given up, by their worker or by the dispatcher.

use super::input::Effect;
use super::job::{GivenUp, PullState};
use super::slots::{PullIndex, Resource};
use super::state::Dispatcher;
use crate::domain::failure::FailureKind;
use crate::domain::time::Timestamp;
use crate::wire::event::{FailureReport, PullState as Reported, TaskEvent};

impl Dispatcher {
    /// Gives an unfinished pull up, and tells so: the job's record names only some. Says what came free.
    pub(super) fn fail(
        &mut self,
        now: Timestamp,
        pull: PullIndex,
        kind: FailureKind,
        message: &str,
        effects: &mut Vec<Effect>,
    ) -> Vec<Resource> {
        let Some(state) = self.state_of(pull).filter(|state| !state.is_terminal()) else {
            return Vec::new();
        };
        let freed = self.leave_slots(pull, state);
        self.set_state(pull, PullState::Failed);
        let attempts = self
            .jobs
            .get(&pull.job)
            .and_then(|job| job.pull(pull.node, pull.image))
            .map_or(0, |pull| u32::from(pull.attempts));
        let given_up = GivenUp {
            kind,
            attempts,
            message: message.to_owned(),
        };
        if let Some(task) = self.task(now, pull) {
            let event = TaskEvent {
                job: task.job,
                run: task.run,
                node: task.node,
                image: task.image,
                state: Reported::Failed,
                attempt: attempts,
                failure: Some(FailureReport {
                    kind,
                    message: message.to_owned(),
                }),
                next_attempt_at: None,
                result: None,
                labels: task.labels,
                annotations: task.annotations,
            };
            effects.push(Effect::TellPull {
                time: now,
                event: Box::new(event),
                traceparent: task.traceparent,
            });
        }
        self.note_failure(pull, given_up);
        freed
    }

    pub(super) fn note_attempt(&mut self, pull: PullIndex, attempt: u32) {
        let job = self.jobs.get_mut(&pull.job);
        if let Some(pull) = job.and_then(|job| job.pull_mut(pull.node, pull.image)) {
            pull.attempts = pull
                .attempts
                .max(u16::try_from(attempt).unwrap_or(u16::MAX));
        }
    }

    pub(super) fn note_failure(&mut self, pull: PullIndex, given_up: GivenUp) {
        if let Some(job) = self.jobs.get_mut(&pull.job) {
            job.note_failure(pull.node, pull.image, given_up);
        }
    }
}

/// Why the worker gave the pull up; `None` if it did not.
pub(super) fn given_up(event: &TaskEvent) -> Option<GivenUp> {
    if event.state != Reported::Failed {
        return None;
    }
    let (kind, message) = match &event.failure {
        Some(failure) => (failure.kind, failure.message.as_str()),
        None => (FailureKind::Internal, "the worker gave no reason"),
    };
    Some(GivenUp {
        kind,
        attempts: event.attempt,
        message: message.to_owned(),
    })
}
