//! The shell's clocks.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::time::Timestamp;

/// Time that never runs backwards and goes on while the machine sleeps.
pub(super) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time of day as it was at the start, moved on by a clock that never steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began: Timestamp,
    since: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let millis = epoch.map_or(0, |time| {
            i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
        });
        Self {
            began: Timestamp::from_millis(millis),
            since: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.began.after(self.since.elapsed())
    }
}
