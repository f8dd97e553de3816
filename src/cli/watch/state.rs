//! What a watcher knows: folded from records, events and progress; no clock, no terminal.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cli::summary::Ending;
use crate::domain::failure::FailureKind;
use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};
use crate::domain::progress::{Pace, PullPhase, PullProgress};
use crate::domain::status::JobPhase;
use crate::domain::time::Timestamp;
use crate::wire::event::{Event, JobEvent, JobEventKind, PullState, TaskEvent};
use crate::wire::record::JobRecord;
use crate::wire::subject::PullKey;
use crate::wire::worker::ProgressMessage;

/// Most pulls whose progress is kept: more than a screen shows, and enough for rates.
const MAX_PULLS: usize = 4_096;
/// Most ended pulls remembered between two looks at them.
const MAX_ENDED: usize = 10_000;
/// A pull that was silent for this long is no longer shown; progress comes twice a second.
const SILENCE: Duration = Duration::from_secs(10);
/// Rates are taken over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Most samples in that window.
const MAX_SAMPLES: usize = 64;

/// Something a watcher learns.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A job's record changed.
    Record(Box<JobRecord>),
    /// A job's record is gone.
    Forgotten(JobName),
    /// A fact about a job.
    Job(JobName, Box<Event<JobEvent>>),
    /// A fact about a pull.
    Task(Box<TaskEvent>),
    /// How far a pull is.
    Progress(Box<ProgressMessage>),
}

/// One pull that goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ActivePull {
    /// The image.
    pub image: ImageRef,
    /// Which attempt.
    pub attempt: u32,
    /// Phase and bytes.
    pub progress: PullProgress,
    /// Rate and time left.
    pub pace: Pace,
    /// Why the last attempt failed, while the next is awaited.
    pub waiting_after: Option<FailureKind>,
    /// When it was last heard of, or when its next attempt is due.
    heard: Timestamp,
}

/// One pull that ended since the last look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct EndedPull {
    /// The node.
    pub node: NodeName,
    /// The image.
    pub image: ImageRef,
    /// Why it failed, if it did.
    pub failure: Option<(FailureKind, String)>,
}

/// One job.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    /// Its record, once seen.
    pub record: Option<JobRecord>,
    /// How it ended, if it has.
    pub ending: Option<Ending>,
    /// Pulls that ended since the last look, at most 10,000.
    pub ended: Vec<EndedPull>,
    /// What happened to the job itself since the last look, at most as many.
    pub news: Vec<JobEventKind>,
    samples: VecDeque<(Timestamp, u64)>,
}

/// Everything a watcher knows.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Jobs by name.
    pub jobs: BTreeMap<JobName, Job>,
    /// Pulls that go on.
    pub pulls: BTreeMap<PullKey, ActivePull>,
}

