//! The dispatcher's state and the one door into it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fleet::Fleet;
use super::input::{Effect, Input};
use super::job::{Job, Stage};
use super::slots::{JobId, PullIndex, Resource, Slots};
use super::timers::{Timer, Timers};
use crate::domain::name::{JobName, NodeName};
use crate::domain::time::Timestamp;
use crate::wire::event::JobEventKind;
use crate::wire::record::{JobRecord, NodeRecord};
use crate::wire::subject::PullKey;

/// How long the record of a running job may lag behind its events.
const RECORD_LAG: Duration = Duration::from_secs(1);
/// Tasks a node is given beyond its capacity, so that a slot that comes free finds work waiting.
pub const DEFAULT_LOOKAHEAD: u32 = 2;

/// What an operator sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Tasks a node is given beyond its capacity.
    pub lookahead: u32,
    /// Most pulls of all jobs released and unfinished per registry host; `None`: no limit.
    pub host_limit: Option<u32>,
    /// Most pulls of all jobs released and unfinished per zone; `None`: no limit.
    pub zone_limit: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lookahead: DEFAULT_LOOKAHEAD,
            host_limit: None,
            zone_limit: None,
        }
    }
}

/// Everything a dispatcher knows.
///
/// A deterministic function of its inputs: no clock, no randomness, no I/O.
#[derive(Clone, Debug, Default)]
pub struct Dispatcher {
    pub(super) settings: Settings,
    pub(super) leading: bool,
    pub(super) fleet: Fleet,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) job_ids: BTreeMap<JobName, JobId>,
    pub(super) job_uids: BTreeMap<String, JobId>,
    pub(super) next_job: u32,
    pub(super) slots: Slots,
    pub(super) timers: Timers,
    pub(super) hosts: BTreeMap<Box<str>, u32>,
    pub(super) zones: BTreeMap<Box<str>, u32>,
    /// Jobs whose record lags behind.
    pub(super) dirty: BTreeSet<JobId>,
    /// The sequence of the newest event seen in the event stream.
    pub(super) last_event: u64,
    /// The sequence of the newest message known to be in the task stream.
    pub(super) last_task: u64,
    /// While reading back: tasks of runs that are over.
    pub(super) stale: Vec<PullKey>,
    /// While reading back: the last event told of each job and kind.
    pub(super) told: BTreeMap<(JobName, JobEventKind), String>,
}

