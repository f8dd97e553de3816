//! Progress from real bytes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::plan::Image;
use crate::domain::image::Digest;
use crate::domain::progress::{PullPhase, PullProgress};
use crate::image::ProgressSink;

/// Sums up what is there of each blob, and what is unpacked of each layer, for whoever watches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Meter(Arc<Shared>);

struct Shared {
    sink: ProgressSink,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    blobs: Tally<Digest>,
    /// By snapshotter and layer: an image may have a layer twice.
    layers: Tally<(usize, usize)>,
    committing: bool,
}

/// Which of the layers, for which of the snapshotters.
#[derive(Clone)]
pub(super) struct LayerMeter {
    meter: Meter,
    layer: (usize, usize),
}

impl LayerMeter {
    /// Says how many of the layer's bytes are unpacked; the first word says what was so before.
    pub(super) fn set(&self, bytes: u64) {
        self.meter
            .change(|counts| counts.layers.set(&self.layer, bytes));
    }
}

impl Meter {
    pub(super) fn new(sink: ProgressSink) -> Self {
        let counts = Mutex::default();
        Self(Arc::new(Shared { sink, counts }))
    }

    /// Begins to count an image that is unpacked for so many snapshotters. Its manifests do not count: they came with
    /// the answer to what it is.
    pub(super) fn start(&self, image: &Image, snapshotters: usize) {
        let blobs = image.blobs().into_iter();
        let blobs = blobs.map(|blob| (blob.digest.clone(), blob.size));
        let layers = &image.manifest.layers;
        let layers = (0..snapshotters).flat_map(|snapshotter| {
            let numbered = layers.iter().enumerate();
            numbered.map(move |(number, layer)| ((snapshotter, number), layer.size))
        });
        let counts = Counts {
            blobs: Tally::of(blobs),
            layers: Tally::of(layers),
            committing: false,
        };
        self.change(|known| *known = counts);
    }

    /// Says how many bytes of a blob are there; the first word says what was there before. Fewer than before after a
    /// corrupt copy.
    pub(super) fn set(&self, digest: &Digest, bytes: u64) {
        self.change(|counts| counts.blobs.set(digest, bytes));
    }

    /// What counts a layer as it is unpacked for a snapshotter, by their numbers.
    pub(super) fn layer(&self, snapshotter: usize, layer: usize) -> LayerMeter {
        LayerMeter {
            meter: self.clone(),
            layer: (snapshotter, layer),
        }
    }

    /// Everything is there and unpacked for this snapshotter: somebody did it who tells no bytes.
    pub(super) fn complete(&self, snapshotter: usize) {
        self.change(|counts| {
            counts.blobs.complete(|_| true);
            counts.layers.complete(|(of, _)| *of == snapshotter);
        });
    }

    /// Everything is there and unpacked; what follows has no bytes to count.
    pub(super) fn committing(&self) {
        self.change(|counts| counts.committing = true);
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts: MutexGuard<'_, Counts> =
            self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        let now = counts.progress();
        self.0.sink.send_if_modified(|told| {
            let is_news = *told != now;
            *told = now;
            is_news
        });
    }
}

impl Counts {
    fn progress(&self) -> PullProgress {
        let (blobs, layers) = (&self.blobs.sum, &self.layers.sum);
        let phase = if self.committing {
            PullPhase::Committing
        } else if blobs.done == blobs.total && layers.total > 0 {
            PullPhase::Unpacking
        } else {
            PullPhase::Downloading
        };
        PullProgress {
            phase,
            bytes_done: blobs.done,
            bytes_total: blobs.total,
            bytes_present: blobs.present,
            unpack_done: layers.done,
            unpack_total: layers.total,
            unpack_present: layers.present,
        }
    }
}

/// Bytes of several things, and their sums.
struct Tally<K> {
    parts: HashMap<K, Part>,
    sum: Bytes,
}

#[derive(Clone, Copy, Default)]
struct Bytes {
    total: u64,
    done: u64,
    present: u64,
}

#[derive(Clone, Copy)]
struct Part {
    bytes: Bytes,
    /// Whether anything was said of it.
    known: bool,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self {
            parts: HashMap::new(),
            sum: Bytes::default(),
        }
    }
}

impl<K: Eq + Hash> Tally<K> {
    fn of(parts: impl Iterator<Item = (K, u64)>) -> Self {
        let mut tally = Self::default();
        for (key, total) in parts {
            let bytes = Bytes {
                total,
                ..Bytes::default()
            };
            let known = false;
            tally.parts.insert(key, Part { bytes, known });
            tally.sum.total = tally.sum.total.saturating_add(total);
        }
        tally
    }

    /// Takes a word on a part; of others than those that were announced there is none.
    fn set(&mut self, key: &K, done: u64) {
        let Some(part) = self.parts.get_mut(key) else {
            return;
        };
        let before = part.bytes;
        let done = done.min(before.total);
        part.bytes.done = done;
        part.bytes.present = match part.known {
            // What was there before may turn out to be no good.
            true => before.present.min(done),
            false => done,
        };
        part.known = true;
        let replace = |sum: u64, before: u64, after: u64| sum.saturating_sub(before) + after;
        self.sum.done = replace(self.sum.done, before.done, part.bytes.done);
        self.sum.present = replace(self.sum.present, before.present, part.bytes.present);
    }

    fn complete(&mut self, which: impl Fn(&K) -> bool) {
        for (_, part) in self.parts.iter_mut().filter(|(key, _)| which(key)) {
            self.sum.done += part.bytes.total - part.bytes.done;
            part.bytes.done = part.bytes.total;
            part.known = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(tally: &Tally<u8>) -> (u64, u64, u64) {
        let Bytes {
            total,
            done,
            present,
        } = tally.sum;
        (done, present, total)
    }

    #[test]
    fn the_first_word_says_what_was_there() {
        let mut tally = Tally::of([(1, 100), (2, 50)].into_iter());
        assert_eq!(sums(&tally), (0, 0, 150));
        tally.set(&1, 30);
        tally.set(&1, 60);
        tally.set(&2, 0);
        tally.set(&2, 50);
        assert_eq!(sums(&tally), (110, 30, 150));
        tally.set(&1, 0);
        assert_eq!(sums(&tally), (50, 0, 150), "what was there was corrupt");
        tally.set(&1, 100);
        assert_eq!(sums(&tally), (150, 0, 150));
    }

    #[test]
    fn what_is_not_part_of_it_does_not_count_and_nothing_counts_more_than_it_is() {
        let mut tally = Tally::of([(1, 100)].into_iter());
        tally.set(&9, 70);
        tally.set(&1, 0);
        tally.set(&1, 170);
        assert_eq!(sums(&tally), (100, 0, 100));
        let mut untold = Tally::of([(1, 100), (2, 50)].into_iter());
        untold.set(&1, 0);
        untold.set(&1, 30);
        untold.complete(|key| *key == 1);
        assert_eq!(sums(&untold), (100, 0, 150));
    }
}
