//! How far one pull is, how fast it goes, and when it may be done.

use std::collections::VecDeque;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The rate is that of so much time.
pub const RATE_WINDOW: Duration = Duration::from_secs(5);
/// No rate is told of less time than this.
const LEAST_WINDOW: Duration = Duration::from_millis(900);
/// Most samples kept: the window's, at two a second, and some that come closer together.
const MAX_SAMPLES: usize = 32;
/// Longest time that is told as left.
const MAX_SECONDS_LEFT: u64 = 7 * 24 * 60 * 60;

/// What a pull is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum PullPhase {
    /// Looking for the image on the node and asking the registry for manifests.
    #[default]
    Resolving,
    /// Fetching blobs, and perhaps unpacking what has come.
    Downloading,
    /// Everything is fetched, and not everything unpacked.
    Unpacking,
    /// Everything is unpacked: it is written to the disk, if that is set, and named.
    Committing,
}

/// How far a pull is. Every number is of compressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// What it is busy with.
    pub phase: PullPhase,
    /// Bytes that are there, those that were there before included.
    pub bytes_done: u64,
    /// Bytes of the image's configuration and layers, each once; zero until its manifest is known.
    pub bytes_total: u64,
    /// Bytes of `bytesDone` that were there before: of an earlier attempt, or of other images.
    #[serde(default)]
    pub bytes_present: u64,
    /// Bytes of layers that are unpacked, those that were unpacked before included.
    #[serde(default)]
    pub unpack_done: u64,
    /// Bytes of all layers that are to be unpacked, once for each snapshotter; zero until the manifest is known, and
    /// where nothing is to be unpacked.
    #[serde(default)]
    pub unpack_total: u64,
    /// Bytes of `unpackDone` that were unpacked before.
    #[serde(default)]
    pub unpack_present: u64,
}

impl PullProgress {
    /// Bytes that this attempt has brought.
    #[must_use]
    pub const fn fetched(&self) -> u64 {
        self.bytes_done.saturating_sub(self.bytes_present)
    }

    const fn unpacked(&self) -> u64 {
        self.unpack_done.saturating_sub(self.unpack_present)
    }
}

/// How fast a pull goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pace {
    /// Compressed bytes a second that come, over the last five seconds; absent while nothing is fetched, and for the
    /// first second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Seconds until all is fetched and unpacked if it goes on like this, an estimate; absent while it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Timestamp,
    fetched: u64,
}

/// Tells the pace of one attempt from how far it was when.
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    /// Within the window, and the last one before it.
    samples: VecDeque<Sample>,
    /// The last moment before anything was unpacked.
    unpacking_since: Option<Timestamp>,
}

impl Pacer {
    /// Takes how far the pull is now, and says how fast it went of late.
    pub fn pace(&mut self, now: Timestamp, progress: &PullProgress) -> Pace {
        if matches!(progress.phase, PullPhase::Resolving | PullPhase::Committing) {
            self.samples.clear();
            return Pace::default();
        }
        self.take(now, progress);
        let rate = self.rate();
        Pace {
            bytes_per_second: rate.filter(|_| progress.phase == PullPhase::Downloading),
            seconds_left: self.seconds_left(now, rate, progress),
        }
    }

    fn take(&mut self, now: Timestamp, progress: &PullProgress) {
        let fetched = progress.fetched();
        // Less than before: a copy was corrupt, and comes again.
        if self
            .samples
            .back()
            .is_some_and(|last| last.fetched > fetched)
        {
            self.samples.clear();
        }
        self.samples.push_back(Sample { at: now, fetched });
        let is_past = |sample: &Sample| now.since(sample.at) >= RATE_WINDOW;
        while self.samples.len() > MAX_SAMPLES || self.samples.get(1).is_some_and(is_past) {
            self.samples.pop_front();
        }
        if progress.unpacked() == 0 || self.unpacking_since.is_none() {
            self.unpacking_since = Some(now);
        }
    }

    fn rate(&self) -> Option<u64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let time = last.at.since(first.at);
        (time >= LEAST_WINDOW).then(|| per_second(last.fetched - first.fetched, time))
    }

    /// What takes longer, of what is left to fetch and what is left to unpack: they go on at the same time.
    fn seconds_left(
        &self,
        now: Timestamp,
        rate: Option<u64>,
        progress: &PullProgress,
    ) -> Option<u64> {
        let to_fetch = progress.bytes_total.saturating_sub(progress.bytes_done);
        let to_unpack = progress.unpack_total.saturating_sub(progress.unpack_done);
        // As a whole and not of late: it goes in steps of a layer where containerd unpacks.
        let unpacking = now.since(self.unpacking_since?);
        let unpack_rate =
            (!unpacking.is_zero()).then(|| per_second(progress.unpacked(), unpacking));
        let left = seconds(to_fetch, rate)?.max(seconds(to_unpack, unpack_rate)?);
        (progress.bytes_total > 0 && left <= MAX_SECONDS_LEFT).then_some(left)
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1_000 / millis).unwrap_or(u64::MAX)
}

