//! How far a job is: phases, counts that add up, outcomes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many pulls (node and image pairs) of a job's current round are in each state.
///
/// `pending + active + succeeded + failed + cancelled == desired`, at every moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Nodes times images.
    pub desired: u32,
    /// Not released to a node.
    pub pending: u32,
    /// Released and unfinished, backing off included.
    pub active: u32,
    /// On the node.
    pub succeeded: u32,
    /// Given up.
    pub failed: u32,
    /// Ended by a cancellation.
    pub cancelled: u32,
}

impl Counts {
    /// Whether the states add up to what is desired.
    #[must_use]
    pub fn add_up(&self) -> bool {
        self.pending + self.active + self.succeeded + self.failed + self.cancelled == self.desired
    }

    /// Pulls that have ended, one way or another.
    #[must_use]
    pub fn finished(&self) -> u32 {
        self.succeeded + self.failed + self.cancelled
    }
}

/// The same, by node: a node has succeeded when all images are there, failed when one is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that match the selector.
    pub desired: u32,
    /// Nodes with every image.
    pub succeeded: u32,
    /// Nodes where at least one image was given up.
    pub failed: u32,
}

/// Where a job is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum JobPhase {
    /// Accepted; tags are being resolved to digests.
    Resolving,
    /// Pulls are released, or would be if there were nodes and slots.
    Running,
    /// `Never` only: every node is warm, and the next round is not due.
    Idle,
    /// Nothing is released until it is resumed.
    Paused,
    /// Every pull ended, or the deadline passed, or too many failed.
    Completed,
    /// A user ended it.
    Cancelled,
}

impl JobPhase {
    /// Every phase.
    pub const ALL: [Self; 6] = [
        Self::Resolving,
        Self::Running,
        Self::Idle,
        Self::Paused,
        Self::Completed,
        Self::Cancelled,
    ];

    /// Its name in messages and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolving => "Resolving",
            Self::Running => "Running",
            Self::Idle => "Idle",
            Self::Paused => "Paused",
            Self::Completed => "Completed",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether the job has ended and holds nothing.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled)
    }
}

/// How a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// Every pull succeeded, or there was nothing to do.
    Succeeded,
    /// Some pulls succeeded and some failed.
    PartiallyFailed,
    /// No pull succeeded, or more nodes failed than the failure policy allows.
    Failed,
    /// The deadline passed first.
    DeadlineExceeded,
    /// A user ended it.
    Cancelled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [
        Self::Succeeded,
        Self::PartiallyFailed,
        Self::Failed,
        Self::DeadlineExceeded,
        Self::Cancelled,
    ];

    /// Its name in messages and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::PartiallyFailed => "PartiallyFailed",
            Self::Failed => "Failed",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Cancelled => "Cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_name_is_the_name_in_metrics() {
        for phase in JobPhase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }
}
