//! One released pull, as a node's worker receives it.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::image::{Digest, ImageRef, Platform};
use crate::domain::job::{ImagePullPolicy, PullPolicy};
use crate::domain::name::{JobName, NodeName};
use crate::domain::time::Timestamp;
use crate::domain::trace::{TraceContext, TraceOrigin};

/// Which run of which job a message belongs to. What is told for another run is no longer true.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Names the job across deletions: another job of the same name has another.
    pub uid: String,
    /// Counts what the job puts on nodes: a changed image list is a new generation. From 1.
    pub generation: u32,
    /// Counts the rounds of a `Never` job within a generation. From 1.
    pub round: u32,
}

impl Run {
    /// The span of this run in a trace. Its id follows from its name, so that every dispatcher that has a part in it
    /// means the same.
    #[must_use]
    pub fn span(&self, origin: &TraceOrigin) -> TraceContext {
        let Self {
            uid,
            generation,
            round,
        } = self;
        origin.span(&format!("{uid}/{generation}/{round}"))
    }
}

/// One pull for one node: everything a worker needs, and no credential.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullTask {
    /// The job.
    pub job: JobName,
    /// Which run of it.
    #[serde(flatten)]
    pub run: Run,
    /// The node it is for.
    pub node: NodeName,
    /// The image as the job names it.
    pub image: ImageRef,
    /// What the tag meant when this run began; absent: the node resolves for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The platform to choose from an index; absent: the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Whether an image that is there is good enough.
    pub image_pull_policy: ImagePullPolicy,
    /// Timeout of an attempt, and how many retries.
    pub pull_policy: PullPolicy,
    /// Higher first.
    #[serde(default)]
    pub priority: i32,
    /// Names of credentials in the node's secrets directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
    /// Whether to keep the image from kubelet's garbage collection.
    #[serde(default)]
    pub pin: bool,
    /// Whether to unpack the layers.
    #[serde(default = "yes")]
    pub unpack: bool,
    /// When the job's deadline passes, by the dispatcher's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When the dispatcher released it, by the same clock: what is left until `expiresAt` is counted from the delivery,
    /// since the node's clock may be another. Absent: an older dispatcher released it, and the node goes by its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Timestamp>,
    /// Labels to put on the image records and into events.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations to put into events.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The span that the pull's spans are children of; absent: the job belongs to no trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceContext>,
}

/// The part of a task that names its pull.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    job: JobName,
    #[serde(flatten)]
    run: Run,
    node: NodeName,
    image: ImageRef,
}

impl PullTask {
    /// How much of the job's time there was when the pull was released, or is `now` if that is not told; `None` without
    /// a deadline.
    #[must_use]
    pub fn time_left(&self, now: Timestamp) -> Option<Duration> {
        let expires_at = self.expires_at?;
        Some(expires_at.since(self.released_at.unwrap_or(now)))
    }

    /// Reads of a task only which pull it is, so that one that cannot be read as a whole can be failed by name. The
    /// rest is empty, and it is not to be retried.
    #[must_use]
    pub fn named_in(message: &[u8]) -> Option<Self> {
        let Named {
            job,
            run,
            node,
            image,
        } = serde_json::from_slice(message).ok()?;
        Some(Self {
            job,
            run,
            node,
            image,
            digest: None,
            platform: None,
            image_pull_policy: ImagePullPolicy::default(),
            pull_policy: PullPolicy {
                backoff_limit: 0,
                ..PullPolicy::default()
            },
            priority: 0,
            pull_secrets: Vec::new(),
            pin: false,
            unpack: yes(),
            expires_at: None,
            released_at: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            traceparent: None,
        })
    }
}

fn yes() -> bool {
    true
}
