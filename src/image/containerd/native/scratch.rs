//! A snapshot of no image, in which layers are unpacked until what is below them is there.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::types::Mount;

use super::super::Shared;
use super::super::client::Client;
use super::super::engine::{OVERLAYFS, Obstacle};
use super::super::labels::Labels;
use super::super::lease::Lease;
use super::super::unpack::unpack_key;
use crate::domain::failure::{Failure, FailureKind};
use crate::image::untar;

/// A directory on the file system of the snapshots. The lease removes it.
pub(in crate::image::containerd) struct Scratch {
    dir: PathBuf,
}

/// What an overlay consists of.
pub(super) struct Layers {
    /// The directory that is written to.
    pub(super) upper: PathBuf,
    /// Those below it, the topmost first.
    pub(super) lowers: Vec<PathBuf>,
}

impl Scratch {
    /// Makes one, or says why layers cannot be unpacked without containerd: for another snapshotter,
    /// without containerd's directories at the same paths, or without the rights for it.
    pub(in crate::image::containerd) async fn open(
        shared: &Shared,
        lease: &Lease<'_>,
    ) -> Result<Result<Self, Obstacle>, Failure> {
        if shared.snapshotter != OVERLAYFS {
            return Ok(Err(Obstacle::Snapshotter(shared.snapshotter.clone())));
        }
        let key = unpack_key("scratch");
        lease.unpacking(OVERLAYFS, &key);
        let client = &lease.client;
        let request = client.request(PrepareSnapshotRequest {
            snapshotter: shared.snapshotter.clone(),
            key: key.clone(),
            parent: String::new(),
            labels: Labels::new(),
        });
        let mounts = Client::call(client.snapshots().prepare(request))
            .await
            .map_err(|status| client.failure("preparing a scratch snapshot", &status))?
            .mounts;
        let Some(Layers { upper: dir, .. }) = Layers::of(&mounts) else {
            lease.remove(OVERLAYFS, &key).await;
            return Ok(Err(Obstacle::Directories));
        };
        let probed = dir.clone();
        let found = blocking(move || {
            Ok(if is_empty(&probed) {
                untar::probe(&probed).map_err(Obstacle::Right)
            } else {
                Err(Obstacle::Directories)
            })
        });
        Ok(match found.await? {
            Ok(()) => {
                lease.scratch(dir.clone());
                Ok(Self { dir })
            }
            Err(obstacle) => {
                lease.remove(OVERLAYFS, &key).await;
                Err(obstacle)
            }
        })
    }

    /// Makes a directory for a layer, anew if it is there.
    pub(super) async fn layer(&self, number: usize) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(number.to_string());
        blocking(move || {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    std::fs::remove_dir_all(&dir)?;
                    std::fs::create_dir(&dir)?;
                }
                made => made?,
            }
            Ok(dir)
        })
        .await
    }
}

impl Layers {
    /// Reads the mounts of a snapshot; `None` if they are no overlay of directories.
    pub(super) fn of(mounts: &[Mount]) -> Option<Self> {
        let [mount] = mounts else {
            return None;
        };
        if mount.r#type == "bind" {
            return Some(Self {
                upper: PathBuf::from(&mount.source),
                lowers: Vec::new(),
            });
        }
        let option = |name: &str| {
            let mut options = mount.options.iter();
            options.find_map(|option| option.strip_prefix(name))
        };
        let lowers = option("lowerdir=").unwrap_or_default().split(':');
        Some(Self {
            upper: PathBuf::from(option("upperdir=")?),
            lowers: lowers
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .collect(),
        })
    }
}

/// containerd has just made it: so it is the same directory there and here.
fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Does something with files where it may take its time.
pub(in crate::image::containerd) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                FailureKind::InsufficientDisk
            }
            _ => FailureKind::RuntimeUnavailable,
        };
        Failure::new(kind, format!("containerd's snapshot directory: {error}"))
    })
}
