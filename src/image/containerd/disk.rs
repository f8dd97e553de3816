//! Where containerd has its files: what is looked at, and what is synced.

use super::Shared;
use super::native::blocking;
use crate::domain::failure::{Failure, FailureKind};
use crate::image::disk::Room;

/// Looks at containerd's file systems.
///
/// # Errors
/// `RuntimeUnavailable` when containerd does not say where they are.
pub(super) async fn room(shared: &Shared) -> Result<Room, Failure> {
    let snapshotter = shared.client.snapshotter(&shared.snapshotter).await?;
    let content = shared.client.content_root().await?;
    Ok(Room::of(content, snapshotter.root, shared.min_free_disk))
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
