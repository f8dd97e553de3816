//! A job's hold on an image of a node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps one image of one job from kubelet's garbage collection. It holds while the job lives, which is until it is
/// deleted or its time to live is over, and while the job has the image and wants it pinned.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Names the job across deletions.
    pub uid: String,
    /// The image's token.
    pub image: String,
    /// The job's generation that set it. A later one sets it again; what is said of the earlier does not touch it.
    pub generation: u32,
}

impl Pin {
    /// Whether this one is taken back when that one is.
    #[must_use]
    pub fn goes_with(&self, taken_back: &Self) -> bool {
        self.is_same_hold(taken_back) && self.generation <= taken_back.generation
    }

    /// Whether both are the hold of one job on one image, whatever the generation.
    #[must_use]
    pub fn is_same_hold(&self, other: &Self) -> bool {
        self.uid == other.uid && self.image == other.image
    }
}