impl State {
    /// Learns something.
    pub(super) fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Record(record) => self.handle_record(*record),
            Input::Forgotten(name) => {
                if let Some(job) = self.jobs.get_mut(&name) {
                    job.record = None;
                }
            }
            Input::Job(name, event) => self.handle_job(&name, &event),
            Input::Task(event) => self.handle_task(now, &event),
            Input::Progress(message) => self.handle_progress(now, *message),
        }
    }

    fn handle_record(&mut self, record: JobRecord) {
        let name = record.metadata.name.clone();
        let job = self.jobs.entry(name.clone()).or_default();
        if job
            .ending
            .as_ref()
            .is_none_or(|ending| is_outdated(ending, &record))
        {
            job.ending = Ending::of_record(&record);
        }
        let finished = record.status.phase.is_finished();
        job.record = Some(record);
        if finished {
            self.pulls.retain(|key, _| key.job != name);
        }
    }

    fn handle_job(&mut self, name: &JobName, event: &Event<JobEvent>) {
        let job = self.jobs.entry(name.clone()).or_default();
        if job.news.len() < MAX_ENDED {
            job.news.push(event.data.event);
        }
        if let Some(ending) = Ending::of_event(name, event) {
            job.ending = Some(ending);
            self.pulls.retain(|key, _| key.job != *name);
        } else if event.data.event == JobEventKind::Started {
            job.ending = None;
        }
    }

    fn handle_task(&mut self, now: Timestamp, event: &TaskEvent) {
        let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
        match event.state {
            PullState::Succeeded | PullState::Failed => {
                self.pulls.remove(&key);
                let job = self.jobs.entry(event.job.clone()).or_default();
                if job.ended.len() < MAX_ENDED {
                    let failure = event.failure.as_ref();
                    job.ended.push(EndedPull {
                        node: event.node.clone(),
                        image: event.image.clone(),
                        failure: failure.map(|failure| (failure.kind, failure.message.clone())),
                    });
                }
            }
            PullState::Started => self.show(key, event, now, None),
            PullState::Retrying => {
                let until = event.next_attempt_at.unwrap_or(now).max(now);
                let kind = event.failure.as_ref().map(|failure| failure.kind);
                self.show(key, event, until, kind);
            }
        }
    }

    fn show(
        &mut self,
        key: PullKey,
        event: &TaskEvent,
        heard: Timestamp,
        waiting_after: Option<FailureKind>,
    ) {
        if self.pulls.len() >= MAX_PULLS && !self.pulls.contains_key(&key) {
            return;
        }
        let known = self.pulls.get(&key);
        let known = known.map(|pull| (pull.progress, pull.pace));
        let (progress, pace) = known.unwrap_or_default();
        let pull = ActivePull {
            image: event.image.clone(),
            attempt: event.attempt,
            progress,
            pace,
            waiting_after,
            heard,
        };
        self.pulls.insert(key, pull);
    }

    fn handle_progress(&mut self, now: Timestamp, message: ProgressMessage) {
        let key = PullKey::new(message.node, message.job, &message.image);
        if self.pulls.len() >= MAX_PULLS && !self.pulls.contains_key(&key) {
            return;
        }
        let pull = ActivePull {
            image: message.image,
            attempt: message.attempt,
            progress: message.progress,
            pace: message.pace,
            waiting_after: message.waiting_after,
            heard: now,
        };
        self.pulls.insert(key, pull);
    }

    /// Forgets pulls nobody speaks of any more, and takes a sample for the rates.
    pub(super) fn tick(&mut self, now: Timestamp) {
        self.pulls.retain(|_, pull| now.since(pull.heard) < SILENCE);
        let names: Vec<JobName> = self.jobs.keys().cloned().collect();
        for name in names {
            let bytes = self.bytes(&name);
            let Some(job) = self.jobs.get_mut(&name) else {
                continue;
            };
            job.samples.push_back((now, bytes));
            while job.samples.len() > MAX_SAMPLES
                || job
                    .samples
                    .front()
                    .is_some_and(|(at, _)| now.since(*at) > RATE_WINDOW)
            {
                job.samples.pop_front();
            }
        }
    }

    /// Compressed bytes a job has moved, those of its running pulls included.
    #[must_use]
    pub(super) fn bytes(&self, name: &JobName) -> u64 {
        let record = self.jobs.get(name).and_then(|job| job.record.as_ref());
        let ended = record.map_or(0, |record| {
            record.status.bytes_registry + record.status.bytes_elsewhere
        });
        let active = self.pulls.iter().filter(|(key, _)| key.job == *name);
        ended + active.map(|(_, pull)| pull.progress.fetched()).sum::<u64>()
    }

    /// Bytes a second over the last few seconds; `None` before there are two samples.
    #[must_use]
    pub(super) fn rate(&self, name: &JobName) -> Option<u64> {
        let samples = &self.jobs.get(name)?.samples;
        let ((first_at, first), (last_at, last)) = (samples.front()?, samples.back()?);
        let millis = u64::try_from(last_at.since(*first_at).as_millis())
            .ok()
            .filter(|millis| *millis > 0)?;
        Some(last.saturating_sub(*first).saturating_mul(1_000) / millis)
    }

    /// When the job will be done if it goes on as it did so far; `None` while that cannot be said.
    #[must_use]
    pub(super) fn time_left(&self, name: &JobName, now: Timestamp) -> Option<Duration> {
        let record = self.jobs.get(name)?.record.as_ref()?;
        let status = &record.status;
        if status.phase != JobPhase::Running || status.counts.desired == 0 {
            return None;
        }
        let elapsed = now.since(status.round_started_at.or(status.started_at)?);
        let active = self.pulls.iter().filter(|(key, _)| key.job == *name);
        let begun: f64 = active.map(|(_, pull)| fraction(&pull.progress)).sum();
        let done = f64::from(status.counts.finished()) + begun;
        let left = f64::from(status.counts.desired) - done;
        (done >= 0.5 && left > 0.0).then(|| elapsed.mul_f64((left / done).min(1e6)))
    }
}

/// Whether a known ending is not the end of what the record is about. Records come later than events,
/// so what an event said stands until a record of a later run comes.
fn is_outdated(ending: &Ending, record: &JobRecord) -> bool {
    match &ending.event {
        None => true,
        Some(event) => event.data.run.as_ref().is_some_and(|run| {
            let now = record.run();
            run.uid == now.uid && (run.generation, run.round) < (now.generation, now.round)
        }),
    }
}

/// How much of a pull is behind it, from 0 to 1; what was there before is not part of it.
fn fraction(progress: &PullProgress) -> f64 {
    if progress.phase == PullPhase::Committing {
        return 1.0;
    }
    let parts = [
        (
            progress.bytes_done,
            progress.bytes_present,
            progress.bytes_total,
        ),
        (
            progress.unpack_done,
            progress.unpack_present,
            progress.unpack_total,
        ),
    ];
    let sum = |part: fn((u64, u64, u64)) -> u64| parts.into_iter().map(part).sum::<u64>();
    let (done, all) = (
        sum(|(done, present, _)| done.saturating_sub(present)),
        sum(|(_, present, total)| total.saturating_sub(present)),
    );
    #[expect(clippy::cast_precision_loss, reason = "a share needs no 64 bits")]
    let share = done as f64 / all.max(1) as f64;
    share.min(1.0)
}
