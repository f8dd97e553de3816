//! What workers count. `deploy/monitoring/README.md` has the list for users.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::run::{Observer, Seen};
use crate::domain::failure::FailureKind;
use crate::domain::image::ImageRef;
use crate::domain::name::JobName;
use crate::domain::node::MAX_CAPACITY;
use crate::image::Engine;
use crate::wire::event::{PullResult, PullState, TaskEvent};

/// Bounds of the times of pulls and waits in seconds: a warm cache to a large image on a slow line.
const PULL_BUCKETS: [f64; 14] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0,
];
/// Bounds of the broker's answering times in seconds.
const ROUND_TRIP_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// In the place of an engine, where none brought an image.
const NO_ENGINE: &str = "none";
/// Most tasks of one worker that are remembered between two of their facts. No more than its capacity are in hand; what
/// is above that was dropped without a word.
const MAX_REMEMBERED: usize = 2 * MAX_CAPACITY as usize;
/// A loop that has not gone round for this long never will: it has a heartbeat every few seconds.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The counters of all workers of a process.
pub struct Metrics {
    capacity: IntGauge,
    slots: IntGauge,
    registered: IntGauge,
    registrations: IntCounterVec,
    received: IntCounterVec,
    queue_wait: Histogram,
    attempts: IntCounter,
    attempt_time: HistogramVec,
    pulls: IntCounterVec,
    phases: HistogramVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    failures: IntCounterVec,
    round_trip: Histogram,
    not_stored: IntCounter,
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn times(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(PULL_BUCKETS.to_vec())
}

impl Metrics {
    /// Makes the counters and enters them.
    ///
    /// # Errors
    /// A metric's name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queue_wait = times(
            "prewarm_worker_queue_wait_seconds",
            "Time from the release of a task to the start of its first attempt",
        );
        let attempt_time = times(
            "prewarm_worker_attempt_duration_seconds",
            "Time of an attempt, by outcome: retrying, succeeded, failed",
        );
        let phases = times(
            "prewarm_worker_pull_phase_duration_seconds",
            "Time of a pull that brought something, by phase: resolve, download, unpack",
        );
        let round_trip = HistogramOpts::new(
            "prewarm_worker_broker_round_trip_seconds",
            "Time until the broker said that it keeps an event",
        );
        let metrics = Self {
            capacity: IntGauge::new("prewarm_worker_capacity", "Pulls at once")?,
            slots: IntGauge::new(
                "prewarm_worker_slots_taken",
                "Tasks in hand, those that wait or stop included",
            )?,
            registered: IntGauge::new(
                "prewarm_worker_registered",
                "Nodes of this process that a dispatcher has given their consumer",
            )?,
            registrations: counters(
                "prewarm_worker_registrations_total",
                "Registrations, by outcome: accepted, refused",
                &["outcome"],
            )?,
            received: counters(
                "prewarm_worker_tasks_received_total",
                "Tasks delivered, by delivery: first, again",
                &["delivery"],
            )?,
            queue_wait: Histogram::with_opts(queue_wait)?,
            attempts: IntCounter::new("prewarm_worker_attempts_total", "Attempts begun")?,
            attempt_time: HistogramVec::new(attempt_time, &["outcome"])?,
            pulls: counters(
                "prewarm_worker_pulls_total",
                "Pulls that ended, by outcome (succeeded, failed) and by the engine that brought the image",
                &["outcome", "engine"],
            )?,
            phases: HistogramVec::new(phases, &["phase"])?,
            bytes: counters(
                "prewarm_worker_bytes_total",
                "Compressed bytes of pulled images, by source: registry, mirror, present",
                &["source"],
            )?,
            retries: counters(
                "prewarm_worker_retries_total",
                "Attempts that failed and are followed by another, by kind of failure",
                &["kind"],
            )?,
            failures: counters(
                "prewarm_worker_failures_total",
                "Pulls given up, by kind of failure",
                &["kind"],
            )?,
            round_trip: Histogram::with_opts(round_trip.buckets(ROUND_TRIP_BUCKETS.to_vec()))?,
            not_stored: IntCounter::new(
                "prewarm_worker_events_not_stored_total",
                "Events that the broker did not keep at the first try",
            )?,
        };
        metrics.enter(registry)?;
        metrics.begin();
        Ok(metrics)
    }

    fn enter(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.capacity.clone()))?;
        registry.register(Box::new(self.slots.clone()))?;
        registry.register(Box::new(self.registered.clone()))?;
        registry.register(Box::new(self.registrations.clone()))?;
        registry.register(Box::new(self.received.clone()))?;
        registry.register(Box::new(self.queue_wait.clone()))?;
        registry.register(Box::new(self.attempts.clone()))?;
        registry.register(Box::new(self.attempt_time.clone()))?;
        registry.register(Box::new(self.pulls.clone()))?;
        registry.register(Box::new(self.phases.clone()))?;
        registry.register(Box::new(self.bytes.clone()))?;
        registry.register(Box::new(self.retries.clone()))?;
        registry.register(Box::new(self.failures.clone()))?;
        registry.register(Box::new(self.round_trip.clone()))?;
        registry.register(Box::new(self.not_stored.clone()))
    }

    /// Has every series there from the start: of a counter that appears with its first increment, `rate` never sees it.
    fn begin(&self) {
        for outcome in ["accepted", "refused"] {
            self.registrations.with_label_values(&[outcome]);
        }
        for delivery in ["first", "again"] {
            self.received.with_label_values(&[delivery]);
        }
        for state in PullState::ALL {
            if state != PullState::Started {
                self.attempt_time.with_label_values(&[state.as_str()]);
            }
        }
        self.pulls.with_label_values(&["failed", NO_ENGINE]);
        self.pulls.with_label_values(&["succeeded", NO_ENGINE]);
        for engine in Engine::ALL {
            self.pulls
                .with_label_values(&["succeeded", engine.as_str()]);
        }
        for phase in ["resolve", "download", "unpack"] {
            self.phases.with_label_values(&[phase]);
        }
        for source in ["registry", "mirror", "present"] {
            self.bytes.with_label_values(&[source]);
        }
        for kind in FailureKind::ALL {
            self.failures.with_label_values(&[kind.as_str()]);
            if !kind.is_permanent() {
                self.retries.with_label_values(&[kind.as_str()]);
            }
        }
    }

    /// Who listens to one worker.
    #[must_use]
    pub fn listener(this: &Arc<Self>) -> Arc<Listener> {
        Arc::new(Listener {
            metrics: Arc::clone(this),
            known: Mutex::default(),
        })
    }

    fn succeeded(&self, result: &PullResult) {
        let engine = Engine::ALL.map(Engine::as_str).into_iter();
        let engine = engine.clone().find(|engine| *engine == result.engine);
        let outcome = PullState::Succeeded.as_str();
        self.pulls
            .with_label_values(&[outcome, engine.unwrap_or(NO_ENGINE)])
            .inc();
        for (source, bytes) in [
            ("registry", result.bytes_registry),
            ("mirror", result.bytes_elsewhere),
            ("present", result.bytes_present),
        ] {
            self.bytes.with_label_values(&[source]).inc_by(bytes);
        }
        if result.already_present {
            return;
        }
        for (phase, millis) in [
            ("resolve", result.resolve_millis),
            ("download", result.download_millis),
            ("unpack", result.unpack_millis),
        ] {
            let histogram = self.phases.with_label_values(&[phase]);
            histogram.observe(Duration::from_millis(millis).as_secs_f64());
        }
    }
}

