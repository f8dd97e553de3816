//! Pulling into containerd through its own API, so that the result is what its CRI plugin would have
//! left; and through CRI where that is all there is, or more than this can do (`engine` says when).
//!
//! A pull is planned (what does the tag mean, what of it is there), then performed under a lease:
//! `fetch` brings blobs into the content store, `unpack` turns layers into snapshots, `names`
//! makes the image visible. Only what is complete and verified gets a name. Whatever happens, the
//! lease is ended by a task of its own, so that a caller that goes away leaves nothing behind.

mod bring;
mod client;
mod content;
mod disk;
mod engine;
mod fetch;
mod flights;
mod ingest;
mod labels;
mod lease;
mod memory;
mod meter;
mod names;
mod native;
mod parts;
mod pinned;
mod pins;
mod plan;
mod presence;
mod pull;
mod seen;
mod snapshotters;
mod threads;
mod throttle;
mod unpack;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::client::Client;
use self::engine::Choice;
use self::flights::Flights;
use self::lease::HeldLeases;
use self::memory::Memory;
use self::pins::Pins;
use self::snapshotters::{Known, Snapshotters};
use self::threads::Threads;
pub use self::threads::{Nice, NiceError};
use self::throttle::Throttle;
use super::cri::Cri;
use super::disk::space;
use super::registry::Registry;
use super::size::{Bandwidth, ByteSize, DiskReserve};
use super::{Engine, ProgressSink, PullReport, PullRequest, RuntimeInfo};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Platform;
use crate::domain::pin::Pin;

/// How to reach containerd and what to do there.
#[derive(Clone, Debug)]
pub struct ContainerdConfig {
    /// The socket, such as `/run/containerd/containerd.sock`.
    pub address: PathBuf,
    /// The namespace; kubelet's images are in `k8s.io`.
    pub namespace: String,
    /// The snapshotter that layers are unpacked for.
    pub snapshotter: String,
    /// How much of the disk pulls leave free.
    pub min_free_disk: DiskReserve,
    /// Where images come from.
    pub registry: Registry,
    /// What pulls may use of the machine.
    pub limits: PullLimits,
}

/// What pulls may use of the machine, all of them together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PullLimits {
    /// Memory for bytes on their way.
    pub memory: ByteSize,
    /// Bytes in a second from registries; `None` is as fast as it goes.
    pub bandwidth: Option<Bandwidth>,
    /// Whether everything is written to the disk before an image is named. containerd does not, and
    /// images pulled just before a power loss may then have empty files (containerd issue 8895).
    pub sync_filesystem: bool,
    /// How much the threads of pulls stand back for others.
    pub nice: Nice,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self {
            memory: ByteSize(256 << 20),
            bandwidth: None,
            sync_filesystem: false,
            nice: Nice::default(),
        }
    }
}

/// A containerd on this machine. Cheap to clone.
#[derive(Clone)]
pub struct Containerd(Arc<Shared>);

struct Shared {
    client: Client,
    registry: Registry,
    snapshotter: String,
    known: Known,
    min_free_disk: DiskReserve,
    blobs: Flights,
    snapshots: Flights,
    leases: HeldLeases,
    pins: Pins,
    memory: Memory,
    throttle: Option<Throttle>,
    sync_filesystem: bool,
    threads: Threads,
}

impl fmt::Debug for Containerd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Containerd")
            .field("client", &self.0.client)
            .field("snapshotter", &self.0.snapshotter)
            .finish_non_exhaustive()
    }
}

impl Containerd {
    /// Prepares a connection, which is made at the first call and again whenever it breaks: a worker
    /// may start before containerd does. [`probe`](Self::probe) says whether it is there.
    ///
    /// # Errors
    /// `RuntimeUnavailable` for an address or namespace that cannot be one, or when no threads can be started.
    pub fn connect(config: ContainerdConfig) -> Result<Self, Failure> {
        Ok(Self(Arc::new(Shared {
            client: Client::new(&config.address, &config.namespace)?,
            registry: config.registry,
            snapshotter: config.snapshotter,
            known: Known::default(),
            min_free_disk: config.min_free_disk,
            blobs: Flights::default(),
            snapshots: Flights::default(),
            memory: Memory::new(config.limits.memory.0),
            throttle: config
                .limits
                .bandwidth
                .map(|Bandwidth(ByteSize(rate))| Throttle::new(rate)),
            sync_filesystem: config.limits.sync_filesystem,
            threads: Threads::new(config.limits.nice)?,
            leases: HeldLeases::default(),
            pins: Pins::default(),
        })))
    }

