//! What the workers of a simulation saw, added up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::figures::{Histogram, Percentiles};
use crate::domain::image::ImageRef;
use crate::domain::name::JobName;
use crate::wire::event::{PullState, TaskEvent};
use crate::work::run::{Observer, Seen};

/// Adds up what workers see.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    sums: Mutex<Sums>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    report: Report,
    delivery: Histogram,
    execution: Histogram,
    first_task: Option<Instant>,
    last_word: Option<Instant>,
}

/// What was seen so far.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Seconds since the simulation began.
    pub seconds: f64,
    /// Workers that run now.
    pub nodes: u64,
    /// Workers started.
    pub joined: u64,
    /// Workers ended.
    pub left: u64,
    /// Registrations that a dispatcher answered.
    pub registrations: u64,
    /// Deliveries of tasks.
    pub received: u64,
    /// Deliveries among them that were not a task's first.
    pub redelivered: u64,
    /// Attempts begun.
    pub started: u64,
    /// Attempts that failed and are followed by another.
    pub retried: u64,
    /// Pulls that succeeded.
    pub succeeded: u64,
    /// Pulls among them whose image was there already.
    pub already_present: u64,
    /// Pulls that failed for good.
    pub failed: u64,
    /// Seconds between the first delivery and the last word on a pull.
    pub busy_seconds: f64,
    /// Pulls ended a second, in that time.
    pub ended_per_second: f64,
    /// Milliseconds from the moment the broker stored a task to its first delivery; by two clocks, if
    /// the broker is on another machine.
    pub delivery_millis: Percentiles,
    /// Milliseconds from the begin of an attempt to its end.
    pub execution_millis: Percentiles,
}

impl Report {
    /// Pulls that ended.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.succeeded + self.failed
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            sums: Mutex::default(),
        }
    }
}

impl Tally {
    /// Everything up to now.
    #[must_use]
    pub fn report(&self) -> Report {
        let sums = self.sums().clone();
        let busy = sums.first_task.zip(sums.last_word);
        let busy = busy.map_or(Duration::ZERO, |(from, to)| {
            to.saturating_duration_since(from)
        });
        let mut report = sums.report;
        report.seconds = self.began.elapsed().as_secs_f64();
        report.nodes = report.joined - report.left;
        report.busy_seconds = busy.as_secs_f64();
        if !busy.is_zero() {
            // Counts of pulls are far below 2^52.
            report.ended_per_second = report.ended() as f64 / busy.as_secs_f64();
        }
        report.delivery_millis = sums.delivery.percentiles();
        report.execution_millis = sums.execution.percentiles();
        report
    }

    pub(super) fn joined(&self) {
        self.sums().report.joined += 1;
    }

    pub(super) fn left(&self) {
        self.sums().report.left += 1;
    }

    /// Who listens to one worker.
    pub(super) fn observer(this: &Arc<Self>) -> Arc<dyn Observer> {
        Arc::new(Listener {
            tally: Arc::clone(this),
            running: Mutex::default(),
        })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener {
    tally: Arc<Tally>,
    /// When the attempts that run began; as many as the node has slots.
    running: Mutex<HashMap<(JobName, ImageRef), Instant>>,
}

impl Observer for Listener {
    fn saw(&self, seen: Seen<'_>) {
        match seen {
            Seen::Registered => self.tally.sums().report.registrations += 1,
            Seen::Delivered {
                deliveries,
                stored_at,
                ..
            } => self.delivered(deliveries, stored_at),
            Seen::Told(event) => self.told(event),
            Seen::Began { .. }
            | Seen::NotRegistered(_)
            | Seen::Stored(_)
            | Seen::NotStored
            | Seen::Turned { .. } => {}
        }
    }
}

impl Listener {
    fn delivered(&self, deliveries: u32, stored_at: Option<SystemTime>) {
        let since = stored_at.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        let mut sums = self.tally.sums();
        sums.report.received += 1;
        sums.first_task.get_or_insert_with(Instant::now);
        if deliveries > 1 {
            sums.report.redelivered += 1;
        } else if let Some(since) = since {
            sums.delivery.add(since);
        }
    }

    fn told(&self, event: &TaskEvent) {
        let pull = (event.job.clone(), event.image.clone());
        let now = Instant::now();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let began = match event.state {
            PullState::Started => running.insert(pull, now).and(None),
            PullState::Retrying | PullState::Succeeded | PullState::Failed => running.remove(&pull),
        };
        let mut sums = self.tally.sums();
        let report = &mut sums.report;
        match event.state {
            PullState::Started => report.started += 1,
            PullState::Retrying => report.retried += 1,
            PullState::Failed => report.failed += 1,
            PullState::Succeeded => {
                report.succeeded += 1;
                let result = event.result.as_ref();
                report.already_present +=
                    u64::from(result.is_some_and(|result| result.already_present));
            }
        }
        if event.state != PullState::Started {
            sums.last_word = Some(now);
        }
        if let Some(began) = began {
            sums.execution.add(now.saturating_duration_since(began));
        }
    }
}
