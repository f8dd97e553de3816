//! Who may release a pull now, and who waits for what.
//!
//! A pull needs a slot of its job (parallelism), its node (capacity and lookahead), its registry's
//! host and its zone (limits of the dispatcher). One that is not released waits at exactly one of
//! them, the first that was full. When a slot comes free, whoever waits *there* longest in turn is
//! tried again. So an event costs what it frees, not what there is: nothing scans all jobs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::fleet::NodeId;

/// Names a job inside this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct JobId(pub(super) u32);

/// Names a pull inside this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PullIndex {
    pub(super) job: JobId,
    pub(super) node: NodeId,
    /// Index into the job's images.
    pub(super) image: u8,
}

/// Something of which there is a limited amount.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Resource {
    Job(JobId),
    Node(NodeId),
    Host(u32),
    Zone(u32),
}

/// A waiting pull's place in line: higher priority first, then the least served job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Turn {
    pub(super) priority: Reverse<i32>,
    /// Virtual start time, as in start-time fair queueing: the n-th pull of every job that waits.
    pub(super) ordinal: u64,
    pub(super) pull: PullIndex,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    limit: u32,
    used: u32,
    waiting: BTreeSet<Turn>,
}

/// All resources. One that was never given a limit has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    resources: BTreeMap<Resource, Slot>,
}

impl Slots {
    pub(super) fn set_limit(&mut self, resource: Resource, limit: u32) {
        self.resources.entry(resource).or_default().limit = limit;
    }

    /// Forgets a resource that nobody uses or waits for.
    pub(super) fn remove(&mut self, resource: Resource) {
        self.resources.remove(&resource);
    }

    /// The first of these that has nothing left.
    pub(super) fn first_full(&self, needs: &[Resource]) -> Option<Resource> {
        let full = |resource: &&Resource| {
            self.resources
                .get(resource)
                .is_some_and(|slot| slot.used >= slot.limit)
        };
        needs.iter().find(full).copied()
    }

    pub(super) fn take(&mut self, needs: &[Resource]) {
        for resource in needs {
            if let Some(slot) = self.resources.get_mut(resource) {
                slot.used += 1;
            }
        }
    }

    pub(super) fn give_back(&mut self, needs: &[Resource]) {
        for resource in needs {
            if let Some(slot) = self.resources.get_mut(resource) {
                debug_assert!(slot.used > 0, "a slot of {resource:?} was given back twice");
                slot.used = slot.used.saturating_sub(1);
            }
        }
    }

    pub(super) fn wait(&mut self, resource: Resource, turn: Turn) {
        self.resources
            .entry(resource)
            .or_default()
            .waiting
            .insert(turn);
    }

    pub(super) fn leave(&mut self, resource: Resource, turn: &Turn) {
        if let Some(slot) = self.resources.get_mut(&resource) {
            slot.waiting.remove(turn);
        }
    }

    /// The next in line, if the resource has a slot for it.
    pub(super) fn next(&mut self, resource: Resource) -> Option<Turn> {
        let slot = self.resources.get_mut(&resource)?;
        if slot.used < slot.limit {
            slot.waiting.pop_first()
        } else {
            None
        }
    }
}
