//! What a dispatcher counts. `deploy/monitoring/README.md` has the list for users.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::{Census, LeaseRequest, Observer, Seen};
use crate::domain::failure::FailureKind;
use crate::domain::status::{JobPhase, Outcome};
use crate::wire::event::{JobEvent, JobEventKind, PullState};

/// Bounds of the broker's answering times in seconds; a lease of 5 s waits for half a second.
const ROUND_TRIP_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// Bounds of the durations of jobs in seconds: a second to a day.
const JOB_BUCKETS: [f64; 12] = [
    1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0, 43_200.0, 86_400.0,
];
/// Whoever keeps the lease and has not gone round for this long never will. The longest that it has to do at once is to
/// wait for the end of a leadership: half of a lease, which is five minutes at most.
const KEEPER_STUCK_AFTER: Duration = Duration::from_secs(180);
/// The same of who leads, which may have ten thousand tasks to release to a broker that takes a minute for each thousand.
const LEADER_STUCK_AFTER: Duration = Duration::from_secs(900);

/// The counters, and when the dispatcher's loops last went round.
pub struct Metrics {
    leader: IntGauge,
    leaderships: IntCounter,
    leadership_failures: IntCounter,
    jobs: IntGaugeVec,
    pulls: IntGaugeVec,
    nodes: IntGaugeVec,
    job_events: IntCounterVec,
    jobs_ended: IntCounterVec,
    job_duration: Histogram,
    failed_pulls: IntCounterVec,
    released: IntCounter,
    pull_events: IntCounterVec,
    round_trip: HistogramVec,
    unanswered: IntCounterVec,
    turns: Mutex<Turns>,
}

/// When each loop went round last; `None` while it does not run.
#[derive(Default)]
struct Turns {
    keeper: Option<Instant>,
    leader: Option<Instant>,
}

fn gauges(name: &str, help: &str, label: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &[label])
}

fn counters(name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), &[label])
}

