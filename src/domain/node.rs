//! What is known of a node.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::Platform;

/// The label that names a node's zone (Kubernetes, "Well-Known Labels").
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Pulls at once on a node that does not say.
pub const DEFAULT_CAPACITY: u32 = 3;
/// Most pulls at once a node may announce.
pub const MAX_CAPACITY: u32 = 64;

/// What a worker says of its node when it registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// Kubernetes-style labels, for selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The platform its runtime runs containers for.
    pub platform: Platform,
    /// The runtime and its version, such as `containerd 1.7.24`.
    pub runtime: String,
    /// Pulls at once, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub capacity: u32,
    /// Bytes of the file system that holds images.
    pub disk_total_bytes: u64,
    /// Bytes of it that were free at registration.
    pub disk_free_bytes: u64,
    /// The worker's version.
    pub version: String,
    /// Why nothing new is released to the node for now, such as `cordoned in Kubernetes`; absent: it
    /// takes new pulls. What was released to it before goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// What may change about a node while its worker runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStanding {
    /// As [`NodeFacts::labels`].
    pub labels: BTreeMap<String, String>,
    /// As [`NodeFacts::waiting`].
    pub waiting: Option<String>,
}

impl NodeStanding {
    /// A node with these labels that takes pulls.
    #[must_use]
    pub const fn labelled(labels: BTreeMap<String, String>) -> Self {
        Self {
            labels,
            waiting: None,
        }
    }
}
