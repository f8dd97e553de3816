//! Pulls that are released and of which nobody has said anything yet.
//!
//! After it has delivered a message, the broker looks for the consumer's next one among all that were stored since
//! (`msgBlock.firstMatching` in `server/filestore.go` of nats-server 2.15: a walk, message by message, because the filter
//! has a wildcard). With ten thousand released at once and ten thousand consumers, that is nearly all it does. So no more
//! are released than it delivers meanwhile: a limit, whose slots come free when a worker tells that it began, or after
//! a while, since a worker may be slow or hang.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::input::Effect;
use super::slots::{PullIndex, Resource};
use super::state::Dispatcher;
use super::timers::Timer;
use crate::domain::time::Timestamp;

/// Most such pulls at once, unless the settings say.
pub(super) const MAX_UNDELIVERED: u32 = 1_000;
/// How long one counts.
pub(super) const COUNTS_FOR: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub(super) struct Undelivered {
    since: BTreeMap<PullIndex, Timestamp>,
    /// The same by time; those that were heard of meanwhile are still here.
    order: VecDeque<(Timestamp, PullIndex)>,
}

impl Undelivered {
    /// A pull is released.
    pub(super) fn add(&mut self, now: Timestamp, pull: PullIndex) {
        self.since.insert(pull, now);
        self.order.push_back((now, pull));
    }

    /// Something is known of a pull, or it is taken back; says whether it counted until now.
    pub(super) fn remove(&mut self, pull: PullIndex) -> bool {
        self.since.remove(&pull).is_some()
    }

    /// Forgets those that have counted for long enough; says how many did until now.
    pub(super) fn expire(&mut self, now: Timestamp) -> usize {
        let mut expired = 0;
        while let Some((at, pull)) = self.order.front().copied() {
            let counts = self.since.get(&pull) == Some(&at);
            if counts && at.after(COUNTS_FOR) > now {
                break;
            }
            self.order.pop_front();
            if counts {
                self.since.remove(&pull);
                expired += 1;
            }
        }
        expired
    }

    /// How many count.
    pub(super) fn len(&self) -> usize {
        self.since.len()
    }

    /// When the oldest that counts does so no more.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.order.front().map(|(at, _)| at.after(COUNTS_FOR))
    }
}

impl Dispatcher {
    /// A pull is released; its slot is taken by the caller.
    pub(super) fn await_delivery(&mut self, now: Timestamp, pull: PullIndex) {
        self.undelivered.add(now, pull);
        let due = self.undelivered.next();
        self.timers.set(due.unwrap_or(now), Timer::Undelivered);
    }

    /// A pull is known to have reached its worker, or is not out any more; says what comes free by that.
    pub(super) fn delivered(&mut self, pull: PullIndex) -> Option<Resource> {
        let counted = self.undelivered.remove(pull);
        counted.then(|| {
            self.slots.give_back(&[Resource::Undelivered]);
            Resource::Undelivered
        })
    }

    pub(super) fn check_undelivered(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for _ in 0..self.undelivered.expire(now) {
            self.slots.give_back(&[Resource::Undelivered]);
        }
        self.refill(now, &[Resource::Undelivered], effects);
        if let Some(due) = self.undelivered.next() {
            self.timers.set(due, Timer::Undelivered);
        }
    }
}
