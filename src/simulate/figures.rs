//! Durations by size, in bounded memory, and what is said of them.

use std::time::Duration;

use serde::Serialize;

/// Buckets for each doubling: a duration is told to within 1/32.
const PER_DOUBLING: usize = 32;
/// Doublings of a microsecond: the last is half an hour, and what is longer counts as that.
const DOUBLINGS: usize = 31;

/// How many durations of which size, from a microsecond on.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    most: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; PER_DOUBLING * DOUBLINGS],
            count: 0,
            most: Duration::ZERO,
        }
    }
}

/// What is said of many durations, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Percentiles {
    /// How many there were.
    pub count: u64,
    /// Half took at most this long.
    pub p50: f64,
    /// Nine in ten took at most this long.
    pub p90: f64,
    /// 99 in a hundred took at most this long.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        if let Some(count) = self.counts.get_mut(bucket(duration)) {
            *count += 1;
        }
        self.count += 1;
        self.most = self.most.max(duration);
    }

    /// What is said of them; each to within 1/32, but the longest as it was.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let most = self.most.as_secs_f64() * 1e3;
        let at = |percent: u64| (self.upper_end(percent).as_secs_f64() * 1e3).min(most);
        Percentiles {
            count: self.count,
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: most,
        }
    }

    fn upper_end(&self, percent: u64) -> Duration {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return upper_end(bucket);
            }
        }
        Duration::ZERO
    }
}

/// The first doubling has a bucket for each microsecond; each that follows has as many, twice as wide.
fn bucket(duration: Duration) -> usize {
    let micros = usize::try_from(duration.as_micros()).unwrap_or(usize::MAX);
    let mut doubling = 0;
    let mut reduced = micros;
    while reduced >= 2 * PER_DOUBLING {
        reduced /= 2;
        doubling += 1;
    }
    (doubling * PER_DOUBLING + reduced).min(PER_DOUBLING * DOUBLINGS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    let doubling = (bucket / PER_DOUBLING).saturating_sub(1);
    let reduced = u64::try_from(bucket - doubling * PER_DOUBLING).unwrap_or(u64::MAX);
    let shift = u32::try_from(doubling).unwrap_or(u32::MAX);
    let end = (reduced + 1).checked_shl(shift).unwrap_or(u64::MAX);
    Duration::from_micros(end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_durations_to_within_a_32nd() {
        let mut histogram = Histogram::default();
        for millis in 1..=1_000 {
            histogram.add(Duration::from_millis(millis));
        }
        let told = histogram.percentiles();
        for (told, exact) in [(told.p50, 500.0), (told.p90, 900.0), (told.p99, 990.0)] {
            assert!(
                told >= exact && told <= exact * 33.0 / 32.0,
                "{told} for {exact}"
            );
        }
        assert_eq!((told.count, told.max), (1_000, 1_000.0));
    }

    #[test]
    fn every_duration_has_a_bucket_that_ends_at_or_after_it() {
        for micros in (0..3_000).chain([1 << 20, (1 << 30) + 12_345, 1_700_000_000]) {
            let duration = Duration::from_micros(micros);
            let end = upper_end(bucket(duration));
            assert!(
                end >= duration,
                "{duration:?} is in a bucket that ends at {end:?}"
            );
            assert!(end <= duration * 33 / 32 + Duration::from_micros(1));
        }
        assert_eq!(bucket(Duration::MAX), PER_DOUBLING * DOUBLINGS - 1);
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(Histogram::default().percentiles(), Percentiles::default());
    }
}