impl Metrics {
    /// Makes the counters and enters them.
    ///
    /// # Errors
    /// A metric's name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let round_trip = HistogramOpts::new(
            "prewarm_dispatcher_broker_round_trip_seconds",
            "Time until the broker answered for the lease, by request: look, write",
        );
        let job_duration = HistogramOpts::new(
            "prewarm_job_duration_seconds",
            "Time from the start of a job, or a round of it, to its end",
        );
        let metrics = Self {
            leader: IntGauge::new(
                "prewarm_dispatcher_leader",
                "1 while this process leads, else 0",
            )?,
            leaderships: IntCounter::new(
                "prewarm_dispatcher_leaderships_total",
                "How often this process began to lead",
            )?,
            leadership_failures: IntCounter::new(
                "prewarm_dispatcher_leadership_failures_total",
                "How often something failed while leading, and everything was read back",
            )?,
            jobs: gauges(
                "prewarm_jobs",
                "Jobs by phase; 0 where another leads",
                "phase",
            )?,
            pulls: gauges(
                "prewarm_pulls",
                "Pulls of jobs that have not ended, by state; 0 where another leads",
                "state",
            )?,
            nodes: gauges(
                "prewarm_nodes",
                "Nodes by presence; 0 where another leads",
                "presence",
            )?,
            job_events: counters(
                "prewarm_job_events_total",
                "Events told of jobs, by kind",
                "event",
            )?,
            jobs_ended: counters(
                "prewarm_jobs_ended_total",
                "Jobs that ended, by outcome",
                "outcome",
            )?,
            job_duration: Histogram::with_opts(job_duration.buckets(JOB_BUCKETS.to_vec()))?,
            failed_pulls: counters(
                "prewarm_job_failed_pulls_total",
                "Failed pulls of jobs and rounds that ended, by kind of failure",
                "kind",
            )?,
            released: IntCounter::new("prewarm_pulls_released_total", "Pulls released to nodes")?,
            pull_events: counters(
                "prewarm_pull_events_total",
                "What workers told of pulls, by state",
                "state",
            )?,
            round_trip: HistogramVec::new(
                round_trip.buckets(ROUND_TRIP_BUCKETS.to_vec()),
                &["request"],
            )?,
            unanswered: counters(
                "prewarm_dispatcher_broker_unanswered_total",
                "Requests for the lease that the broker did not answer in time, by request: look, write",
                "request",
            )?,
            turns: Mutex::default(),
        };
        metrics.entered(registry)
    }

    fn entered(self, registry: &Registry) -> Result<Self, prometheus::Error> {
        self.enter(registry)?;
        self.begin();
        Ok(self)
    }

    fn enter(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.leader.clone()))?;
        registry.register(Box::new(self.leaderships.clone()))?;
        registry.register(Box::new(self.leadership_failures.clone()))?;
        registry.register(Box::new(self.jobs.clone()))?;
        registry.register(Box::new(self.pulls.clone()))?;
        registry.register(Box::new(self.nodes.clone()))?;
        registry.register(Box::new(self.job_events.clone()))?;
        registry.register(Box::new(self.jobs_ended.clone()))?;
        registry.register(Box::new(self.job_duration.clone()))?;
        registry.register(Box::new(self.failed_pulls.clone()))?;
        registry.register(Box::new(self.released.clone()))?;
        registry.register(Box::new(self.pull_events.clone()))?;
        registry.register(Box::new(self.round_trip.clone()))?;
        registry.register(Box::new(self.unanswered.clone()))
    }

    /// Has every series there from the start: of a counter that appears with its first increment, `rate` never sees it.
    fn begin(&self) {
        self.census(&Census::default());
        for kind in JobEventKind::ALL {
            self.job_events.with_label_values(&[kind.token()]);
        }
        for outcome in Outcome::ALL {
            self.jobs_ended.with_label_values(&[outcome.as_str()]);
        }
        for kind in FailureKind::ALL {
            self.failed_pulls.with_label_values(&[kind.as_str()]);
        }
        for state in PullState::ALL {
            self.pull_events.with_label_values(&[state.as_str()]);
        }
        for request in LeaseRequest::ALL {
            self.round_trip.with_label_values(&[request.as_str()]);
            self.unanswered.with_label_values(&[request.as_str()]);
        }
    }

    /// Whether the dispatcher's loops go round.
    ///
    /// # Errors
    /// Which one does not, and since when.
    pub fn liveness(&self) -> Result<(), String> {
        let turns = self.turns();
        for (what, turned, limit) in [
            ("lease", turns.keeper, KEEPER_STUCK_AFTER),
            ("leader", turns.leader, LEADER_STUCK_AFTER),
        ] {
            let stands = turned.map(|at| at.elapsed()).unwrap_or_default();
            if stands > limit {
                let seconds = stands.as_secs();
                return Err(format!(
                    "dispatcher: the loop of the {what} has stood for {seconds} s"
                ));
            }
        }
        Ok(())
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if leads {
            self.leaderships.inc();
        } else {
            self.census(&Census::default());
            self.turns().leader = None;
        }
    }

    fn census(&self, census: &Census) {
        for (phase, jobs) in JobPhase::ALL.iter().zip(census.jobs) {
            let gauge = self.jobs.with_label_values(&[phase.as_str()]);
            gauge.set(i64::from(jobs));
        }
        let pulls = census.pulls;
        for (state, number) in [
            ("pending", pulls.pending),
            ("active", pulls.active),
            ("succeeded", pulls.succeeded),
            ("failed", pulls.failed),
        ] {
            self.pulls
                .with_label_values(&[state])
                .set(i64::from(number));
        }
        for (presence, number) in [
            ("present", census.nodes_present),
            ("absent", census.nodes_absent),
        ] {
            let gauge = self.nodes.with_label_values(&[presence]);
            gauge.set(i64::from(number));
        }
    }

    fn told(&self, event: &JobEvent) {
        self.job_events
            .with_label_values(&[event.event.token()])
            .inc();
        let ended = matches!(
            event.event,
            JobEventKind::Completed | JobEventKind::Cancelled
        );
        if let Some(outcome) = event.outcome.filter(|_| ended) {
            self.jobs_ended.with_label_values(&[outcome.as_str()]).inc();
        }
        if !ended && event.event != JobEventKind::RoundCompleted {
            return;
        }
        if let Some(millis) = event.duration_millis {
            self.job_duration
                .observe(Duration::from_millis(millis).as_secs_f64());
        }
        for group in &event.failures {
            let counter = self.failed_pulls.with_label_values(&[group.kind.as_str()]);
            counter.inc_by(u64::from(group.pulls));
        }
    }
}

