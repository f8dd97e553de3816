//! The fast way for overlayfs: all layers stream at once, each into the content store and, inflated and
//! hashed, into a directory of a scratch snapshot. In order, each is then renamed into the snapshot that
//! containerd prepares for it.
//!
//! containerd and most other clients download first and then unpack layer after layer, with one thread
//! at work; here the disk, the network and all processors are at work from beginning to end.

mod scratch;
mod tap;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use containerd_client::types::Mount;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;

use self::scratch::Layers;
pub(super) use self::scratch::{Scratch, blocking};
pub(super) use self::tap::Tap;
use self::tap::Unpacked;
use super::Shared;
use super::fetch::Fetcher;
use super::flights::Turn;
use super::labels::Labels;
use super::lease::Lease;
use super::meter::Meter;
use super::unpack::{Step, has_snapshot, keep};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::image::phase;
use crate::image::registry::manifest::{Descriptor, ImageConfig, Manifest};
use crate::image::untar::{self, Implicit, Level};

/// Most layers of one image that are on their way at once, as far as there is memory for them.
const LAYERS_AT_ONCE: usize = 16;
/// Least memory for a layer, in bytes; and how many times its size it takes while it is small.
const MIN_LAYER_MEMORY: u64 = 512 << 10;
const MEMORY_PER_BYTE: u64 = 6;

/// The number of the worker's own snapshotter.
const OWN: usize = 0;

/// One image on its way.
pub(super) struct Native<'a> {
    pub(super) shared: &'a Shared,
    pub(super) lease: &'a Lease<'a>,
    pub(super) fetcher: &'a Fetcher<'a>,
    pub(super) meter: &'a Meter,
    pub(super) scratch: &'a Scratch,
    /// Threads that write into the scratch snapshot: it cannot go before they have ended.
    pub(super) workers: &'a TaskTracker,
    pub(super) manifest: &'a Manifest,
    pub(super) config: &'a ImageConfig,
}

/// A layer that is all there.
enum Ready {
    /// Its snapshot was there, or came to be there meanwhile.
    Committed,
    /// It is unpacked, and nobody else of this process does the same.
    Unpacked {
        dir: PathBuf,
        implicit: Vec<Implicit>,
        turn: Turn,
    },
}