    /// Asks containerd what it is, and whether it has the snapshotter; or what else it is that offers CRI.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when it does not answer, or when the snapshotter is not loaded.
    pub async fn probe(&self) -> Result<RuntimeInfo, Failure> {
        let (client, snapshotter) = (&self.0.client, &self.0.snapshotter);
        let Some(version) = client.version().await? else {
            return probe_cri(&client.cri()).await;
        };
        let plugin = client.snapshotter(snapshotter).await?;
        let space = plugin.root.as_deref().and_then(space);
        Ok(RuntimeInfo {
            name: "containerd".to_owned(),
            version,
            platform: plugin.platform,
            disk_total: space.map_or(0, |space| space.total),
            disk_free: space.map_or(0, |space| space.free),
        })
    }

    /// Which engine pulls of ordinary images use here, and why if it is not the native one. It tries whether this
    /// process can unpack, which leaves nothing behind.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when containerd does not answer, or refuses.
    pub async fn engine(&self) -> Result<(Engine, String), Failure> {
        let Choice { engine, reason } = bring::usual_choice(&self.0).await?;
        Ok((engine, reason))
    }

    /// The snapshotters beside the worker's own that images are unpacked for, since containers are started from them.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when containerd does not answer.
    pub async fn other_snapshotters(&self) -> Result<Vec<String>, Failure> {
        let snapshotters = Snapshotters::of(&self.0).await?;
        Ok(snapshotters
            .names()
            .skip(1)
            .map(ToOwned::to_owned)
            .collect())
    }

    /// The pins that pulls have set here and nobody has taken back; none of a runtime that offers CRI alone.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when containerd does not answer.
    pub async fn pins(&self) -> Result<Vec<Pin>, Failure> {
        pins::all(&self.0.client).await
    }

    /// Takes pins back, those of the same and of earlier generations. CRI's label goes with the last pin, if it was a
    /// pin that set it.
    ///
    /// # Errors
    /// `RuntimeUnavailable` when containerd does not answer; some may be taken back then.
    pub async fn unpin(&self, pins: &[Pin]) -> Result<(), Failure> {
        self.0.pins.take_back(&self.0.client, pins).await
    }

    /// Puts the image into containerd, or finds that it is there.
    ///
    /// Cancelling `cancelled` ends the pull and gives back all it took. Dropping the future, as a
    /// timeout does, ends it as well, but keeps for a while what was downloaded, as every failure does
    /// that another attempt may get over.
    ///
    /// # Errors
    /// The failure's kind says whether another attempt can help.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &ProgressSink,
        cancelled: &CancellationToken,
    ) -> Result<PullReport, Failure> {
        let abandoned = CancellationToken::new();
        let pull = pull::run(
            self.clone(),
            request.clone(),
            progress.clone(),
            pull::Stop {
                cancelled: cancelled.clone(),
                abandoned: abandoned.clone(),
            },
        );
        // A task of its own, because what it took has to be given back even if nobody waits for it.
        let _abandon = abandoned.drop_guard();
        let pull = self.0.threads.spawn(pull.in_current_span());
        pull.await.unwrap_or_else(|error| {
            Err(Failure::new(
                FailureKind::Internal,
                format!("the pull's task ended: {error}"),
            ))
        })
    }
}

async fn probe_cri(cri: &Cri) -> Result<RuntimeInfo, Failure> {
    let version = cri.version().await?;
    let space = cri.image_dir().await?.as_deref().and_then(space);
    Ok(RuntimeInfo {
        name: version.name,
        version: version.version,
        platform: Platform::host(),
        disk_total: space.map_or(0, |space| space.total),
        disk_free: space.map_or(0, |space| space.free),
    })
}
