//! Why a pull failed, and whether trying again can help.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kind of a failed pull. The names are part of the contract: events, status and metrics carry them.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema,
)]
pub enum FailureKind {
    /// The registry has no such manifest or blob (404).
    ImageNotFound,
    /// The registry refused the credentials, or wants some (401 after a fresh token, 403).
    Unauthorized,
    /// The index has no manifest for the node's platform.
    NoMatchingPlatform,
    /// The reference cannot be read, or the manifest is of a kind that cannot be pulled.
    InvalidReference,
    /// The disk has no room for what is missing.
    InsufficientDisk,
    /// Bytes do not hash to what names them.
    DigestMismatch,
    /// The registry does not answer, or answers 5xx.
    RegistryUnavailable,
    /// The registry said 429.
    RateLimited,
    /// The attempt took longer than `pullPolicy.timeoutSeconds`.
    Timeout,
    /// containerd does not answer or refused a call.
    RuntimeUnavailable,
    /// None of the others: a defect of ours or of a peer.
    Internal,
    /// The dispatcher's word: the job's deadline passed first.
    DeadlineExceeded,
    /// The dispatcher's word: the node was gone for longer than `absentAfterSeconds`.
    NodeAbsent,
}

impl FailureKind {
    /// Every kind, in the order of the contract.
    pub const ALL: [Self; 13] = [
        Self::ImageNotFound,
        Self::Unauthorized,
        Self::NoMatchingPlatform,
        Self::InvalidReference,
        Self::InsufficientDisk,
        Self::DigestMismatch,
        Self::RegistryUnavailable,
        Self::RateLimited,
        Self::Timeout,
        Self::RuntimeUnavailable,
        Self::Internal,
        Self::DeadlineExceeded,
        Self::NodeAbsent,
    ];

    /// Whether another attempt cannot end better, so that the pull fails at once.
    ///
    /// A digest mismatch is not: proxies and disks corrupt bytes, and the next copy may be right.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        match self {
            Self::ImageNotFound
            | Self::Unauthorized
            | Self::NoMatchingPlatform
            | Self::InvalidReference
            | Self::InsufficientDisk
            | Self::DeadlineExceeded
            | Self::NodeAbsent => true,
            Self::DigestMismatch
            | Self::RegistryUnavailable
            | Self::RateLimited
            | Self::Timeout
            | Self::RuntimeUnavailable
            | Self::Internal => false,
        }
    }

    /// The name of the contract, such as `ImageNotFound`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageNotFound => "ImageNotFound",
            Self::Unauthorized => "Unauthorized",
            Self::NoMatchingPlatform => "NoMatchingPlatform",
            Self::InvalidReference => "InvalidReference",
            Self::InsufficientDisk => "InsufficientDisk",
            Self::DigestMismatch => "DigestMismatch",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::RateLimited => "RateLimited",
            Self::Timeout => "Timeout",
            Self::RuntimeUnavailable => "RuntimeUnavailable",
            Self::Internal => "Internal",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NodeAbsent => "NodeAbsent",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failed attempt: its kind, what a person needs to know, and what the registry asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Failure {
    /// What decides whether to try again.
    pub kind: FailureKind,
    /// What happened, where, and what to do; never a credential.
    pub message: String,
    /// The least delay before another attempt, from `Retry-After` (RFC 9110, section 10.2.3).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure with nothing to say about when to try again.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_name_is_the_display_name() {
        for kind in FailureKind::ALL {
            assert_eq!(
                serde_json::to_value(kind).unwrap(),
                serde_json::json!(kind.as_str())
            );
        }
    }
}
