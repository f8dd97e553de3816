//! What the workers of a simulation saw, added up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::figures::{Histogram, Percentiles};
use crate::domain::image::ImageRef;
use crate::domain::name::JobName;
use crate::wire::event::{PullState, TaskEvent};
use crate::wire::task::{PullTask, Run};
use crate::work::run::{Observer, Seen};

/// Most runs whose first release is remembered; the oldest gives way.
const MAX_RUNS: usize = 4_096;
/// Most tasks of one node that are remembered; it has at most 64 slots.
const MAX_IN_HAND: usize = 256;

/// Adds up what workers see.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    sums: Mutex<Sums>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    report: Report,
    runs: Runs,
    release: Histogram,
    delivery: Histogram,
    start: Histogram,
    completion: Histogram,
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
    /// Milliseconds from the release of a run's first task to that of each of its tasks: the moments at which the broker
    /// stored them.
    pub release_millis: Percentiles,
    /// Milliseconds from a task's release to its first delivery; by two clocks, if the broker is on another machine. So
    /// are the next two.
    pub delivery_millis: Percentiles,
    /// Milliseconds from a task's release to the begin of its first attempt.
    pub start_millis: Percentiles,
    /// Milliseconds from a task's release to the last word on its pull, retries included.
    pub completion_millis: Percentiles,
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
        report.release_millis = sums.release.percentiles();
        report.delivery_millis = sums.delivery.percentiles();
        report.start_millis = sums.start.percentiles();
        report.completion_millis = sums.completion.percentiles();
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
            in_hand: Mutex::default(),
        })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the first task of each run was released.
#[derive(Clone, Debug, Default)]
struct Runs(HashMap<(JobName, Run), SystemTime>);

impl Runs {
    /// How long after the first task of its run that was seen one was released.
    fn released(&mut self, task: &PullTask, at: SystemTime) -> Duration {
        let run = (task.job.clone(), task.run.clone());
        if self.0.len() >= MAX_RUNS && !self.0.contains_key(&run) {
            let oldest = self.0.iter().min_by_key(|(_, first)| **first);
            if let Some(oldest) = oldest.map(|(run, _)| run.clone()) {
                self.0.remove(&oldest);
            }
        }
        let first = self.0.entry(run).or_insert(at);
        *first = at.min(*first);
        at.duration_since(*first).unwrap_or_default()
    }
}

/// A task that a node has.
#[derive(Debug)]
struct InHand {
    released: Option<SystemTime>,
    has_started: bool,
    /// When the attempt that runs began.
    began: Option<Instant>,
}

struct Listener {
    tally: Arc<Tally>,
    in_hand: Mutex<HashMap<(JobName, ImageRef), InHand>>,
}

impl Observer for Listener {
    fn saw(&self, seen: Seen<'_>) {
        match seen {
            Seen::Registered => self.tally.sums().report.registrations += 1,
            Seen::Delivered {
                task,
                deliveries,
                stored_at,
            } => self.delivered(task, deliveries, stored_at),
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
    fn delivered(&self, task: Option<&PullTask>, deliveries: u32, stored_at: Option<SystemTime>) {
        if let Some(task) = task {
            self.take(task, stored_at);
        }
        let mut sums = self.tally.sums();
        sums.report.received += 1;
        sums.first_task.get_or_insert_with(Instant::now);
        if deliveries > 1 {
            sums.report.redelivered += 1;
        } else if let Some(at) = stored_at {
            sums.delivery.add(since(at));
            if let Some(task) = task {
                let after = sums.runs.released(task, at);
                sums.release.add(after);
            }
        }
    }

    fn take(&self, task: &PullTask, released: Option<SystemTime>) {
        let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let pull = (task.job.clone(), task.image.clone());
        if in_hand
            .get(&pull)
            .is_some_and(|had| had.released == released)
        {
            // Delivered again.
            return;
        }
        if in_hand.len() >= MAX_IN_HAND {
            // Those that were taken back have no last word.
            in_hand.clear();
        }
        let taken = InHand {
            released,
            has_started: false,
            began: None,
        };
        in_hand.insert(pull, taken);
    }

    fn told(&self, event: &TaskEvent) {
        let pull = (event.job.clone(), event.image.clone());
        let now = Instant::now();
        let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
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
        let Some(held) = in_hand.get_mut(&pull) else {
            return;
        };
        if event.state == PullState::Started {
            held.began = Some(now);
            let is_first = !std::mem::replace(&mut held.has_started, true);
            if let Some(at) = held.released.filter(|_| is_first) {
                sums.start.add(since(at));
            }
            return;
        }
        if let Some(began) = held.began.take() {
            sums.execution.add(now.saturating_duration_since(began));
        }
        if event.state.is_terminal() {
            if let Some(at) = held.released {
                sums.completion.add(since(at));
            }
            in_hand.remove(&pull);
        }
    }
}

fn since(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}