impl Dispatcher {
    /// A dispatcher that knows nothing yet and does not lead.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// Takes one thing that happened and appends what has to be done, in order.
    ///
    /// `now` never runs backwards within one dispatcher.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::NodeRecord(record) => self.node_record(now, *record),
            Input::JobRecord(record) => self.job_record(*record),
            Input::Released { key, run, sequence } => self.released(key, &run, sequence),
            Input::EventsEnd { sequence } => self.last_event = self.last_event.max(sequence),
            Input::JobEventTold { job, kind, id } => {
                self.told.insert((job, kind), id);
            }
            Input::Lead => self.lead(now, effects),
            Input::TaskEvent { event, sequence } => self.task_event(now, &event, sequence, effects),
            Input::Request { request, sequence } => self.request(now, request, sequence, effects),
            Input::Resolved { job, run, images } => self.resolved(now, &job, &run, images, effects),
            Input::Registered {
                node,
                registration,
                reply,
            } => {
                self.registered(now, node, *registration, reply, effects);
            }
            Input::Heartbeat { node, heartbeat } => self.heartbeat(now, &node, &heartbeat, effects),
            Input::Kept { keys, as_of } => self.release_what_is_lost(now, &keys, as_of, effects),
            Input::Stalled { since } => self.excuse_silence(now, since),
            Input::Tick => {}
        }
        if self.leading {
            self.fire_timers(now, effects);
        }
    }

    /// When [`Input::Tick`] is wanted next; `None` while nothing waits for time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.leading {
            self.timers.next().map(|(at, _)| at)
        } else {
            None
        }
    }

    /// The sequence in the event stream after which events have to be read back, given the records.
    #[must_use]
    pub fn events_after(&self) -> u64 {
        let unfinished = self.jobs.values().filter(|job| !job.is_finished());
        unfinished
            .map(|job| job.events_after)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// The newest message known to be in the task stream, if any pull is out: what to look for there.
    #[must_use]
    pub fn has_out(&self) -> Option<u64> {
        let out = self
            .jobs
            .values()
            .any(|job| job.counts.active > 0 && !job.is_finished());
        out.then_some(self.last_task)
    }

    fn fire_timers(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::NodeGone(node) => self.check_node_gone(now, node, effects),
                Timer::NodeForgotten(node) => self.check_node_forgotten(now, node, effects),
                Timer::Deadline(job) => self.check_deadline(now, job, effects),
                Timer::Absent(job) => self.check_job(now, job, effects),
                Timer::NextRound(job) => self.check_next_round(now, job, effects),
                Timer::Expired(job) => self.check_expired(now, job, effects),
                Timer::Flush => self.flush(effects),
            }
        }
    }

    pub(super) fn job(&self, name: &JobName) -> Option<(JobId, &Job)> {
        let id = *self.job_ids.get(name)?;
        Some((id, self.jobs.get(&id)?))
    }

    pub(super) fn insert_job(&mut self, job: Job) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.job_ids.insert(job.name.clone(), id);
        self.job_uids.insert(job.uid.clone(), id);
        self.jobs.insert(id, job);
        self.slots.set_limit(Resource::Job(id), 0);
        id
    }

    /// Notes that a job's record lags; it is written within [`RECORD_LAG`].
    pub(super) fn touch(&mut self, now: Timestamp, job: JobId) {
        if self.dirty.is_empty() {
            self.timers.set(now.after(RECORD_LAG), Timer::Flush);
        }
        self.dirty.insert(job);
    }

    fn flush(&mut self, effects: &mut Vec<Effect>) {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(job) = self.jobs.get(&id).filter(|job| !job.is_finished()) {
                effects.push(Effect::PutRecord(Box::new(job.record(&self.fleet))));
            }
        }
    }

    /// Writes a job's record now: what follows in `effects` rests on it.
    pub(super) fn put_record(&mut self, id: JobId, effects: &mut Vec<Effect>) {
        if let Some(job) = self.jobs.get(&id) {
            self.dirty.remove(&id);
            effects.push(Effect::PutRecord(Box::new(job.record(&self.fleet))));
        }
    }

    /// Sets how many pulls a job may have out from its stage, pause and parallelism.
    pub(super) fn update_job_limit(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get(&id) {
            let limit = if self.leading { job.slot_limit() } else { 0 };
            self.slots.set_limit(Resource::Job(id), limit);
        }
    }

    pub(super) fn arm_job_timers(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let timers = match job.stage {
            Stage::Finished(_) => [job.expires_at().map(|at| (at, Timer::Expired(id))), None],
            Stage::Resolving => [None, None],
            Stage::Running => [
                job.deadline().map(|at| (at, Timer::Deadline(id))),
                job.next_round_at().map(|at| (at, Timer::NextRound(id))),
            ],
        };
        for (at, timer) in timers.into_iter().flatten() {
            self.timers.set(at, timer);
        }
    }
}

/// A dispatcher's knowledge in a form that can be compared: what a rebuilt one has to equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Every job as its record would say now.
    pub jobs: BTreeMap<JobName, JobRecord>,
    /// Every pull of an unfinished job: `pending`, `active`, `succeeded` or `failed`.
    pub pulls: BTreeMap<PullKey, &'static str>,
    /// Every node as its record would say now.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
}

impl Dispatcher {
    /// What this dispatcher knows, without how it queues.
    #[must_use]
    pub fn view(&self) -> View {
        let records = self
            .jobs
            .values()
            .map(|job| (job.name.clone(), job.record(&self.fleet)));
        let mut pulls = BTreeMap::new();
        for (id, job) in &self.jobs {
            for (node, states) in &job.pulls {
                for (image, pull) in (0u8..).zip(states.iter()) {
                    let key = self.key(PullIndex {
                        job: *id,
                        node: *node,
                        image,
                    });
                    pulls.extend(key.map(|key| (key, pull.state.word())));
                }
            }
        }
        let nodes = self
            .fleet
            .ids()
            .into_iter()
            .filter_map(|id| self.fleet.get(id));
        let nodes = nodes
            .map(|node| (node.name.clone(), node.record()))
            .collect();
        View {
            jobs: records.collect(),
            pulls,
            nodes,
        }
    }
}