/// Listens to one worker.
pub struct Listener {
    metrics: Arc<Metrics>,
    known: Mutex<Known>,
}

/// What a listener knows of its worker.
#[derive(Default)]
struct Known {
    /// When the loop went round last; `None` before it began.
    turned: Option<Instant>,
    slots: u32,
    registered: bool,
    /// Why the last try to register came to nothing; empty if it did not.
    refusal: String,
    /// When tasks that were delivered for the first time had been stored, by the broker's clock.
    stored: HashMap<(JobName, ImageRef), SystemTime>,
    /// When the attempts that run began.
    running: HashMap<(JobName, ImageRef), Instant>,
}

impl Listener {
    /// Whether the node is registered.
    ///
    /// # Errors
    /// Why not.
    pub fn registration(&self) -> Result<(), String> {
        let known = self.known();
        if known.registered {
            Ok(())
        } else if known.refusal.is_empty() {
            Err("no dispatcher has answered yet".to_owned())
        } else {
            Err(known.refusal.clone())
        }
    }

    /// Whether the worker's loop goes round.
    ///
    /// # Errors
    /// Since when it does not.
    pub fn liveness(&self) -> Result<(), String> {
        let stands = self.known().turned.map(|at| at.elapsed());
        match stands.unwrap_or_default() {
            stands if stands > STUCK_AFTER => {
                let seconds = stands.as_secs();
                Err(format!("worker: its loop has stood for {seconds} s"))
            }
            _ => Ok(()),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turned(&self, slots: u32, registered: bool) {
        let mut known = self.known();
        known.turned = Some(Instant::now());
        let before = std::mem::replace(&mut known.slots, slots);
        self.metrics.slots.add(i64::from(slots) - i64::from(before));
        let before = std::mem::replace(&mut known.registered, registered);
        self.metrics
            .registered
            .add(i64::from(registered) - i64::from(before));
    }

    fn told(&self, event: &TaskEvent) {
        let metrics = &self.metrics;
        let pull = (event.job.clone(), event.image.clone());
        let mut known = self.known();
        let stored = known.stored.remove(&pull);
        if event.state == PullState::Started {
            metrics.attempts.inc();
            if let Some(stored) = stored.filter(|_| event.attempt == 1) {
                let waited = SystemTime::now().duration_since(stored);
                // Two clocks, perhaps: one that is behind makes no negative time.
                let waited = waited.unwrap_or_default();
                metrics.queue_wait.observe(waited.as_secs_f64());
            }
            remember(&mut known.running, pull, Instant::now());
            return;
        }
        if let Some(began) = known.running.remove(&pull) {
            let outcome = event.state.as_str();
            let histogram = metrics.attempt_time.with_label_values(&[outcome]);
            histogram.observe(began.elapsed().as_secs_f64());
        }
        let kind = event.failure.as_ref().map(|failure| failure.kind.as_str());
        match event.state {
            PullState::Started => {}
            PullState::Retrying => {
                if let Some(kind) = kind {
                    metrics.retries.with_label_values(&[kind]).inc();
                }
            }
            PullState::Succeeded => {
                if let Some(result) = &event.result {
                    metrics.succeeded(result);
                }
            }
            PullState::Failed => {
                let outcome = event.state.as_str();
                metrics.pulls.with_label_values(&[outcome, NO_ENGINE]).inc();
                if let Some(kind) = kind {
                    metrics.failures.with_label_values(&[kind]).inc();
                }
            }
        }
    }
}

fn remember<T>(of: &mut HashMap<(JobName, ImageRef), T>, pull: (JobName, ImageRef), at: T) {
    if of.len() >= MAX_REMEMBERED {
        of.clear();
    }
    of.insert(pull, at);
}

impl Observer for Listener {
    fn saw(&self, seen: Seen<'_>) {
        let metrics = &self.metrics;
        match seen {
            Seen::Began { capacity } => {
                self.known().turned = Some(Instant::now());
                metrics.capacity.add(i64::from(capacity));
            }
            Seen::Registered => {
                self.known().refusal.clear();
                metrics.registrations.with_label_values(&["accepted"]).inc();
            }
            Seen::NotRegistered(reason) => {
                reason.clone_into(&mut self.known().refusal);
                metrics.registrations.with_label_values(&["refused"]).inc();
            }
            Seen::Delivered {
                task,
                deliveries,
                stored_at,
            } => {
                let again = deliveries > 1;
                let delivery = if again { "again" } else { "first" };
                metrics.received.with_label_values(&[delivery]).inc();
                if let (Some(task), Some(at), false) = (task, stored_at, again) {
                    let pull = (task.job.clone(), task.image.clone());
                    remember(&mut self.known().stored, pull, at);
                }
            }
            Seen::Told(event) => self.told(event),
            Seen::Stored(after) => metrics.round_trip.observe(after.as_secs_f64()),
            Seen::NotStored => metrics.not_stored.inc(),
            Seen::Turned { slots, registered } => self.turned(slots, registered),
        }
    }
}

#[cfg(test)]
mod tests;
