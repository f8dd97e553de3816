//! Who may release a pull now, and who waits for what.
//!
//! A pull needs a slot of its job (parallelism), its node (capacity and lookahead), its registry's
//! host and its zone (limits of the dispatcher). One that is not released waits at exactly one of
//! them, the first that was full. When a slot comes free, whoever waits *there* longest in turn is
//! tried again. So an event costs what it frees, not what there is: nothing scans all jobs.
//!
//! Jobs of one priority take turns, at every resource by itself: how much of a job waits elsewhere, or
//! what it got there, is no reason to serve it later or sooner here.

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
    pub(super) place: Place,
    pub(super) pull: PullIndex,
}

/// The round in which a pull is served at a resource: every job has one pull in each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Place(u64);

/// What a job has waiting at a resource that it shares with others.
#[derive(Clone, Copy, Debug)]
struct Line {
    last: Place,
    waiting: u32,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    limit: u32,
    used: u32,
    waiting: BTreeSet<Turn>,
    /// Of the jobs that wait, unless this is a job's own resource.
    lines: BTreeMap<JobId, Line>,
}

impl Slot {
    /// The round after the job's last one, and never the one that is being served: a job that comes
    /// back after each of its pulls would else be served before everybody who waits.
    fn place(&mut self, priority: Reverse<i32>, job: JobId) -> Place {
        let first = PullIndex {
            job: JobId(0),
            node: NodeId(0),
            image: 0,
        };
        let from = Turn {
            priority,
            place: Place::default(),
            pull: first,
        };
        let served = self
            .waiting
            .range(from..)
            .next()
            .filter(|turn| turn.priority == priority)
            .map_or(Place::default(), |turn| turn.place);
        let line = self.lines.entry(job).or_insert(Line {
            last: served,
            waiting: 0,
        });
        line.last = Place(line.last.max(served).0 + 1);
        line.waiting += 1;
        line.last
    }

    fn left(&mut self, job: JobId) {
        if let Some(line) = self.lines.get_mut(&job) {
            line.waiting -= 1;
            if line.waiting == 0 {
                self.lines.remove(&job);
            }
        }
    }
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

    /// Lets a pull wait; its place says where it is in line, for [`Slots::leave`]. At a job's own
    /// resource the pulls are in the order of nodes and images.
    pub(super) fn wait(&mut self, resource: Resource, priority: i32, pull: PullIndex) -> Place {
        let slot = self.resources.entry(resource).or_default();
        let priority = Reverse(priority);
        let place = match resource {
            Resource::Job(_) => Place::default(),
            Resource::Node(_) | Resource::Host(_) | Resource::Zone(_) => {
                slot.place(priority, pull.job)
            }
        };
        slot.waiting.insert(Turn {
            priority,
            place,
            pull,
        });
        place
    }

    pub(super) fn leave(&mut self, resource: Resource, turn: &Turn) {
        if let Some(slot) = self.resources.get_mut(&resource)
            && slot.waiting.remove(turn)
        {
            slot.left(turn.pull.job);
        }
    }

    /// The priority of the next in line, if the resource has a slot for it.
    pub(super) fn next_priority(&self, resource: Resource) -> Option<i32> {
        let slot = self.resources.get(&resource)?;
        let next = slot.waiting.first()?;
        (slot.used < slot.limit).then_some(next.priority.0)
    }

    /// The next in line, if the resource has a slot for it.
    pub(super) fn next(&mut self, resource: Resource) -> Option<PullIndex> {
        let slot = self.resources.get_mut(&resource)?;
        if slot.used >= slot.limit {
            return None;
        }
        let pull = slot.waiting.pop_first()?.pull;
        slot.left(pull.job);
        Some(pull)
    }
}
