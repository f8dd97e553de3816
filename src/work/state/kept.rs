//! Results of an earlier life of this worker, which the broker may not have.
//!
//! Each is told as it was, under the same message id: a broker that has it already drops it. A task that comes again
//! for one is answered with it instead of another pull.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::WorkerState;
use super::attempt::store_again_at;
use crate::bus::topology::DUPLICATE_WINDOW;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::wire::event::TaskEvent;
use crate::wire::worker::PullId;
use crate::work::effect::{Effect, EventToStore, StoreHandle};
use crate::work::hand::{Answer, OnDisk, Stage};

/// Most results of earlier lives. One life leaves at most as many as the node has slots.
pub const MAX_KEPT_RESULTS: usize = 256;
/// How long the broker may take to say that it has a result before that is written to the disk: most never are.
pub const KEEP_AFTER: Duration = Duration::from_millis(100);
/// How long a result that was told answers its task: while the broker knows the message's id, so that telling it once
/// more makes no second event.
const ANSWERS_FOR: Duration = DUPLICATE_WINDOW;

/// The end of a pull, as it is kept until the broker has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptResult {
    /// The `Nats-Msg-Id` under which it was told, and is told again.
    pub message_id: String,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub event: TaskEvent,
    /// The span that the task hung under; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceContext>,
}

impl From<&EventToStore> for KeptResult {
    fn from(stored: &EventToStore) -> Self {
        Self {
            message_id: stored.message_id.clone(),
            at: stored.at,
            event: stored.event.clone(),
            traceparent: stored.traceparent,
        }
    }
}

/// A result of an earlier life, and how far the telling is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    id: PullId,
    event: Arc<EventToStore>,
    telling: Telling,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Telling {
    /// The broker is asked to keep it at this time.
    Due { tries: u32, at: Timestamp },
    /// It is asked.
    Asked { tries: u32 },
    /// It has it; the task may come until then.
    Told { until: Timestamp },
}

impl Kept {
    /// When the broker is asked to keep it.
    pub(super) const fn deadline(&self) -> Option<Timestamp> {
        match self.telling {
            Telling::Due { at, .. } => Some(at),
            Telling::Asked { .. } | Telling::Told { .. } => None,
        }
    }
}

impl WorkerState {
    /// With what an earlier life of this worker finished and did not see kept by the broker; the newest
    /// [`MAX_KEPT_RESULTS`] of it.
    #[must_use]
    pub fn with_kept(mut self, now: Timestamp, mut results: Vec<KeptResult>) -> Self {
        results.retain(|kept| kept.event.state.is_terminal());
        results.sort_by_key(|kept| kept.at);
        let surplus = results.len().saturating_sub(MAX_KEPT_RESULTS);
        for kept in results.into_iter().skip(surplus) {
            let KeptResult {
                message_id,
                at,
                event,
                traceparent,
            } = kept;
            let id = PullId {
                job: event.job.clone(),
                run: event.run.clone(),
                image: event.image.token(),
            };
            let store = StoreHandle(self.next_handle());
            let event = Arc::new(EventToStore {
                store,
                message_id,
                at,
                event,
                traceparent,
            });
            let telling = Telling::Due { tries: 0, at: now };
            self.kept.push(Kept { id, event, telling });
        }
        self
    }

    /// Tells what is due, and forgets what no task will come for.
    pub(super) fn tell_kept(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.kept.retain(|kept| match kept.telling {
            Telling::Told { until } => until > now,
            Telling::Due { .. } | Telling::Asked { .. } => true,
        });
        for kept in &mut self.kept {
            if let Telling::Due { tries, at } = kept.telling
                && at <= now
            {
                let tries = tries.saturating_add(1);
                kept.telling = Telling::Asked { tries };
                effects.push(Effect::Store(Arc::clone(&kept.event)));
            }
        }
    }

    /// The broker is there again: what it could not be told is told now.
    pub(super) fn hasten_kept(&mut self, now: Timestamp) {
        for kept in &mut self.kept {
            if let Telling::Due { at, .. } = &mut kept.telling {
                *at = (*at).min(now);
            }
        }
    }

    pub(super) fn kept_stored(
        &mut self,
        now: Timestamp,
        store: StoreHandle,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.event.store == store) {
            let until = now.after(ANSWERS_FOR);
            kept.telling = Telling::Told { until };
            effects.push(Effect::Discard(Arc::clone(&kept.event)));
        }
    }

    pub(super) fn kept_not_stored(&mut self, now: Timestamp, store: StoreHandle) {
        let jitter = &mut self.jitter;
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.event.store == store)
            && let Telling::Asked { tries } = kept.telling
        {
            let at = store_again_at(now, tries, jitter);
            kept.telling = Telling::Due { tries, at };
        }
    }

    /// The attempt and the stage of a task that comes again for a result of an earlier life.
    ///
    /// Results of other runs of the same job and image are dropped: whoever released this one has done with them.
    pub(super) fn answer_from_kept(
        &mut self,
        id: &PullId,
        effects: &mut Vec<Effect>,
    ) -> Option<(u32, Stage)> {
        let mut found = None;
        for kept in std::mem::take(&mut self.kept) {
            if kept.id == *id {
                found = Some(kept);
            } else if kept.id.job == id.job && kept.id.image == id.image {
                effects.push(Effect::Discard(kept.event));
            } else {
                self.kept.push(kept);
            }
        }
        let Kept { event, telling, .. } = found?;
        let (tries, on_disk) = match telling {
            Telling::Asked { tries } => (tries, OnDisk::Yes),
            Telling::Due { tries, .. } => {
                effects.push(Effect::Store(Arc::clone(&event)));
                (tries.saturating_add(1), OnDisk::Yes)
            }
            Telling::Told { .. } => {
                effects.push(Effect::Store(Arc::clone(&event)));
                (1, OnDisk::No)
            }
        };
        let stage = Stage::Storing {
            tries,
            again_at: None,
            then: Answer::Ack,
            on_disk,
            event: Arc::clone(&event),
        };
        Some((event.event.attempt, stage))
    }
}
