//! Putting one image on this node: what is asked, what comes back, and who can do it.
//!
//! [`Runtime`] is the seam: the worker knows nothing of containerd or registries beyond it. A pull
//! reports every byte as it moves through a [`ProgressSink`] and stops at the next safe point when
//! its token is cancelled.

pub mod containerd;
mod cri;
mod disk;
pub mod inflate;
pub mod registry;
pub mod simulated;
pub mod size;
pub mod untar;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::domain::failure::Failure;
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::domain::job::ImagePullPolicy;
use crate::domain::pin::Pin;
use crate::domain::progress::PullProgress;

/// One pull as the worker asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullRequest {
    /// The image as the job names it: the names it gets on the node come from here.
    pub image: ImageRef,
    /// What the tag means for this job and round; `None` if the dispatcher could not resolve it.
    pub digest: Option<Digest>,
    /// Whether an image that is there is good enough, or has to be the registry's newest.
    pub policy: ImagePullPolicy,
    /// The platform to choose from an index; `None` means the node's own.
    pub platform: Option<Platform>,
    /// Names of credentials in the node's secrets directory.
    pub pull_secrets: Vec<String>,
    /// By which it is kept from kubelet's garbage collection, if it is to be.
    pub pin: Option<Pin>,
    /// Whether to unpack the layers into snapshots; `false` stores the content only.
    pub unpack: bool,
    /// Labels to put on the image records beside the ones CRI needs.
    pub labels: BTreeMap<String, String>,
}

/// What a finished pull found and did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullReport {
    /// What the names now point at: the digest of the manifest, or of the index if there is one.
    pub digest: Digest,
    /// Whether everything was there before, so that nothing had to be done.
    pub already_present: bool,
    /// Compressed bytes fetched from the registry the reference names.
    pub bytes_registry: u64,
    /// Compressed bytes fetched from elsewhere: mirrors of `hosts.toml`.
    pub bytes_mirror: u64,
    /// Compressed bytes of this image that were in the content store before.
    pub bytes_present: u64,
    /// Time to learn the digest and manifests.
    pub resolve: Duration,
    /// Time to fetch and store the blobs.
    pub download: Duration,
    /// Time to unpack the layers into snapshots, as far as that was not done while they came.
    pub unpack: Duration,
    /// Who did it; `None` if nothing had to be done.
    pub engine: Option<Engine>,
    /// Why it was not the native engine; empty if it was, or if nothing had to be done.
    pub engine_reason: String,
}

/// The ways an image can be brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Layers were unpacked by this process while they came.
    Native,
    /// containerd unpacked them: for other snapshotters than overlayfs, or without access to its files.
    Containerd,
    /// The runtime did all of it when asked by CRI's `PullImage`, as for kubelet.
    Cri,
    /// Nothing was brought: a simulation.
    Simulated,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 4] = [Self::Native, Self::Containerd, Self::Cri, Self::Simulated];

    /// Its name in events and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Containerd => "containerd",
            Self::Cri => "cri",
            Self::Simulated => "simulated",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Does a part of a pull in a span of its own, which says what it failed of: the field `error`, that it has to have.
async fn phase<T>(
    span: Span,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = work.instrument(span.clone()).await;
    if let Err(failure) = &done {
        span.record("error", tracing::field::display(&failure.message));
    }
    done
}

/// Where a pull tells how far it is; only the latest word counts.
pub type ProgressSink = watch::Sender<PullProgress>;

/// What the node runs, for the node's record and `prewarm check`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeInfo {
    /// `containerd`, `simulated`, or what a runtime that offers CRI alone calls itself, such as `cri-o`.
    pub name: String,
    /// The runtime's own version.
    pub version: String,
    /// The platform it runs containers for.
    pub platform: Platform,
    /// Bytes of the file system that holds the images.
    pub disk_total: u64,
    /// Bytes of it that are free.
    pub disk_free: u64,
}

/// Everything that can put an image on this node.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// A containerd on this machine, or another runtime that offers CRI.
    Containerd(containerd::Containerd),
    /// A stand-in with latencies, sizes and failures by setting, for tests and load.
    Simulated(simulated::Simulated),
}

impl Runtime {
    /// Asks the runtime what it is.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when it does not answer.
    pub async fn probe(&self) -> Result<RuntimeInfo, Failure> {
        match self {
            Self::Containerd(containerd) => containerd.probe().await,
            Self::Simulated(simulated) => Ok(simulated.probe()),
        }
    }

    /// Puts the image on the node, or finds that it is there.
    ///
    /// # Errors
    /// The failure's kind says whether another attempt can help. A cancelled pull ends with
    /// [`FailureKind::Internal`](crate::domain::failure::FailureKind::Internal); the caller, who
    /// cancelled, knows why.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &ProgressSink,
        cancelled: &CancellationToken,
    ) -> Result<PullReport, Failure> {
        match self {
            Self::Containerd(containerd) => containerd.pull(request, progress, cancelled).await,
            Self::Simulated(simulated) => simulated.pull(request, progress, cancelled).await,
        }
    }

    /// The pins that pulls have set on this node and nobody has taken back.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when the runtime does not answer.
    pub async fn pins(&self) -> Result<Vec<Pin>, Failure> {
        match self {
            Self::Containerd(containerd) => containerd.pins().await,
            Self::Simulated(simulated) => Ok(simulated.pins()),
        }
    }

    /// Takes pins back, those of the same and of earlier generations. An image is pinned no more when its last pin is
    /// gone, unless somebody else has pinned it.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when the runtime does not answer; some may be taken back then.
    pub async fn unpin(&self, pins: &[Pin]) -> Result<(), Failure> {
        match self {
            Self::Containerd(containerd) => containerd.unpin(pins).await,
            Self::Simulated(simulated) => {
                simulated.unpin(pins);
                Ok(())
            }
        }
    }
}
