//! What a user asks for: the specification of a job, in the form of the native manifest.
//!
//! Values here have passed the checks of [`crate::wire::manifest`]; reading one from the broker
//! trusts what the dispatcher wrote there.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::{ImageRef, Platform};
use super::selector::NodeSelector;

/// Most images one job may name (as Kruise's ImageListPullJob).
pub const MAX_IMAGES: usize = 255;
/// Pulls of a native job at once when the manifest does not say.
pub const DEFAULT_PARALLELISM: Amount = Amount::Count(10);
/// How long a silent node holds a job up when the manifest does not say, in seconds.
pub const DEFAULT_ABSENT_AFTER_SECONDS: u32 = 120;
/// Longest one attempt may take when the manifest does not say, in seconds (Kruise: 600).
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 600;
/// Retries after the first attempt when the manifest does not say (Kruise: 3).
pub const DEFAULT_BACKOFF_LIMIT: u32 = 3;
/// How often a `Never` job checks its nodes when the manifest does not say, in seconds (Kruise: daily).
pub const DEFAULT_REPEAT_SECONDS: u32 = 86_400;

/// A number of things, or a share of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// This many.
    Count(u32),
    /// This many of every hundred.
    Percent(u32),
}

/// A text that is neither a number nor a percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number nor a percentage")]
pub struct AmountError(pub String);

impl Amount {
    /// How many of `total` this is; a percentage is rounded up, so that `1%` of anything is something.
    #[must_use]
    pub fn of(self, total: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                let share = (u64::from(total) * u64::from(percent)).div_ceil(100);
                u32::try_from(share).unwrap_or(u32::MAX)
            }
        }
    }

    /// Whether `count` of `total` is more than this. A percentage is not rounded: one of five is more than `10%`.
    #[must_use]
    pub fn is_exceeded_by(self, count: u32, total: u32) -> bool {
        match self {
            Self::Count(limit) => count > limit,
            Self::Percent(percent) => {
                u64::from(count) * 100 > u64::from(total) * u64::from(percent)
            }
        }
    }
}

impl std::str::FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let error = || AmountError(text.to_owned());
        // A sign is none of a number of things, though Rust's integers take `+`.
        let number = |text: &str| match text.starts_with('+') {
            true => None,
            false => text.parse().ok(),
        };
        match text.strip_suffix('%') {
            Some(percent) => number(percent)
                .filter(|percent| *percent <= 100)
                .map(Self::Percent),
            None => number(text).map(Self::Count),
        }
        .ok_or_else(error)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Count(u32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Count(count) => Ok(Self::Count(count)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A number, or a percentage such as \"25%\"",
            "oneOf": [
                { "type": "integer", "minimum": 0, "maximum": u32::MAX },
                { "type": "string", "pattern": "^([0-9]+|0*([0-9]|[1-9][0-9]|100)%)$" },
            ],
        })
    }
}

/// Whether an image that is on the node is good enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// An image of that name is good enough, whatever its digest.
    #[default]
    IfNotPresent,
    /// The registry is asked, and the image pulled when the digest moved.
    Always,
}

/// How one pull is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PullPolicy {
    /// Longest one attempt may take, in seconds; at least 1.
    #[schemars(range(min = 1))]
    pub timeout_seconds: u32,
    /// Retries after the first attempt.
    pub backoff_limit: u32,
}

impl Default for PullPolicy {
    fn default() -> Self {
        Self {
            timeout_seconds: DEFAULT_TIMEOUT_SECONDS,
            backoff_limit: DEFAULT_BACKOFF_LIMIT,
        }
    }
}

/// Whether a job ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum CompletionType {
    /// It finishes once, when every node has had its turn.
    #[default]
    Always,
    /// It keeps its nodes warm until it is deleted.
    Never,
}

/// When a job ends and what happens then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CompletionPolicy {
    /// Whether it ends at all.
    #[serde(rename = "type")]
    pub kind: CompletionType,
    /// `Always` only: seconds from the start after which what is unfinished counts as failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<u32>,
    /// `Always` only: seconds from the end after which the job is deleted; absent: kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    /// `Never` only: seconds between two rounds, ±5 %; absent: 86,400.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_seconds: Option<u32>,
}

