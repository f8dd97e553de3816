//! How far one pull is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a pull is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum PullPhase {
    /// Looking for the image on the node and asking the registry for manifests.
    #[default]
    Resolving,
    /// Fetching blobs.
    Downloading,
    /// Unpacking layers.
    Unpacking,
}

/// How far a pull is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// What it is busy with.
    pub phase: PullPhase,
    /// Compressed bytes there, those that were there before included.
    pub bytes_done: u64,
    /// Compressed bytes of the whole image; zero until its manifest is known.
    pub bytes_total: u64,
}
