//! What the events of one run say, in bounded memory: failures, retries, times.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::domain::failure::FailureKind;
use crate::domain::image::ImageRef;
use crate::domain::name::NodeName;
use crate::domain::time::Timestamp;
use crate::wire::event::{PullState, TaskEvent};

/// Most failed pulls kept one by one; beyond, they are counted.
const MAX_FAILURES: usize = 10_000;
/// Most ended pulls of which a repeat is known: 10,000 nodes with a hundred images.
const MAX_ENDED: usize = 1_000_000;
/// Most pulls kept that wait for another attempt.
const MAX_RETRYING: usize = 10_000;

/// A pull that waits for its next attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Retrying {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    /// The attempt that failed.
    pub(super) attempt: u32,
    pub(super) next: Option<Timestamp>,
}

/// How long a node took, and for how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Effort {
    pub(super) took: Duration,
    pub(super) bytes: u64,
}

/// Folded from the events of a run, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct RunFacts {
    /// Failed pulls by kind and words: the nodes, one for each pull.
    pub(super) failures: BTreeMap<(FailureKind, String), Vec<NodeName>>,
    /// Failed pulls that found no place above.
    pub(super) failures_beyond: usize,
    /// Attempts that failed and were not the last.
    pub(super) retries: BTreeMap<FailureKind, u32>,
    /// Pulls that wait for their next attempt.
    pub(super) retrying: BTreeMap<(NodeName, ImageRef), Retrying>,
    /// What every node that pulled something took.
    pub(super) efforts: BTreeMap<NodeName, Effort>,
    /// Pulls that have ended: the first end is the truth, as it is for the dispatcher.
    ended: HashSet<(NodeName, ImageRef)>,
    listed: usize,
}

impl RunFacts {
    /// Adds an event.
    pub(super) fn add(&mut self, event: &TaskEvent) {
        let key = (event.node.clone(), event.image.clone());
        if self.ended.contains(&key) {
            return;
        }
        if event.state != PullState::Retrying {
            self.retrying.remove(&key);
        }
        if event.state.is_terminal() && self.ended.len() < MAX_ENDED {
            self.ended.insert(key.clone());
        }
        match event.state {
            PullState::Started => {}
            PullState::Succeeded => self.add_effort(event),
            PullState::Failed => self.add_failure(event),
            PullState::Retrying => {
                let Some(failure) = &event.failure else {
                    return;
                };
                *self.retries.entry(failure.kind).or_default() += 1;
                if self.retrying.len() < MAX_RETRYING {
                    let retrying = Retrying {
                        kind: failure.kind,
                        message: failure.message.clone(),
                        attempt: event.attempt,
                        next: event.next_attempt_at,
                    };
                    self.retrying.insert(key, retrying);
                }
            }
        }
    }

    fn add_effort(&mut self, event: &TaskEvent) {
        let Some(result) = &event.result else { return };
        let millis = result.resolve_millis + result.download_millis + result.unpack_millis;
        let effort = self.efforts.entry(event.node.clone()).or_default();
        effort.took += Duration::from_millis(millis);
        effort.bytes += result.bytes_registry + result.bytes_elsewhere;
    }

    fn add_failure(&mut self, event: &TaskEvent) {
        let Some(failure) = &event.failure else {
            return;
        };
        if self.listed == MAX_FAILURES {
            self.failures_beyond += 1;
            return;
        }
        self.listed += 1;
        let nodes = self
            .failures
            .entry((failure.kind, failure.message.clone()))
            .or_default();
        nodes.push(event.node.clone());
    }

    /// The `most` nodes that took longest, longest first.
    pub(super) fn slowest(&self, most: usize) -> Vec<(&NodeName, Effort)> {
        let mut all: Vec<(&NodeName, Effort)> = self
            .efforts
            .iter()
            .map(|(node, effort)| (node, *effort))
            .collect();
        all.sort_by(|(a_node, a), (b_node, b)| b.took.cmp(&a.took).then(a_node.cmp(b_node)));
        all.truncate(most);
        all
    }
}
