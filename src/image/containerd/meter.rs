//! Progress from real bytes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::domain::image::Digest;
use crate::domain::progress::{PullPhase, PullProgress};
use crate::image::ProgressSink;

/// How many bytes of each blob are there, summed up for whoever watches.
pub(super) struct Meter {
    sink: ProgressSink,
    done: Mutex<HashMap<Digest, u64>>,
}

impl Meter {
    pub(super) fn new(sink: ProgressSink) -> Self {
        Self {
            sink,
            done: Mutex::default(),
        }
    }

    pub(super) fn start(&self, total: u64) {
        self.sink.send_modify(|progress| {
            progress.phase = PullPhase::Downloading;
            progress.bytes_total = total;
        });
    }

    /// Says how many bytes of a blob are there; fewer than before after a corrupt copy.
    pub(super) fn set(&self, digest: &Digest, bytes: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let before = done.insert(digest.clone(), bytes).unwrap_or(0);
        self.sink.send_modify(|PullProgress { bytes_done, .. }| {
            *bytes_done = bytes_done.saturating_add(bytes).saturating_sub(before);
        });
    }

    pub(super) fn phase(&self, phase: PullPhase) {
        self.sink.send_modify(|progress| progress.phase = phase);
    }
}
