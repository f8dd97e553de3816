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
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;

use self::scratch::Layers;
pub(super) use self::scratch::{Scratch, blocking};
pub(super) use self::tap::Tap;
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

/// A layer whose turn to become a snapshot can come.
enum Ready {
    /// Its snapshot was there, or came to be there meanwhile.
    Committed,
    /// All of it is unpacked and verified, and nobody else of this process does the same. Its content may not be committed
    /// yet: containerd hashes that while it looks at the files of the snapshot, in calls that both take their time.
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
        let (ready, committing): (Vec<_>, Vec<_>) =
            chain.iter().map(|_| oneshot::channel()).unzip();
        let bring = async {
            let layers: Vec<_> = ready
                .into_iter()
                .enumerate()
                .map(|(number, ready)| {
                    let Descriptor { digest, size, .. } = &self.manifest.layers[number];
                    let span = tracing::info_span!("layer", %digest, size, error = Empty);
                    phase(span, self.layer(&chain, number, ready))
                })
                .collect();
            let mut layers = futures::stream::iter(layers).buffered(LAYERS_AT_ONCE);
            while let Some(layer) = layers.next().await {
                layer?;
            }
            Ok::<_, Failure>(())
        };
        let commit = async {
            for (number, ready) in committing.into_iter().enumerate() {
                // The other side ends without a word only when it fails, and then this one is dropped.
                let Ok(layer) = ready.await else { break };
                let span = tracing::info_span!("commit", layer = number, error = Empty);
                phase(span, self.commit(&chain, number, layer)).await?;
            }
            Ok(())
        };
        futures::future::try_join(bring, commit).await?;
        let client = &self.lease.client;
        keep(client, &self.shared.snapshotter, self.manifest, &chain).await
    }

    /// Brings a layer into the content store, and tells once it is unpacked, which may be before.
    async fn layer(
        &self,
        chain: &[Digest],
        number: usize,
        ready: oneshot::Sender<Ready>,
    ) -> Result<(), Failure> {
        let (layer, chain_id) = (&self.manifest.layers[number], &chain[number]);
        let turn = self.shared.snapshots.turn(chain_id, |_| {}).await;
        let client = &self.lease.client;
        let snapshotter = &self.shared.snapshotter;
        if has_snapshot(client, snapshotter, chain_id).await? {
            self.meter.layer(OWN, number).set(layer.size);
            self.fetcher.blob(layer, Labels::new()).await?;
            let _ = ready.send(Ready::Committed);
            return Ok(());
        }
        let wanted = MIN_LAYER_MEMORY.saturating_add(layer.size.saturating_mul(MEMORY_PER_BYTE));
        let _memory = self.shared.memory.hold(wanted.min(tap::MEMORY_BYTES)).await;
        let mut waiting = Some((ready, turn));
        let fetch = async |tap: &mut Tap| {
            self.fetcher.tapped(layer, tap).await?;
            Ok(layer.size)
        };
        if self.unpack(number, &mut waiting, fetch).await? {
            return Ok(());
        }
        // It came another way, with another client's pull as a rule, who may unpack it as well.
        if has_snapshot(client, snapshotter, chain_id).await? {
            self.meter.layer(OWN, number).set(layer.size);
            if let Some((ready, _turn)) = waiting {
                let _ = ready.send(Ready::Committed);
            }
            return Ok(());
        }
        let read = async |tap: &mut Tap| self.read(layer, tap).await;
        match self.unpack(number, &mut waiting, read).await? {
            true => Ok(()),
            false => Err(Failure::new(
                FailureKind::RuntimeUnavailable,
                format!("containerd has not all of layer {}", layer.digest),
            )),
        }
    }

    /// Unpacks what `feed` lets into a tap, of which it says how many bytes there are, and tells who waits for it as soon as
    /// that is verified, while `feed` may have more to do. Says whether it was told, now or before; if not, the tap did not
    /// see all of the layer.
    async fn unpack(
        &self,
        number: usize,
        waiting: &mut Option<(oneshot::Sender<Ready>, Turn)>,
        feed: impl AsyncFnOnce(&mut Tap) -> Result<u64, Failure>,
    ) -> Result<bool, Failure> {
        let layer = &self.manifest.layers[number];
        let diff_id = &self.config.rootfs.diff_ids[number];
        let dir = self.scratch.layer(number).await?;
        let level = match number {
            0 => Level::Lowest,
            _ => Level::Upper,
        };
        let meter = self.meter.layer(OWN, number);
        let room = self.fetcher.room.clone();
        let to = (dir.clone(), level);
        let digests = (&layer.digest, diff_id);
        let (mut tap, unpacked) = Tap::start(self.workers, digests, to, room, meter);
        let feed = async {
            let size = feed(&mut tap).await?;
            let seen = tap.verify(size).await;
            // Nobody is to wait for what does not come.
            drop(tap);
            seen
        };
        let tell = async {
            if let Ok(implicit) = unpacked.await
                && let Some((ready, turn)) = waiting.take()
            {
                let _ = ready.send(Ready::Unpacked {
                    dir,
                    implicit,
                    turn,
                });
            }
            Ok(())
        };
        let (seen, ()) = futures::future::try_join(feed, tell).await?;
        Ok(seen || waiting.is_none())
    }

    /// Lets a layer of the content store into the tap, and says how many bytes it has.
    async fn read(&self, layer: &Descriptor, tap: &mut Tap) -> Result<u64, Failure> {
        let client = &self.lease.client;
        let mut pieces = client.stream(&layer.digest).await?;
        let mut offset = 0;
        loop {
            let piece = pieces.message().await.map_err(|status| {
                client.failure(format_args!("reading {}", layer.digest), &status)
            })?;
            let Some(piece) = piece else {
                return Ok(offset);
            };
            let bytes = Bytes::from(piece.data);
            let length = bytes.len() as u64;
            tap.feed(offset, vec![bytes], None).await?;
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
