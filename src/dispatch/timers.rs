//! Points in time at which something has to be looked at again.

use std::collections::BTreeSet;

use super::fleet::NodeId;
use super::slots::JobId;
use crate::domain::time::Timestamp;

/// What to look at. A timer that fires asks whether its reason still holds, so a stale one is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// Is the node still heard of?
    NodeGone(NodeId),
    /// Has the node been gone for so long that it is forgotten?
    NodeForgotten(NodeId),
    /// Has the job's deadline passed?
    Deadline(JobId),
    /// Have the nodes a job waits for been gone long enough?
    Absent(JobId),
    /// Is the next round due?
    NextRound(JobId),
    /// Has the finished job's time to live passed?
    Expired(JobId),
    /// Are there records to write?
    Flush,
}

/// The timers in the order in which they fire.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Timestamp, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(super) fn next(&self) -> Option<(Timestamp, Timer)> {
        self.due.first().copied()
    }

    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        let (at, timer) = self.next()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        Some(timer)
    }
}
