//! How pulls ended, in little room: what a dispatcher keeps, before it leads, of the events that say how far the jobs are.
//!
//! Ten thousand nodes with thirty standing jobs have three hundred thousand ends. Kept of each is only what the state reads
//! (`Dispatcher::task_event`), and what many have in common is kept once.

use std::collections::{HashMap, VecDeque};

use crate::domain::name::NodeName;
use crate::wire::event::TaskEvent;

/// Kinds that may be kept beyond those in use, before the unused ones are dropped.
const UNUSED_KINDS: usize = 1_024;

/// An event of which only these differ from others of its kind.
#[derive(Clone, Copy)]
struct End {
    sequence: u64,
    bytes_registry: u64,
    bytes_elsewhere: u64,
    node: u32,
    kind: u32,
}

/// Terminal events in the order of the stream.
#[derive(Default)]
pub(super) struct Ends {
    all: VecDeque<End>,
    nodes: Vec<NodeName>,
    node_index: HashMap<NodeName, u32>,
    kinds: Vec<TaskEvent>,
    /// By their text.
    kind_index: HashMap<String, u32>,
    /// Kinds after the unused ones were dropped last.
    kinds_then: usize,
}

impl Ends {
    /// Keeps an event, if it is the end of a pull.
    pub(super) fn add(&mut self, mut event: TaskEvent, sequence: u64) {
        if !event.state.is_terminal() {
            return;
        }
        let node = number(&mut self.nodes, &mut self.node_index, &event.node);
        // Whose it is, is kept beside it.
        event.node.clone_from(&self.nodes[0]);
        event.labels.clear();
        event.annotations.clear();
        let (mut bytes_registry, mut bytes_elsewhere) = (0, 0);
        if let Some(result) = &mut event.result {
            bytes_registry = std::mem::take(&mut result.bytes_registry);
            bytes_elsewhere = std::mem::take(&mut result.bytes_elsewhere);
            result.bytes_present = 0;
            (
                result.resolve_millis,
                result.download_millis,
                result.unpack_millis,
            ) = (0, 0, 0);
        }
        let text = format!("{event:?}");
        let next = self.kinds.len();
        let kind = *self.kind_index.entry(text).or_insert_with(|| {
            self.kinds.push(event);
            index(next)
        });
        self.all.push_back(End {
            sequence,
            bytes_registry,
            bytes_elsewhere,
            node,
            kind,
        });
    }

    /// Forgets what came up to this place in the stream.
    pub(super) fn forget_to(&mut self, sequence: u64) {
        let old = self.all.partition_point(|end| end.sequence <= sequence);
        self.all.drain(..old);
        if self.kinds.len() > self.kinds_then * 2 + UNUSED_KINDS {
            let mut used = Self::default();
            for (event, sequence) in std::mem::take(self).into_events() {
                used.add(event, sequence);
            }
            used.kinds_then = used.kinds.len();
            *self = used;
        }
    }

    /// The events, as far as the state reads them, each with its place in the stream.
    pub(super) fn into_events(self) -> impl Iterator<Item = (TaskEvent, u64)> {
        let Self {
            all, nodes, kinds, ..
        } = self;
        all.into_iter().map(move |end| {
            let mut event = kinds[end.kind as usize].clone();
            event.node.clone_from(&nodes[end.node as usize]);
            if let Some(result) = &mut event.result {
                result.bytes_registry = end.bytes_registry;
                result.bytes_elsewhere = end.bytes_elsewhere;
            }
            (event, end.sequence)
        })
    }
}

fn number(
    names: &mut Vec<NodeName>,
    index_of: &mut HashMap<NodeName, u32>,
    name: &NodeName,
) -> u32 {
    if let Some(known) = index_of.get(name) {
        return *known;
    }
    let new = index(names.len());
    names.push(name.clone());
    index_of.insert(name.clone(), new);
    new
}

/// There are never as many as a `u32` counts: the stream of events would have to hold them.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::FailureKind;
    use crate::domain::image::Digest;
    use crate::wire::event::{FailureReport, PullResult, PullState};
    use crate::wire::task::Run;

    fn event(node: u64, round: u32, state: PullState) -> TaskEvent {
        let succeeded = state == PullState::Succeeded;
        TaskEvent {
            job: "base".parse().unwrap(),
            run: Run {
                uid: "u".to_owned(),
                generation: 1,
                round,
            },
            node: format!("node-{node}").parse().unwrap(),
            image: "nginx".parse().unwrap(),
            state,
            attempt: 1,
            failure: (!succeeded).then(|| FailureReport {
                kind: FailureKind::Timeout,
                message: format!("node-{node} waited"),
            }),
            next_attempt_at: None,
            result: succeeded.then(|| PullResult {
                digest: Digest::of(b"nginx"),
                already_present: false,
                bytes_registry: node,
                bytes_elsewhere: node * 2,
                bytes_present: 0,
                resolve_millis: 0,
                download_millis: 0,
                unpack_millis: 0,
                engine: "native".to_owned(),
                engine_reason: String::new(),
            }),
            labels: [].into(),
            annotations: [].into(),
        }
    }

    #[test]
    fn ends_come_back_as_they_were_told_and_what_they_share_is_kept_once() {
        let mut ends = Ends::default();
        let mut told = Vec::new();
        for sequence in 1..=1_000 {
            ends.add(event(sequence, 1, PullState::Started), sequence * 2 - 1);
            let state = if sequence == 7 {
                PullState::Failed
            } else {
                PullState::Succeeded
            };
            told.push((event(sequence, 1, state), sequence * 2));
            let mut slow = event(sequence, 1, state);
            if let Some(result) = &mut slow.result {
                result.download_millis = sequence;
            }
            ends.add(slow, sequence * 2);
        }
        assert_eq!(ends.kinds.len(), 2);
        assert_eq!(ends.into_events().collect::<Vec<_>>(), told);
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let mut ends = Ends::default();
        for round in 1..=10_000_u32 {
            ends.add(event(1, round, PullState::Succeeded), u64::from(round));
            ends.forget_to(u64::from(round) - 1);
        }
        assert!(ends.kinds.len() <= 2 * UNUSED_KINDS, "{}", ends.kinds.len());
        let left = [(event(1, 10_000, PullState::Succeeded), 10_000)];
        assert_eq!(ends.into_events().collect::<Vec<_>>(), left);
    }
}