impl Observer for Metrics {
    fn saw(&self, seen: Seen<'_>) {
        match seen {
            Seen::Leads(leads) => self.leads(leads),
            Seen::LeadershipFailed => self.leadership_failures.inc(),
            Seen::KeeperTurned => self.turns().keeper = Some(Instant::now()),
            Seen::LeaderTurned => {
                let mut turns = self.turns();
                // A last word of one that no longer leads would never be followed by another.
                turns.leader = (self.leader.get() == 1).then(Instant::now);
            }
            Seen::Asked(request, Some(took)) => {
                let histogram = self.round_trip.with_label_values(&[request.as_str()]);
                histogram.observe(took.as_secs_f64());
            }
            Seen::Asked(request, None) => {
                self.unanswered.with_label_values(&[request.as_str()]).inc();
            }
            Seen::Census(census) => self.census(census),
            Seen::Told(event) => self.told(event),
            Seen::Released => self.released.inc(),
            Seen::Heard(state) => self.pull_events.with_label_values(&[state.as_str()]).inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::event::FailureGroup;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|there| there == *line), "{line}\n{text}");
        }
    }

    #[test]
    fn who_no_longer_leads_has_no_jobs_and_cannot_be_stuck_leading() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.saw(Seen::Leads(true));
        let census = Census {
            jobs: [0, 2, 0, 0, 1, 0],
            nodes_present: 7,
            ..Census::default()
        };
        metrics.saw(Seen::Census(&census));
        metrics.saw(Seen::LeaderTurned);
        assert!(metrics.turns().leader.is_some());
        let leading = [
            "prewarm_dispatcher_leader 1",
            r#"prewarm_jobs{phase="Running"} 2"#,
            r#"prewarm_jobs{phase="Completed"} 1"#,
            r#"prewarm_nodes{presence="present"} 7"#,
        ];
        has(&text(&registry), &leading);
        metrics.saw(Seen::Leads(false));
        metrics.saw(Seen::LeaderTurned);
        assert!(metrics.turns().leader.is_none());
        let standing_by = [
            "prewarm_dispatcher_leader 0",
            "prewarm_dispatcher_leaderships_total 1",
            r#"prewarm_jobs{phase="Running"} 0"#,
            r#"prewarm_nodes{presence="present"} 0"#,
        ];
        has(&text(&registry), &standing_by);
        assert_eq!(metrics.liveness(), Ok(()));
    }

    #[test]
    fn a_loop_that_stands_is_named() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        metrics.saw(Seen::KeeperTurned);
        assert_eq!(metrics.liveness(), Ok(()));
        let long_ago = Instant::now().checked_sub(KEEPER_STUCK_AFTER + Duration::from_secs(1));
        metrics.turns().keeper = long_ago;
        let told = metrics.liveness().unwrap_err();
        assert!(
            told.contains("loop of the lease") && told.contains("181 s"),
            "{told}"
        );
        metrics.saw(Seen::KeeperTurned);
        assert_eq!(metrics.liveness(), Ok(()));
    }

    #[test]
    fn a_leaders_loop_that_stands_is_named_while_it_leads() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        metrics.saw(Seen::KeeperTurned);
        metrics.saw(Seen::Leads(true));
        metrics.saw(Seen::LeaderTurned);
        assert_eq!(metrics.liveness(), Ok(()));
        // Effects are done one after another, and many may take long: longer than the lease's loop may stand.
        let since = |limit: Duration| Instant::now().checked_sub(limit + Duration::from_secs(1));
        metrics.turns().leader = since(KEEPER_STUCK_AFTER);
        assert_eq!(metrics.liveness(), Ok(()));
        metrics.turns().leader = since(LEADER_STUCK_AFTER);
        let told = metrics.liveness().unwrap_err();
        assert!(
            told.contains("loop of the leader") && told.contains("901 s"),
            "{told}"
        );
        metrics.saw(Seen::Leads(false));
        assert_eq!(metrics.liveness(), Ok(()));
    }

    #[test]
    fn the_end_of_a_job_is_counted_once_with_its_outcome_time_and_failures() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let event = |event, outcome| JobEvent {
            event,
            outcome,
            duration_millis: Some(90_000),
            failures: vec![FailureGroup {
                kind: FailureKind::NodeAbsent,
                pulls: 3,
                nodes: vec![],
                message: String::new(),
            }],
            ..JobEvent::rejected(None, 1, vec![])
        };
        let outcome = Some(Outcome::PartiallyFailed);
        metrics.saw(Seen::Told(&event(JobEventKind::Accepted, None)));
        metrics.saw(Seen::Told(&event(JobEventKind::Completed, outcome)));
        // Told of a job that has ended long ago.
        metrics.saw(Seen::Told(&event(JobEventKind::Deleted, outcome)));
        has(
            &text(&registry),
            &[
                r#"prewarm_job_events_total{event="accepted"} 1"#,
                r#"prewarm_job_events_total{event="deleted"} 1"#,
                r#"prewarm_jobs_ended_total{outcome="PartiallyFailed"} 1"#,
                r#"prewarm_job_failed_pulls_total{kind="NodeAbsent"} 3"#,
                r#"prewarm_job_duration_seconds_bucket{le="60"} 0"#,
                r#"prewarm_job_duration_seconds_bucket{le="180"} 1"#,
                "prewarm_job_duration_seconds_count 1",
            ],
        );
    }
}
