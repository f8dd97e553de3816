//! Which snapshotters an image is unpacked for: the worker's own, and those that containers are started from by CRI.

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
}

impl Snapshotters {
    /// Asks the CRI plugin. Without one, or in a namespace it does not look at, there is only the worker's own.
    pub(super) async fn of(shared: &Shared) -> Result<Self, Failure> {
        let own = shared.snapshotter.clone();
        let mut used = Vec::new();
        if shared.client.is_in_namespace(seen::CRI_NAMESPACE) {
            match shared.client.cri().unpacks().await {
                Ok(unpacks) => used = unpacks,
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
        })
    }

    /// All of them, the worker's own first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter().map(|other| other.snapshotter.as_str());
        std::iter::once(self.own.as_str()).chain(others)
    }
}
