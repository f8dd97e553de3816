//! Hosts that asked to be left alone for a while (`429`, or `503` with `Retry-After`): until then no
//! request goes there, so that one pull finds out for all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::domain::failure::{Failure, FailureKind};

/// How long a host is left alone that answers `429` and does not say for how long.
const DEFAULT_HOLD: Duration = Duration::from_secs(1);
/// Longest time that all pulls stay away for one answer. A limit is often that of one account or one
/// repository, so that a longer wait is only for the pull that was told so.
const MAX_HOLD: Duration = Duration::from_secs(60);
/// Most hosts that are kept.
const MAX_HOSTS: usize = 1024;

/// Until when which host is left alone, and the kind of its refusal.
#[derive(Default)]
pub(super) struct Holds(Mutex<HashMap<String, (Instant, FailureKind)>>);

impl Holds {
    /// Takes note of an answer of a host.
    pub(super) fn note(
        &self,
        authority: &str,
        status: StatusCode,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let (kind, hold) = match (status, retry_after) {
            (StatusCode::TOO_MANY_REQUESTS, asked) => {
                (FailureKind::RateLimited, asked.unwrap_or(DEFAULT_HOLD))
            }
            (StatusCode::SERVICE_UNAVAILABLE, Some(asked)) => {
                (FailureKind::RegistryUnavailable, asked)
            }
            _ => return,
        };
        let until = now + hold.min(MAX_HOLD);
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if holds.len() >= MAX_HOSTS {
            holds.retain(|_, (until, _)| *until > now);
        }
        if holds.len() >= MAX_HOSTS {
            holds.clear();
        }
        let held = holds.entry(authority.to_owned()).or_insert((until, kind));
        // A request that was under way must not make a longer wait shorter.
        if held.0 <= until {
            *held = (until, kind);
        }
    }

    /// The failure of a request that is not sent because the host is to be left alone.
    pub(super) fn refuse(&self, authority: &str, what: &str, now: Instant) -> Option<Failure> {
        let holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, kind) = holds.get(authority)?;
        let left = until.checked_duration_since(now)?;
        if left.is_zero() {
            return None;
        }
        let message = format!(
            "{what}: not asked, as {authority} wants no requests for another {:.1} s",
            left.as_secs_f64()
        );
        let mut failure = Failure::new(*kind, message);
        failure.retry_after = Some(left);
        Some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_left_alone_for_as_long_as_it_asks_within_bounds() {
        for (status, asked, held, kind) in [
            (429, Some(7), Some(7), FailureKind::RateLimited),
            (429, None, Some(1), FailureKind::RateLimited),
            (429, Some(0), None, FailureKind::RateLimited),
            (429, Some(3600), Some(60), FailureKind::RateLimited),
            (503, Some(5), Some(5), FailureKind::RegistryUnavailable),
            (503, None, None, FailureKind::RegistryUnavailable),
            (500, Some(5), None, FailureKind::RegistryUnavailable),
            (200, Some(5), None, FailureKind::RegistryUnavailable),
        ] {
            let (holds, now) = (Holds::default(), Instant::now());
            let status = StatusCode::from_u16(status).unwrap();
            holds.note("a.io", status, asked.map(Duration::from_secs), now);
            let refused = holds.refuse("a.io", "x", now);
            let left = refused.as_ref().and_then(|failure| failure.retry_after);
            assert_eq!(left, held.map(Duration::from_secs), "{status} {asked:?}");
            if let (Some(failure), Some(held)) = (refused, held) {
                assert_eq!(failure.kind, kind);
                let after = now + Duration::from_secs(held);
                assert!(holds.refuse("a.io", "x", after).is_none());
            }
            assert!(holds.refuse("b.io", "x", now).is_none());
        }
    }

    #[test]
    fn a_shorter_wait_does_not_end_a_longer_one_and_hosts_are_bounded() {
        let (holds, now) = (Holds::default(), Instant::now());
        for seconds in [20, 1] {
            let asked = Some(Duration::from_secs(seconds));
            holds.note("a.io", StatusCode::TOO_MANY_REQUESTS, asked, now);
        }
        let left = holds.refuse("a.io", "x", now).unwrap().retry_after;
        assert_eq!(left, Some(Duration::from_secs(20)));
        for n in 0..2 * MAX_HOSTS {
            holds.note(&format!("h{n}"), StatusCode::TOO_MANY_REQUESTS, None, now);
        }
        assert!(holds.0.lock().unwrap().len() <= MAX_HOSTS);
    }
}
