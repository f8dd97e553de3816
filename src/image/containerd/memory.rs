//! How much memory pulls use for bytes on their way, all of them together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is counted in so many bytes.
const UNIT: u64 = 64 << 10;

/// A number of bytes that those who hold some have to share.
#[derive(Clone)]
pub(super) struct Memory {
    units: Arc<Semaphore>,
    most: u32,
}

/// A part of it, until dropped.
pub(super) struct Held {
    _permit: OwnedSemaphorePermit,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            units: Arc::new(Semaphore::new(most as usize)),
            most,
        }
    }

    /// Waits for so many bytes, in the order of asking; more than there are get all there are.
    pub(super) async fn hold(&self, bytes: u64) -> Option<Held> {
        let units = self.units(bytes);
        let permit = self.units.clone().acquire_many_owned(units).await;
        permit.ok().map(|permit| Held { _permit: permit })
    }

    /// So many bytes, if they are there at once.
    pub(super) fn try_hold(&self, bytes: u64) -> Option<Held> {
        let units = self.units(bytes);
        let permit = self.units.clone().try_acquire_many_owned(units);
        permit.ok().map(|permit| Held { _permit: permit })
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT))
            .unwrap_or(u32::MAX)
            .min(self.most)
    }
}