impl Native<'_> {
    /// Brings all layers, into the content store and into snapshots, and has the configuration keep
    /// them.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let chain = self.config.chain_ids();
        let (ready, mut committing) = mpsc::channel(1);
        let bring = async {
            let layers: Vec<_> = (0..chain.len())
                .map(|number| {
                    let Descriptor { digest, size, .. } = &self.manifest.layers[number];
                    let span = tracing::info_span!("layer", %digest, size, error = Empty);
                    phase(span, self.layer(&chain, number))
                })
                .collect();
            let mut layers = futures::stream::iter(layers).buffered(LAYERS_AT_ONCE);
            while let Some(layer) = layers.next().await {
                // The other side ends early only when it fails, and then this one is dropped.
                let _ = ready.send(layer?).await;
            }
            drop(ready);
            Ok::<_, Failure>(())
        };
        let commit = async {
            let mut number = 0;
            while let Some(layer) = committing.recv().await {
                let span = tracing::info_span!("commit", layer = number, error = Empty);
                phase(span, self.commit(&chain, number, layer)).await?;
                number += 1;
            }
            Ok(())
        };
        futures::future::try_join(bring, commit).await?;
        let client = &self.lease.client;
        keep(client, &self.shared.snapshotter, self.manifest, &chain).await
    }

    async fn layer(&self, chain: &[Digest], number: usize) -> Result<Ready, Failure> {
        let (layer, chain_id) = (&self.manifest.layers[number], &chain[number]);
        let turn = self.shared.snapshots.turn(chain_id, |_| {}).await;
        let client = &self.lease.client;
        let snapshotter = &self.shared.snapshotter;
        if has_snapshot(client, snapshotter, chain_id).await? {
            self.meter.layer(OWN, number).set(layer.size);
            self.fetcher.blob(layer, Labels::new()).await?;
            return Ok(Ready::Committed);
        }
        let wanted = MIN_LAYER_MEMORY.saturating_add(layer.size.saturating_mul(MEMORY_PER_BYTE));
        let _memory = self.shared.memory.hold(wanted.min(tap::MEMORY_BYTES)).await;
        let (mut tap, dir) = self.tap(layer, number).await?;
        self.fetcher.tapped(layer, &mut tap).await?;
        if tap.finish(layer.size).await.is_none() {
            // It came another way, with another client's pull as a rule, who may unpack it as well.
            if has_snapshot(client, snapshotter, chain_id).await? {
                self.meter.layer(OWN, number).set(layer.size);
                return Ok(Ready::Committed);
            }
            tap = self.tap(layer, number).await?.0;
            self.read(layer, &mut tap).await?;
        }
        let diff_id = &self.config.rootfs.diff_ids[number];
        let implicit = verify(tap, layer, diff_id).await?.implicit;
        Ok(Ready::Unpacked {
            dir,
            implicit,
            turn,
        })
    }

    async fn tap(&self, layer: &Descriptor, number: usize) -> Result<(Tap, PathBuf), Failure> {
        let dir = self.scratch.layer(number).await?;
        let level = match number {
            0 => Level::Lowest,
            _ => Level::Upper,
        };
        let meter = self.meter.layer(OWN, number);
        let room = self.fetcher.room.clone();
        let to = (dir.clone(), level);
        let tap = Tap::start(self.workers, &layer.digest, to, room, meter);
        Ok((tap, dir))
    }

    /// Lets a layer of the content store into the tap.
    async fn read(&self, layer: &Descriptor, tap: &mut Tap) -> Result<(), Failure> {
        let client = &self.lease.client;
        let mut pieces = client.stream(&layer.digest).await?;
        let mut offset = 0;
        loop {
            let piece = pieces.message().await.map_err(|status| {
                client.failure(format_args!("reading {}", layer.digest), &status)
            })?;
            let Some(piece) = piece else {
                return Ok(());
            };
            let bytes = Bytes::from(piece.data);
            let length = bytes.len() as u64;
            tap.feed(offset, vec![bytes]).await?;
            offset += length;
        }
    }

    /// Makes a layer a snapshot on top of the one before.
    async fn commit(&self, chain: &[Digest], number: usize, layer: Ready) -> Result<(), Failure> {
        let step = Step {
            shared: self.shared,
            lease: self.lease,
            snapshotter: &self.shared.snapshotter,
            layer: &self.manifest.layers[number],
            diff_id: &self.config.rootfs.diff_ids[number],
            chain_id: &chain[number],
            parent: number.checked_sub(1).map(|below| &chain[below]),
        };
        match layer {
            Ready::Unpacked {
                dir,
                implicit,
                turn,
            } => {
                step.fill(async |mounts| place(mounts, dir, implicit).await)
                    .await?;
                drop(turn);
            }
            // The topmost keeps those below, so that only that one has to be held by the lease.
            Ready::Committed if number + 1 < chain.len() => {}
            Ready::Committed => {
                step.fill(async |_| {
                    Err(Failure::new(
                        FailureKind::RuntimeUnavailable,
                        format!("snapshot {} was there and is not", step.chain_id),
                    ))
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// What came out of a layer, if it is what the configuration says.
async fn verify(tap: Tap, layer: &Descriptor, diff_id: &Digest) -> Result<Unpacked, Failure> {
    let unpacked = tap
        .into_outcome()
        .await
        .map_err(|error| error.failure(&layer.digest))?;
    if unpacked.diff_id == *diff_id {
        return Ok(unpacked);
    }
    Err(Failure::new(
        FailureKind::DigestMismatch,
        format!(
            "layer {} unpacks to {}, while the image's configuration says {diff_id}",
            layer.digest, unpacked.diff_id
        ),
    ))
}

/// Puts an unpacked layer in the place of the directory that a snapshot is made of.
async fn place(mounts: Vec<Mount>, dir: PathBuf, implicit: Vec<Implicit>) -> Result<(), Failure> {
    let layers = Layers::of(&mounts).ok_or_else(|| {
        Failure::new(
            FailureKind::RuntimeUnavailable,
            "containerd prepared a snapshot that is no overlay",
        )
    })?;
    blocking(move || {
        untar::inherit(&dir, &layers.lowers, &implicit).map_err(std::io::Error::other)?;
        look_alike(&layers.upper, &dir)?;
        std::fs::rename(&dir, &layers.upper)
    })
    .await
}

/// Gives a directory the owner and mode of another.
fn look_alike(model: &Path, dir: &Path) -> std::io::Result<()> {
    let model = std::fs::metadata(model)?;
    std::os::unix::fs::chown(dir, Some(model.uid()), Some(model.gid()))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(model.mode() & 0o7777))
}
