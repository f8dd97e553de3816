//! Being known to the dispatcher, and having a consumer.

use std::time::Duration;

use super::effect::{ConsumerName, Effect};
use super::retry::{Jitter, doubled};
use crate::domain::time::Timestamp;

/// How often a worker announces itself although nothing changed, give or take a tenth: a dispatcher
/// that lost its record of the node has it again, and the figures of the disk stay fresh.
pub const REGISTER_EVERY: Duration = Duration::from_secs(300);
/// Longest delay between two tries to register. A worker whose consumer's server died has to be at work again soon after
/// those that are left have chosen new leaders, which takes them up to ten seconds.
pub const MAX_REGISTER_DELAY: Duration = Duration::from_secs(2);
/// First delay after a try that failed, or a consumer that was lost soon after it was made.
const FIRST_REGISTER_DELAY: Duration = Duration::from_millis(250);
/// A consumer that lived this long was no failure: when it is lost, a new one is asked for at once.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// Workers that have a reason to register together, such as a lost connection, do so within this
/// time, not at one instant.
const SPREAD: Duration = Duration::from_millis(500);
/// The same when each of them needs its consumer made anew, which costs the broker more: of ten thousand that lose one
/// connection or server, two thousand a second ask for it. Until then they work with the consumer that they have.
pub const RENEW_SPREAD: Duration = Duration::from_secs(5);

/// Where the worker stands with the dispatcher.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Registration {
    consumer: Option<ConsumerName>,
    /// The consumer was found gone, or holds requests of ours that nobody listens to any more, and nobody who can make a new
    /// one has heard of it.
    lost: bool,
    /// A request is open, and said this of `lost`.
    asked: Option<bool>,
    /// What the node is changed after the open request was made, which may have said the old.
    outdated: bool,
    /// Tries since the last answer.
    refusals: u32,
    /// Consumers lost soon after they were made, since one that was not.
    losses: u32,
    since: Timestamp,
    due: Timestamp,
}

impl Registration {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self {
            consumer: None,
            lost: false,
            asked: None,
            outdated: false,
            refusals: 0,
            losses: 0,
            since: now,
            due: now,
        }
    }

    /// The consumer to ask for tasks, if there is one that is not known to be gone.
    pub(super) const fn consumer(&self) -> Option<&ConsumerName> {
        self.consumer.as_ref()
    }

    /// When to register next, unless a request is open.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.asked.is_none().then_some(self.due)
    }

    /// Registers if it is time.
    pub(super) fn pass_time(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.asked.is_none() && self.due <= now {
            self.asked = Some(self.lost);
            self.outdated = false;
            effects.push(Effect::Register {
                consumer_lost: self.lost,
            });
        }
    }

    /// Whether the answer counts: one to a question from before the consumer was lost does not.
    pub(super) fn registered(
        &mut self,
        now: Timestamp,
        consumer: ConsumerName,
        jitter: &mut Jitter,
    ) -> bool {
        let Some(said_lost) = self.asked.take() else {
            return false;
        };
        self.refusals = 0;
        if self.lost && !said_lost {
            self.due = now;
            return false;
        }
        self.lost = false;
        self.consumer = Some(consumer);
        self.since = now;
        self.due = if self.outdated {
            now
        } else {
            now.after(jitter.around(REGISTER_EVERY))
        };
        true
    }

    pub(super) fn refused(&mut self, now: Timestamp, jitter: &mut Jitter) {
        if self.asked.take().is_some() {
            self.refusals = self.refusals.saturating_add(1);
            let delay = doubled(FIRST_REGISTER_DELAY, self.refusals, MAX_REGISTER_DELAY);
            self.due = now.after(jitter.around(delay));
        }
    }

    pub(super) fn consumer_lost(&mut self, now: Timestamp, jitter: &mut Jitter) {
        if self.consumer.take().is_none() {
            return;
        }
        self.lost = true;
        if now.since(self.since) >= STEADY_AFTER {
            self.losses = 0;
        }
        let delay = match self.losses {
            0 => Duration::ZERO,
            losses => doubled(FIRST_REGISTER_DELAY, losses, MAX_REGISTER_DELAY),
        };
        self.losses = self.losses.saturating_add(1);
        self.due = now.after(jitter.around(delay));
    }

    /// The connection is another one; if it left requests behind, the consumer is to be made anew.
    pub(super) fn reconnected(&mut self, now: Timestamp, left_requests: bool, jitter: &mut Jitter) {
        let renews = left_requests && self.consumer.is_some();
        self.lost |= renews;
        let spread = if renews { RENEW_SPREAD } else { SPREAD };
        self.due = self.due.min(now.after(jitter.up_to(spread)));
    }

    /// Whether the open request is for a consumer in the place of one that is still used.
    pub(super) fn renews(&self) -> bool {
        self.asked == Some(true) && self.consumer.is_some()
    }

    /// What was said last is no longer so.
    pub(super) fn standing_changed(&mut self, now: Timestamp, jitter: &mut Jitter) {
        self.outdated = self.asked.is_some();
        self.due = self.due.min(now.after(jitter.up_to(SPREAD)));
    }
}