/// The time for so many bytes, rounded up; none is needed for none.
fn seconds(bytes: u64, rate: Option<u64>) -> Option<u64> {
    if bytes == 0 {
        return Some(0);
    }
    rate.filter(|rate| *rate > 0)
        .map(|rate| bytes.div_ceil(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000 + millis)
    }

    fn downloading(done: u64, total: u64) -> PullProgress {
        PullProgress {
            phase: PullPhase::Downloading,
            bytes_done: done,
            bytes_total: total,
            ..PullProgress::default()
        }
    }

    #[test]
    fn a_steady_download_has_its_rate_and_its_time_left() {
        let mut pacer = Pacer::default();
        let mut told = Vec::new();
        for half in 0..=20 {
            let progress = downloading(half * 5 * MIB, 200 * MIB);
            told.push(pacer.pace(at(i64::try_from(half).unwrap() * 500), &progress));
        }
        assert_eq!(told[0], Pace::default(), "nothing is known at first");
        assert_eq!(told[1], Pace::default());
        for (half, pace) in told.iter().enumerate().skip(2) {
            assert_eq!(pace.bytes_per_second, Some(10 * MIB));
            let left = 20 - half.div_ceil(2) as u64;
            assert!(
                pace.seconds_left
                    .is_some_and(|told| told.abs_diff(left) <= 1),
                "{pace:?}"
            );
        }
    }

    #[test]
    fn what_was_there_before_is_no_rate() {
        let mut pacer = Pacer::default();
        let mut progress = downloading(0, 100 * MIB);
        pacer.pace(at(0), &progress);
        progress.bytes_done = 81 * MIB;
        progress.bytes_present = 80 * MIB;
        let pace = pacer.pace(at(1_000), &progress);
        assert_eq!(pace.bytes_per_second, Some(MIB));
        assert_eq!(pace.seconds_left, Some(19));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pacer = Pacer::default();
        for second in 0..=10 {
            pacer.pace(
                at(second * 1_000),
                &downloading(second as u64 * MIB, 1_000 * MIB),
            );
        }
        let mut last = Pace::default();
        for second in 11..=16 {
            last = pacer.pace(at(second * 1_000), &downloading(10 * MIB, 1_000 * MIB));
        }
        assert_eq!(last.bytes_per_second, Some(0), "it stands still");
        assert_eq!(last.seconds_left, None, "and nobody knows how long");
    }

    #[test]
    fn a_copy_that_begins_again_begins_the_rate_again() {
        let mut pacer = Pacer::default();
        pacer.pace(at(0), &downloading(0, 10 * MIB));
        pacer.pace(at(2_000), &downloading(8 * MIB, 10 * MIB));
        let pace = pacer.pace(at(3_000), &downloading(0, 10 * MIB));
        assert_eq!(pace, Pace::default());
    }

    #[test]
    fn the_slower_of_fetching_and_unpacking_counts() {
        let mut pacer = Pacer::default();
        let mut progress = downloading(0, 100 * MIB);
        progress.unpack_total = 100 * MIB;
        pacer.pace(at(0), &progress);
        progress.bytes_done = 50 * MIB;
        assert_eq!(
            pacer.pace(at(1_000), &progress).seconds_left,
            None,
            "nothing is unpacked yet"
        );
        progress.bytes_done = 100 * MIB;
        progress.unpack_done = 20 * MIB;
        progress.phase = PullPhase::Unpacking;
        let pace = pacer.pace(at(3_000), &progress);
        assert_eq!(pace.bytes_per_second, None, "nothing is fetched any more");
        assert_eq!(pace.seconds_left, Some(8), "20 MiB in 2 s, 80 MiB are left");
        progress.phase = PullPhase::Committing;
        assert_eq!(pacer.pace(at(4_000), &progress), Pace::default());
    }

    #[test]
    fn layers_that_were_unpacked_before_do_not_make_the_rest_quick() {
        let mut pacer = Pacer::default();
        let mut progress = downloading(0, 100 * MIB);
        progress.unpack_total = 100 * MIB;
        progress.unpack_done = 90 * MIB;
        progress.unpack_present = 90 * MIB;
        pacer.pace(at(0), &progress);
        progress.bytes_done = 100 * MIB;
        progress.unpack_done = 91 * MIB;
        assert_eq!(pacer.pace(at(1_000), &progress).seconds_left, Some(9));
    }

    #[test]
    fn samples_are_bounded() {
        let mut pacer = Pacer::default();
        for milli in 0..1_000 {
            pacer.pace(at(milli), &downloading(1, 2));
        }
        assert!(pacer.samples.len() <= MAX_SAMPLES + 1);
    }
}
