//! The wall clock as the worker uses it: it never goes back, and does not jump within a pull.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::time::Timestamp;

/// A step of the wall clock of at least this much is followed.
const STEP: Duration = Duration::from_secs(1);

/// Wall-clock time that ignores steps back: a worker whose heartbeats waited for the clock to catch up would count as
/// gone. It follows steps forward, but not while pulls run: the first setting of the clock after a machine's start would
/// end each of them by its timeout. A suspend is no step, its time counts.
#[derive(Debug)]
pub(super) struct Clock {
    wall: Timestamp,
    /// On the clock that counts suspends.
    at: Duration,
    held: bool,
}

/// Since the machine started, suspends included (`CLOCK_BOOTTIME` of clock_gettime(2)).
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp::EPOCH.after(since.unwrap_or_default())
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            wall: wall(),
            at: since_boot(),
            held: false,
        }
    }

    /// Whether steps forward wait: from now on, while `held`.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub(super) fn now(&mut self) -> Timestamp {
        let steady = self.wall.after(since_boot().saturating_sub(self.at));
        let wall = wall();
        if !self.held && wall.since(steady) >= STEP {
            self.wall = wall;
            self.at = since_boot();
            return wall;
        }
        steady
    }

    /// What this clock will show when the wall clock shows `at`. They differ once the wall clock was set back: what others
    /// fixed by the true time must not come too early for that.
    pub(super) fn when_wall_shows(&mut self, at: Timestamp) -> Timestamp {
        self.now().after(at.since(wall()))
    }

    /// Sleeps until then; for ever without a time.
    pub(super) fn sleep_until(
        &mut self,
        at: Option<Timestamp>,
    ) -> impl Future<Output = ()> + use<> {
        let left = at.map(|at| at.since(self.now()));
        async move {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_is_over_after_its_sleep() {
        let mut clock = Clock::new();
        for millis in [0, 1, 7] {
            let at = clock.now().after(Duration::from_millis(millis));
            clock.sleep_until(Some(at)).await;
            assert!(clock.now() >= at);
        }
    }

    #[test]
    fn what_is_fixed_by_the_wall_clock_does_not_come_earlier_after_a_step_back() {
        let mut clock = Clock::new();
        // As after a step back by an hour.
        clock.wall = wall().after(Duration::from_secs(3_600));
        let deadline = wall().after(Duration::from_secs(60));
        let left = clock.when_wall_shows(deadline).since(clock.now());
        assert!(
            left > Duration::from_secs(59) && left <= Duration::from_secs(60),
            "{left:?}"
        );
        let passed = clock.when_wall_shows(Timestamp::EPOCH);
        assert!(passed <= clock.now(), "what has passed stays so");
    }

    #[test]
    fn a_step_back_is_ignored_and_a_step_forward_followed() {
        let mut clock = Clock::new();
        clock.wall = wall().after(Duration::from_secs(3_600));
        let ahead = clock.now();
        assert!(
            ahead.since(wall()) > Duration::from_secs(3_599),
            "the wall went back"
        );
        clock.wall = Timestamp::EPOCH;
        assert!(wall().since(clock.now()) < STEP);
    }

    #[test]
    fn a_step_forward_waits_for_the_end_of_pulls() {
        let mut clock = Clock::new();
        clock.hold(true);
        // As after a step forward by an hour.
        clock.wall = Timestamp::from_millis(clock.wall.as_millis() - 3_600_000);
        assert!(wall().since(clock.now()) > Duration::from_secs(3_599));
        clock.hold(false);
        assert!(wall().since(clock.now()) < STEP);
    }
}
