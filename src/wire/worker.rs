//! What a worker and the dispatcher say to each other without keeping it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::task::Run;
use crate::domain::failure::FailureKind;
use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};
use crate::domain::node::NodeFacts;
use crate::domain::pin::Pin;
use crate::domain::progress::{Pace, PullProgress};

/// Seconds between two heartbeats.
pub const HEARTBEAT_SECONDS: u64 = 5;
/// Seconds without a heartbeat after which a node counts as gone.
pub const GONE_AFTER_SECONDS: u64 = 15;
/// Seconds without an ack after which the broker delivers a task again.
pub const ACK_WAIT_SECONDS: u64 = 30;

/// "Here I am": the request on `prewarm.worker.<node>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Names this worker process: a restart has another.
    pub instance: String,
    /// What the worker knows of its node.
    #[serde(flatten)]
    pub facts: NodeFacts,
    /// Whether the worker found its consumer gone, so that it has to be made anew.
    #[serde(default)]
    pub consumer_lost: bool,
}

/// The answer: where the node's tasks are asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationReply {
    /// The stream that holds the tasks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stream: String,
    /// The node's consumer on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consumer: String,
    /// Why the worker was not registered; empty when it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// One pull by its run.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullId {
    /// The job.
    pub job: JobName,
    /// Which run of it.
    #[serde(flatten)]
    pub run: Run,
    /// The image's token.
    pub image: String,
}

/// "I live": published on `prewarm.heartbeat.<node>` every [`HEARTBEAT_SECONDS`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Names the worker process.
    pub instance: String,
    /// The pulls in its hands: what the dispatcher no longer wants, it revokes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holding: Vec<PullId>,
    /// Some of the node's pins, in turn, so that each is named again and again: what no job wants any more, the
    /// dispatcher takes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
}

/// "Stop these, unpin those": published on `prewarm.revoke.<node>`. One that is lost is said again after the next
/// heartbeat that still names the pull or the pin.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// The pulls to stop at the next safe point, and to say nothing more of.
    #[serde(default)]
    pub pulls: Vec<PullId>,
    /// The pins to take back: those of these generations and of earlier ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpin: Vec<Pin>,
}

/// How far one pull is: published on `prewarm.progress.<job>.<node>.<image>`, at most twice a second.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressMessage {
    /// The job.
    pub job: JobName,
    /// Which run of it.
    #[serde(flatten)]
    pub run: Run,
    /// The node.
    pub node: NodeName,
    /// The image as the job names it.
    pub image: ImageRef,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Phase and bytes.
    #[serde(flatten)]
    pub progress: PullProgress,
    /// How fast it goes, and how long it may take.
    #[serde(flatten)]
    pub pace: Pace,
    /// Why the last attempt failed, while waiting for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_after: Option<FailureKind>,
}