/// When a job gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailurePolicy {
    /// Nothing more is released, and the job fails, once more nodes than this have failed.
    pub max_failed: Amount,
}

/// Labels and annotations that travel with the job (Kruise: `sandboxConfig`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// Put on the image records and into events.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Put into events.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl SandboxConfig {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// What a job asks for. The same form in a native manifest, in the job's record and in events.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// The images, each at most once.
    #[schemars(length(min = 1, max = 255))]
    pub images: Vec<ImageRef>,
    /// The nodes; absent: all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub selector: NodeSelector,
    /// Pulls released and unfinished at once; a percentage is of the matching nodes; 0 pauses.
    #[serde(default = "default_parallelism")]
    pub parallelism: Amount,
    /// Higher first, on the dispatcher and on the node.
    #[serde(default)]
    pub priority: i32,
    /// Whether an image that is there is good enough.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// The platform to choose from an index; absent: each node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names of credentials in every node's secrets directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
    /// Whether to keep the images from kubelet's garbage collection while the job lives.
    #[serde(default)]
    pub pin: bool,
    /// Whether to unpack layers; `false` stores content only, for OCI artifacts and image volumes.
    #[serde(default = "yes")]
    pub unpack: bool,
    /// How long a silent node holds the job up, in seconds.
    #[serde(default = "default_absent_after")]
    pub absent_after_seconds: u32,
    /// How one pull is tried.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// When the job ends.
    #[serde(default)]
    pub completion_policy: CompletionPolicy,
    /// When the job gives up; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_policy: Option<FailurePolicy>,
    /// Labels and annotations that travel with the job.
    #[serde(default, skip_serializing_if = "SandboxConfig::is_empty")]
    pub sandbox_config: SandboxConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

fn default_parallelism() -> Amount {
    DEFAULT_PARALLELISM
}

fn default_absent_after() -> u32 {
    DEFAULT_ABSENT_AFTER_SECONDS
}

impl JobSpec {
    /// A job for these images on every node, everything else as the contract's defaults.
    #[must_use]
    pub fn new(images: Vec<ImageRef>) -> Self {
        Self {
            images,
            selector: NodeSelector::default(),
            parallelism: DEFAULT_PARALLELISM,
            priority: 0,
            image_pull_policy: ImagePullPolicy::default(),
            platform: None,
            pull_secrets: Vec::new(),
            pin: false,
            unpack: true,
            absent_after_seconds: DEFAULT_ABSENT_AFTER_SECONDS,
            pull_policy: PullPolicy::default(),
            completion_policy: CompletionPolicy::default(),
            failure_policy: None,
            sandbox_config: SandboxConfig::default(),
        }
    }

    /// Whether what the job puts on a node differs, so that work already done no longer counts.
    #[must_use]
    pub fn puts_other_content_than(&self, other: &Self) -> bool {
        self.images != other.images
            || self.platform != other.platform
            || self.unpack != other.unpack
            || (self.pin && !other.pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_rounded_up() {
        assert_eq!(Amount::Percent(25).of(10), 3);
        assert_eq!(Amount::Percent(1).of(1), 1);
        assert_eq!(Amount::Percent(0).of(1_000), 0);
        assert_eq!(Amount::Count(7).of(3), 7);
    }

    #[test]
    fn amounts_are_numbers_or_percentages() {
        assert_eq!("10".parse(), Ok(Amount::Count(10)));
        assert_eq!("25%".parse(), Ok(Amount::Percent(25)));
        for bad in [
            "ten", "-1", "101%", "%", "", "1.5", "5 %", "+5", "+5%", "-0",
        ] {
            assert!(bad.parse::<Amount>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(
            serde_json::to_string(&[Amount::Count(3), Amount::Percent(3)]).unwrap(),
            "[3,\"3%\"]"
        );
    }

    #[test]
    fn a_spec_reads_back_what_it_wrote() {
        let mut spec = JobSpec::new(vec!["nginx".parse().unwrap()]);
        spec.parallelism = Amount::Percent(5);
        spec.completion_policy.kind = CompletionType::Never;
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
    }
}
