//! The tasks in a worker's hands, and the pulls that are stopping without one.

use std::sync::Arc;

use super::effect::{DeliveryToken, EventToStore, PullHandle};
use crate::domain::failure::FailureKind;
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::domain::time::Timestamp;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::PullId;

/// What two tasks share a pull by: the same bytes under the same names, unpacked or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    image: ImageRef,
    digest: Option<Digest>,
    platform: Option<Platform>,
    unpack: bool,
}

impl Content {
    pub(super) fn of(task: &PullTask) -> Self {
        Self {
            image: task.image.clone(),
            digest: task.digest.clone(),
            platform: task.platform.clone(),
            unpack: task.unpack,
        }
    }
}

/// Names the pull a task asks for.
pub(super) fn pull_id(task: &PullTask) -> PullId {
    PullId {
        job: task.job.clone(),
        run: task.run.clone(),
        image: task.image.token(),
    }
}

/// One task in hand. It takes a slot until it is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) id: PullId,
    pub(super) task: Arc<PullTask>,
    /// The delivery to answer: the last one, if it was delivered again.
    pub(super) token: DeliveryToken,
    /// Which attempt this is, from 1.
    pub(super) attempt: u32,
    /// How long the job lasts.
    pub(super) until: Until,
    /// When the broker is told next that the task is in good hands.
    pub(super) in_progress_at: Timestamp,
    pub(super) stage: Stage,
}

/// When a task's job ends by its deadline, as far as this worker can tell.
///
/// The dispatcher decides on it, and takes the task back; the worker keeps to it where no dispatcher leads. So it may
/// come late, and never early: what counts is how much time there was at the release, from the delivery on, and not what
/// the clock of this node shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Until {
    /// By this worker's clock.
    pub(super) expires_at: Option<Timestamp>,
    /// Of which release that is, by the dispatcher's clock.
    pub(super) released_at: Option<Timestamp>,
}

impl Until {
    /// For a task that is delivered now, for the first time.
    pub(super) fn of(task: &PullTask, now: Timestamp) -> Self {
        Self {
            expires_at: task.time_left(now).map(|left| now.after(left)),
            released_at: task.released_at,
        }
    }
}

/// How far a task in hand is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Another pull of the same content runs, or time has not passed since the delivery.
    Waiting,
    /// The pull runs.
    Running {
        pull: PullHandle,
        /// When the attempt is stopped.
        stop_at: Timestamp,
        /// What it failed of then.
        stop_as: FailureKind,
        /// It was told to stop, and has not ended.
        stopping: bool,
    },
    /// The attempt ended; the task is answered when the broker keeps the event that says so.
    Storing {
        event: Arc<EventToStore>,
        /// How often the broker was asked to keep it.
        tries: u32,
        /// When to ask again; `None` while it is asked.
        again_at: Option<Timestamp>,
        then: Answer,
        on_disk: OnDisk,
    },
}

/// Whether the end of an attempt would survive this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OnDisk {
    /// It has no need to: the task comes again, or the broker has the end.
    No,
    /// It is written to the disk at this time, unless the broker has it by then.
    At(Timestamp),
    /// It does.
    Yes,
}

/// What a task is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// It is done with.
    Ack,
    /// Another attempt follows at this time.
    PutBack(Timestamp),
}

impl Held {
    /// What has to be taken off the disk when nobody wants this task's end any more.
    pub(super) fn to_discard(&self) -> Option<Arc<EventToStore>> {
        match &self.stage {
            Stage::Storing {
                event,
                on_disk: OnDisk::Yes,
                ..
            } => Some(Arc::clone(event)),
            _ => None,
        }
    }

    /// What has to be written to the disk when this process does not wait for the broker any longer.
    pub(super) fn to_keep(&self) -> Option<Arc<EventToStore>> {
        match &self.stage {
            Stage::Storing {
                event,
                on_disk: OnDisk::At(_),
                ..
            } => Some(Arc::clone(event)),
            _ => None,
        }
    }
}

/// A pull that was told to stop, whose task is no longer in hand. It takes a slot until it has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ending {
    pull: PullHandle,
    content: Content,
}

/// Everything that takes a slot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Hand {
    /// In order of arrival.
    pub(super) held: Vec<Held>,
    ending: Vec<Ending>,
}

/// How a delivered run stands to the one in hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Succession {
    /// It comes after the one in hand.
    Later,
    /// It came before the one in hand.
    Earlier,
    /// It is of another job of the same name; which came first cannot be told.
    Stranger,
}

/// Compares a delivered run with another one in hand.
pub(super) fn succession(delivered: &Run, in_hand: &Run) -> Succession {
    if delivered.uid != in_hand.uid {
        return Succession::Stranger;
    }
    if (delivered.generation, delivered.round) < (in_hand.generation, in_hand.round) {
        Succession::Earlier
    } else {
        Succession::Later
    }
}

impl Hand {
    /// Slots taken.
    pub(super) fn slots(&self) -> usize {
        self.held.len() + self.ending.len()
    }

    /// The task of this job and image, whatever its run.
    pub(super) fn position(&self, id: &PullId) -> Option<usize> {
        self.held
            .iter()
            .position(|held| held.id.job == id.job && held.id.image == id.image)
    }

    /// The task whose pull this is.
    pub(super) fn running(&self, handle: PullHandle) -> Option<usize> {
        self.held
            .iter()
            .position(|held| matches!(held.stage, Stage::Running { pull, .. } if pull == handle))
    }

    /// Takes a task out; its pull, if one runs, goes on taking a slot until it has ended. Returns the
    /// pull that has to be told to stop.
    pub(super) fn release(&mut self, position: usize) -> (Held, Option<PullHandle>) {
        let held = self.held.remove(position);
        let mut to_cancel = None;
        if let Stage::Running { pull, stopping, .. } = held.stage {
            to_cancel = (!stopping).then_some(pull);
            self.ending.push(Ending {
                pull,
                content: Content::of(&held.task),
            });
        }
        (held, to_cancel)
    }

    /// Notes that a pull without a task has ended.
    pub(super) fn ended(&mut self, pull: PullHandle) {
        self.ending.retain(|ending| ending.pull != pull);
    }

    /// The waiting task to start next: the highest priority first, then the earliest arrival, and none
    /// whose content is being pulled.
    pub(super) fn next_to_start(&self) -> Option<usize> {
        let busy: Vec<Content> = self
            .held
            .iter()
            .filter(|held| matches!(held.stage, Stage::Running { .. }))
            .map(|held| Content::of(&held.task))
            .chain(self.ending.iter().map(|ending| ending.content.clone()))
            .collect();
        let startable =
            |held: &Held| held.stage == Stage::Waiting && !busy.contains(&Content::of(&held.task));
        let (position, _) = self
            .held
            .iter()
            .enumerate()
            .filter(|(_, held)| startable(held))
            .min_by_key(|(position, held)| (std::cmp::Reverse(held.task.priority), *position))?;
        Some(position)
    }

    /// Whether nothing is in hand and no pull is stopping.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.ending.is_empty()
    }

    /// Names what is in hand, for the heartbeat.
    pub(super) fn pulls(&self) -> Vec<PullId> {
        self.held.iter().map(|held| held.id.clone()).collect()
    }
}
