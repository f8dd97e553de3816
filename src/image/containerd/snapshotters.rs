//! Which snapshotters an image is unpacked for: the worker's own, and those that containers are started from by CRI.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Shared, seen};
use crate::domain::failure::Failure;
use crate::image::cri::Unpacks;

/// The snapshotters of one pull.
pub(super) struct Snapshotters {
    /// The worker's own.
    pub(super) own: String,
    /// How the CRI plugin is asked to unpack for it; `None` if it cannot.
    pub(super) own_by_cri: Option<Unpacks>,
    /// Those of CRI's runtime classes, and of its default, beside it.
    pub(super) others: Vec<Unpacks>,
    /// Whether the CRI plugin was there to say so.
    by_cri: bool,
}

/// What one start of containerd said: it reads its configuration then and not again.
#[derive(Default)]
pub(super) struct Known(Mutex<Option<(Start, Arc<Snapshotters>)>>);

/// Tells one start of containerd from the next: it makes its socket anew (`sys.CreateUnixSocket`).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Start {
    device: u64,
    inode: u64,
    /// An inode's number is soon used again.
    changed: (i64, i64),
}

impl Start {
    fn of(socket: &Path) -> Option<Self> {
        let socket = std::fs::metadata(socket).ok()?;
        Some(Self {
            device: socket.dev(),
            inode: socket.ino(),
            changed: (socket.ctime(), socket.ctime_nsec()),
        })
    }
}

/// What the containerd that runs now has, asked once for each of its starts; `None` when something else listens.
pub(super) async fn look(shared: &Shared) -> Result<Option<Arc<Snapshotters>>, Failure> {
    // Taken before anything is asked, so that what a later start says is never kept as an earlier one's.
    let start = Start::of(shared.client.address());
    {
        let known = shared
            .known
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((of, snapshotters)) = known.as_ref()
            && Some(*of) == start
        {
            return Ok(Some(snapshotters.clone()));
        }
    }
    if shared.client.version().await?.is_none() {
        return Ok(None);
    }
    let snapshotters = Arc::new(Snapshotters::of(shared).await?);
    // A plugin that is not there may only not be there yet.
    if let Some(start) = start.filter(|_| snapshotters.by_cri) {
        let mut known = shared
            .known
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Some((start, snapshotters.clone()));
    }
    Ok(Some(snapshotters))
}

impl Snapshotters {
    /// Asks the CRI plugin. Without one, or in a namespace it does not look at, there is only the worker's own.
    pub(super) async fn of(shared: &Shared) -> Result<Self, Failure> {
        let own = shared.snapshotter.clone();
        let mut used = Vec::new();
        let mut by_cri = false;
        if shared.client.is_in_namespace(seen::CRI_NAMESPACE) {
            match shared.client.cri().unpacks().await {
                Ok(unpacks) => (used, by_cri) = (unpacks, true),
                Err(failure) => tracing::debug!(%failure, "no CRI"),
            }
        }
        let (mut of_own, mut others): (Vec<_>, Vec<_>) = used
            .into_iter()
            .partition(|unpacks| unpacks.snapshotter == own);
        if !others.is_empty() {
            // A class whose snapshotter is not there starts no container, and is no reason to fail a pull.
            let loaded = shared.client.snapshotters().await?;
            others.retain(|unpacks| loaded.contains(&unpacks.snapshotter));
        }
        Ok(Self {
            own,
            own_by_cri: of_own.pop(),
            others,
            by_cri,
        })
    }

    /// All of them, the worker's own first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter().map(|other| other.snapshotter.as_str());
        std::iter::once(self.own.as_str()).chain(others)
    }
}
