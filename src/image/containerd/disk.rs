//! Is there room for what is missing?

use std::path::Path;

use super::Shared;
use super::native::blocking;
use crate::domain::failure::{Failure, FailureKind};
use crate::image::registry::manifest::Descriptor;
use crate::image::size::ByteSize;

/// How many bytes a compressed layer unpacks to for each of its own. Nothing in a manifest says; the
/// images this project measures have 1.7 to 1.9, and for a check that only has to refuse what is
/// hopeless, too little is better than too much.
const UNPACKED_PER_COMPRESSED: u64 = 2;

/// A file system's size and what is free of it, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
    /// Tells file systems apart.
    id: u64,
}

/// The space of the file system that holds a directory; `None` when it is not to be seen from here.
pub(super) fn space(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        id: stat.f_fsid,
    })
}

/// Refuses a pull that would leave less free than the settings say, unpacked for each of the snapshotters. Where containerd's directories
/// are not to be seen from this process, it cannot tell, and lets the pull go ahead.
pub(super) async fn check(
    shared: &Shared,
    missing: &[&Descriptor],
    snapshotters: &[&str],
) -> Result<(), Failure> {
    if missing.is_empty() {
        return Ok(());
    }
    let sum = |bytes: fn(&Descriptor) -> u64| {
        missing
            .iter()
            .fold(0_u64, |sum, blob| sum.saturating_add(bytes(blob)))
    };
    let compressed = sum(|blob| blob.size);
    // As a rule they are all on one disk.
    let count = u64::try_from(snapshotters.len()).unwrap_or(u64::MAX);
    let unpacked = sum(unpacked_bytes).saturating_mul(count);
    let content = shared.client.content_root().await?;
    let snapshots = shared.client.snapshotter(&shared.snapshotter).await?.root;
    let spaces = (
        content.as_deref().and_then(space),
        snapshots.as_deref().and_then(space),
    );
    let needs = match spaces {
        (Some(content), Some(snapshots)) if content.id != snapshots.id => {
            vec![(content, compressed), (snapshots, unpacked)]
        }
        (Some(space), _) | (None, Some(space)) => {
            vec![(space, compressed.saturating_add(unpacked))]
        }
        (None, None) => {
            tracing::debug!("containerd's directories are not visible here: no disk check");
            Vec::new()
        }
    };
    for (space, need) in needs {
        let reserve = shared.min_free_disk.of(space.total);
        if need.saturating_add(reserve) > space.free {
            return Err(Failure::new(
                FailureKind::InsufficientDisk,
                format!(
                    "the image needs about {}, {} is to stay free (min-free-disk), and only {} of {} is free",
                    ByteSize(need),
                    ByteSize(reserve),
                    ByteSize(space.free),
                    ByteSize(space.total)
                ),
            ));
        }
    }
    Ok(())
}

/// Writes everything on the snapshots' file system to the disk. What is in the content store containerd
/// has written there already.
///
/// # Errors
/// The file system is not to be seen from here, or refused.
pub(super) async fn sync(shared: &Shared, name: &str) -> Result<(), Failure> {
    let root = shared.client.snapshotter(name).await?.root;
    let Some(root) = root.filter(|root| root.is_dir()) else {
        return Err(Failure::new(
            FailureKind::RuntimeUnavailable,
            format!(
                "the directory of snapshotter {name:?} is not visible here, so its file system cannot be synced; mount it at the same path, or leave out sync-filesystem"
            ),
        ));
    };
    blocking(move || Ok(rustix::fs::syncfs(std::fs::File::open(root)?)?)).await
}

fn unpacked_bytes(layer: &Descriptor) -> u64 {
    let is_compressed = layer.media_type.ends_with("gzip") || layer.media_type.ends_with("zstd");
    let factor = if is_compressed {
        UNPACKED_PER_COMPRESSED
    } else {
        1
    };
    layer.size.saturating_mul(factor)
}
