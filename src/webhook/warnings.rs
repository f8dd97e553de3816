//! Warnings that a stranger can cause, kept to a rate: the log is not for whoever finds the port.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most warnings within [`SPAN`].
const MOST: u32 = 20;
/// See [`MOST`].
const SPAN: Duration = Duration::from_secs(10);

/// What was warned of lately.
#[derive(Default)]
pub(super) struct Warnings(Mutex<Lately>);

#[derive(Default)]
struct Lately {
    /// When the span under way began.
    since: Duration,
    warned: u32,
    left_out: u64,
}

impl Warnings {
    /// Whether to warn now, and how many warnings were left out since the last one. `now` is a time that only grows.
    pub(super) fn admit(&self, now: Duration) -> Option<u64> {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(lately.since) >= SPAN {
            lately.since = now;
            lately.warned = 0;
        }
        if lately.warned >= MOST {
            lately.left_out += 1;
            return None;
        }
        lately.warned += 1;
        Some(std::mem::take(&mut lately.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_told() {
        let warnings = Warnings::default();
        let second = Duration::from_secs(100);
        let told = (0..1_000).filter_map(|_| warnings.admit(second));
        assert_eq!(told.collect::<Vec<_>>(), [0; MOST as usize]);
        assert_eq!(warnings.admit(second + SPAN), Some(1_000 - u64::from(MOST)));
        assert_eq!(warnings.admit(second + SPAN), Some(0));
    }
}
