//! A limit on the bytes in a second that all pulls together take from registries.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much may come at once after a while without any.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket, kept as the time at which it will be full of debt no more.
pub(super) struct Throttle {
    rate: f64,
    paid_until: Mutex<Instant>,
}

impl Throttle {
    /// `rate` is in bytes a second, and not zero.
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: rate as f64,
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes more are within the limit.
    pub(super) async fn pass(&self, bytes: usize) {
        let until = {
            let mut paid_until = self
                .paid_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = now
                .checked_sub(BURST)
                .map_or(now, |start| start.max(*paid_until));
            *paid_until = start + Duration::from_secs_f64(bytes as f64 / self.rate);
            *paid_until
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate() {
        let throttle = Throttle::new(1_000_000);
        let started = Instant::now();
        for _ in 0..100 {
            throttle.pass(100_000).await;
        }
        let took = started.elapsed().as_secs_f64();
        assert!((9.5..10.5).contains(&took), "{took}");
    }
}
