//! The nodes of the cell and whether they are there.

use std::collections::{BTreeMap, BTreeSet};

use super::slots::{JobId, PullIndex};
use crate::domain::name::NodeName;
use crate::domain::node::{NodeFacts, ZONE_LABEL};
use crate::domain::time::Timestamp;
use crate::wire::record::{NodePresence, NodeRecord};

/// Names a node inside this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NodeId(pub(super) u32);

/// Why nothing is released to a node, whatever slots are free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Away {
    /// It is not there.
    Absent,
    /// Whoever runs it wants it left alone for now.
    Held,
}

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: NodeName,
    pub(super) facts: NodeFacts,
    pub(super) instance: String,
    pub(super) presence: NodePresence,
    pub(super) since: Timestamp,
    pub(super) last_heard: Timestamp,
    /// Its released and unfinished pulls; at most capacity and lookahead.
    pub(super) active: BTreeSet<(JobId, u8)>,
}

impl Node {
    pub(super) fn is_absent(&self) -> bool {
        self.presence == NodePresence::Absent
    }

    pub(super) fn away(&self) -> Option<Away> {
        if self.is_absent() {
            Some(Away::Absent)
        } else {
            self.facts.waiting.as_ref().map(|_| Away::Held)
        }
    }

    pub(super) fn zone(&self) -> Option<&str> {
        self.facts.labels.get(ZONE_LABEL).map(String::as_str)
    }

    pub(super) fn record(&self) -> NodeRecord {
        NodeRecord {
            name: self.name.clone(),
            facts: self.facts.clone(),
            instance: self.instance.clone(),
            presence: self.presence,
            since: self.since,
        }
    }

    pub(super) fn active_pulls(&self, node: NodeId) -> impl Iterator<Item = PullIndex> + use<> {
        let active: Vec<(JobId, u8)> = self.active.iter().copied().collect();
        active
            .into_iter()
            .map(move |(job, image)| PullIndex { job, node, image })
    }
}

/// Every node ever heard of and not forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    by_name: BTreeMap<NodeName, NodeId>,
    nodes: BTreeMap<NodeId, Node>,
    next: u32,
}

impl Fleet {
    pub(super) fn id(&self, name: &NodeName) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn insert(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        self.by_name.insert(node.name.clone(), id);
        self.nodes.insert(id, node);
        id
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        self.by_name.remove(&node.name);
        Some(node)
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// How many nodes are there, and how many are known and absent.
    pub(super) fn presence(&self) -> (u32, u32) {
        let absent = self.nodes.values().filter(|node| node.is_absent()).count();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (number(self.nodes.len() - absent), number(absent))
    }

    pub(super) fn away(&self, id: NodeId) -> Option<Away> {
        self.nodes.get(&id).map_or(Some(Away::Absent), Node::away)
    }

    pub(super) fn is_absent(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_none_or(Node::is_absent)
    }
}
