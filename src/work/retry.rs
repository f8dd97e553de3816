//! How long to wait before trying again, with jitter from a small seeded generator.

use std::time::Duration;

/// Longest delay between two attempts of a pull, unless the registry asks for more.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Longest delay a registry's `Retry-After` can cause; a header of a year is a defect of the registry.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Shares of a delay by which it is varied, in thousandths: a fleet must not come back as one.
const JITTER_PER_MILLE: u64 = 100;

/// The SplitMix64 generator (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// 2014): eight bytes of state, the same numbers on every machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Anything from nothing to `most`, in milliseconds.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX - 1);
        Duration::from_millis(self.next() % (most + 1))
    }

    /// The delay, up to a tenth shorter or longer.
    pub(super) fn around(&mut self, delay: Duration) -> Duration {
        let tenth = share(delay);
        delay - tenth + self.up_to(tenth * 2)
    }

    /// The delay, up to a tenth longer.
    pub(super) fn at_least(&mut self, delay: Duration) -> Duration {
        delay + self.up_to(share(delay))
    }
}

fn share(delay: Duration) -> Duration {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(
        millis / 1_000 * JITTER_PER_MILLE + millis % 1_000 * JITTER_PER_MILLE / 1_000,
    )
}

/// `first`, doubled with every failure after the first, at most `most`.
pub(super) fn doubled(first: Duration, failures: u32, most: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    first.saturating_mul(1 << doublings).min(most)
}

/// The delay after a failed attempt: 1, 2, 4 … at most 30 s, and not less than the registry asked for.
pub(super) fn after_attempt(
    attempt: u32,
    retry_after: Option<Duration>,
    jitter: &mut Jitter,
) -> Duration {
    let backoff = doubled(Duration::from_secs(1), attempt, MAX_BACKOFF);
    let backoff = jitter.around(backoff).min(MAX_BACKOFF);
    match retry_after {
        Some(asked) => jitter.at_least(asked.min(MAX_RETRY_AFTER)).max(backoff),
        None => backoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_to_thirty_seconds_within_a_tenth() {
        let mut jitter = Jitter::new(7);
        for (attempt, seconds) in [
            (1, 1),
            (2, 2),
            (3, 4),
            (4, 8),
            (5, 16),
            (6, 30),
            (7, 30),
            (u32::MAX, 30),
        ] {
            for _ in 0..100 {
                let delay = after_attempt(attempt, None, &mut jitter).as_millis();
                let expected = seconds * 1_000;
                assert!(
                    (expected * 9 / 10..=(expected * 11 / 10).min(30_000)).contains(&delay),
                    "attempt {attempt}: {delay} ms"
                );
            }
        }
    }

    #[test]
    fn retry_after_is_obeyed_and_bounded() {
        let mut jitter = Jitter::new(7);
        for _ in 0..100 {
            let asked = Duration::from_secs(60);
            let delay = after_attempt(1, Some(asked), &mut jitter);
            assert!(delay >= asked && delay <= asked * 11 / 10, "{delay:?}");
            let year = Duration::from_secs(31_536_000);
            assert!(after_attempt(1, Some(year), &mut jitter) <= MAX_RETRY_AFTER * 11 / 10);
            let nothing = after_attempt(3, Some(Duration::ZERO), &mut jitter);
            assert!(nothing >= Duration::from_millis(3_600), "{nothing:?}");
        }
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut jitter = Jitter::new(seed);
            [(); 4].map(|()| jitter.up_to(MAX_BACKOFF))
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
