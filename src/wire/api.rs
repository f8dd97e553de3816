//! What the request/reply service `prewarm` is asked and answers. A request that fails is answered
//! with the NATS service error headers (ADR-32): 400 bad input, 404 not found, 503 not answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{JobRecord, NodeRecord};
use crate::domain::failure::FailureKind;
use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};

/// Entries of one page when the request does not say.
pub const DEFAULT_PAGE: u32 = 50;
/// Most entries of one page.
pub const MAX_PAGE: u32 = 500;
/// Most failed pulls one description lists.
pub const MAX_DESCRIBED_FAILURES: usize = 1_000;

/// The answer to `submit`, `cancel`, `delete`, `pause` and `resume`: the request is kept, and the
/// event that carries this sequence tells what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// The job.
    pub job: JobName,
    /// `requestSequence` of the event that answers it.
    pub request_sequence: u64,
}

/// Names one thing: the request of `get` and `describe`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The job's name.
    pub name: JobName,
}

/// A page of a list: the request of `list` and `nodes`. An empty body is the first page.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    /// Only what comes after this name, in the order of names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most this many, 1 to 500; 50 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 500))]
    pub limit: Option<u32>,
}

/// A page of jobs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Jobs {
    /// The records, in the order of names.
    pub jobs: Vec<JobRecord>,
    /// What to say as `after` for the next page; absent after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A page of nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Nodes {
    /// The records, in the order of names.
    pub nodes: Vec<NodeRecord>,
    /// What to say as `after` for the next page; absent after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One failed pull.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailedPull {
    /// The node.
    pub node: NodeName,
    /// The image.
    pub image: ImageRef,
    /// Why it failed.
    pub kind: FailureKind,
    /// What the worker said.
    pub message: String,
    /// Attempts that were made.
    pub attempts: u32,
}

/// A job with every failed pull of its current run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// The record.
    pub job: JobRecord,
    /// The failed pulls, at most [`MAX_DESCRIBED_FAILURES`]; the record has their number by reason.
    pub failed_pulls: Vec<FailedPull>,
}
