//! Reading the state back from the broker, and beginning to lead.
//!
//! The order is: node records, job records, the tasks in the task stream, what was told of jobs,
//! the events, then [`Input::Lead`](super::Input::Lead). Until then nothing is released: every
//! pending pull waits at its job, whose limit is zero.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fleet::Node;
use super::input::Effect;
use super::job::{Job, PullState, Stage};
use super::slots::{JobId, PullIndex, Resource};
use super::state::Dispatcher;
use crate::domain::time::Timestamp;
use crate::wire::event::JobEventKind;
use crate::wire::record::{JobRecord, NodeRecord};
use crate::wire::subject::PullKey;
use crate::wire::task::Run;

/// How long the event of a fact can be relied on to be found, if it was told: a day less than the
/// event stream keeps it. An older fact is not told again, or every takeover would tell the end of
/// every job of the past.
const TOLD_FOR: Duration = Duration::from_secs(6 * 24 * 60 * 60);

impl Dispatcher {
    /// A node that was there gets the whole silence before it counts as gone: the dispatcher was
    /// deaf in the meantime, not the node dumb.
    pub(super) fn node_record(&mut self, now: Timestamp, record: NodeRecord) {
        let id = self.fleet.insert(Node {
            name: record.name,
            facts: record.facts,
            instance: record.instance,
            presence: record.presence,
            since: record.since,
            last_heard: now,
            active: BTreeSet::new(),
        });
        self.update_node_limit(id);
    }

    pub(super) fn job_record(&mut self, record: JobRecord) {
        let job = Job::from_record(record);
        let finished = job.is_finished();
        let id = self.insert_job(job);
        if finished {
            self.slots.remove(Resource::Job(id));
            return;
        }
        for node in self.fleet.ids() {
            let (Some(known), Some(job)) = (self.fleet.get(node), self.jobs.get(&id)) else {
                continue;
            };
            if job.spec.selector.matches(&known.name, &known.facts.labels) {
                self.enroll(id, node);
            }
        }
    }

    pub(super) fn released(&mut self, key: PullKey, run: &Run, sequence: u64) {
        self.last_task = self.last_task.max(sequence);
        let pull = self.find(&key, run);
        if let Some(pull) = pull.filter(|_| !self.leading)
            && let Some(state @ PullState::Pending(_)) = self.state_of(pull)
        {
            self.leave_slots(pull, state);
            let needs = self.needs(pull);
            self.slots.take(&needs);
            self.activate(pull);
        }
        let known = pull
            .and_then(|pull| {
                self.jobs
                    .get_mut(&pull.job)?
                    .pull_mut(pull.node, pull.image)
            })
            .filter(|pull| pull.state == PullState::Active);
        match known {
            Some(pull) => pull.sequence = sequence,
            None if !self.leading => self.stale.push(key),
            // The pull ended, or was taken back, before the broker's word that it was released.
            None => {}
        }
    }

    fn find(&self, key: &PullKey, run: &Run) -> Option<PullIndex> {
        let (id, job) = self.job(&key.job)?;
        let image = job.image_index(&key.image)?;
        let node = self.fleet.id(&key.node)?;
        let known = !job.is_finished() && job.is_run(run) && job.pull(node, image).is_some();
        known.then_some(PullIndex {
            job: id,
            node,
            image,
        })
    }

    /// Everything was read back: what was begun is finished, and time counts.
    pub(super) fn lead(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.leading = true;
        effects.extend(
            std::mem::take(&mut self.stale)
                .into_iter()
                .map(Effect::WithdrawPull),
        );
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in &jobs {
            self.tell_what_is_missing(now, *id, effects);
        }
        self.told.clear();
        for node in self.fleet.ids() {
            self.watch_node(now, node);
            if self.fleet.is_absent(node) {
                self.withdraw_node(now, node, effects);
            }
        }
        for id in &jobs {
            self.update_job_limit(*id);
            self.arm_job_timers(*id);
            if self
                .jobs
                .get(id)
                .is_some_and(|job| job.stage == Stage::Resolving)
            {
                self.ask_to_resolve(*id, effects);
            }
        }
        // All together: a node's first slots are for the highest priority, not for the first job.
        let all: Vec<Resource> = jobs.iter().copied().map(Resource::Job).collect();
        self.refill(now, &all, effects);
        for id in jobs {
            self.check_job(now, id, effects);
        }
    }

    /// The dispatcher before may have stopped between a record and its event. What a request caused
    /// is told again when the request comes again.
    fn tell_what_is_missing(&self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let ended = match job.stage {
            Stage::Finished(crate::domain::status::Outcome::Cancelled) => {
                Some(JobEventKind::Cancelled)
            }
            Stage::Finished(_) => Some(JobEventKind::Completed),
            Stage::Resolving | Stage::Running => None,
        };
        let facts = [
            job.started_at.map(|_| JobEventKind::Started),
            job.round_completed_at.map(|_| JobEventKind::RoundCompleted),
            ended,
        ];
        for kind in facts.into_iter().flatten() {
            let told = self.told.get(&(job.name.clone(), kind));
            let may_be_kept = job
                .event_time(kind)
                .is_some_and(|time| now.since(time) < TOLD_FOR);
            if may_be_kept && told != Some(&job.event_id(kind)) {
                self.tell_job(now, id, kind, effects);
            }
        }
    }
}
