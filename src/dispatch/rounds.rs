//! A job's run: it begins, its tags are resolved, it ends, and perhaps another round follows.

use std::time::Duration;

use super::input::Effect;
use super::job::{Job, PullState, Stage};
use super::slots::{JobId, PullIndex, Resource};
use super::state::Dispatcher;
use super::timers::Timer;
use crate::domain::failure::FailureKind;
use crate::domain::name::JobName;
use crate::domain::status::Outcome;
use crate::domain::time::Timestamp;
use crate::wire::event::JobEventKind;
use crate::wire::record::ResolvedImage;
use crate::wire::task::Run;

/// Why a job ends before all of its pulls did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CutShort {
    /// Its deadline passed.
    Deadline,
    /// More nodes failed than it allows.
    FailedTooOften,
    /// A user cancelled it.
    Cancelled,
}

impl Dispatcher {
    /// Begins a run: every pull is pending, and the registry is asked what the tags mean. The
    /// caller writes the record before anything else of the run is done.
    pub(super) fn begin_run(&mut self, now: Timestamp, id: JobId) {
        self.leave_everything(id);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.clear_pulls();
        job.stage = Stage::Resolving;
        job.tokens = job.spec.images.iter().map(|image| image.token()).collect();
        job.images = Vec::new();
        job.round_started_at = None;
        job.round_completed_at = None;
        job.events_after = self.last_event;
        for node in self.fleet.ids() {
            self.match_node(now, id, node, &mut Vec::new());
        }
        self.update_job_limit(id);
    }

    pub(super) fn ask_to_resolve(&self, id: JobId, effects: &mut Vec<Effect>) {
        if let Some(job) = self.jobs.get(&id) {
            effects.push(Effect::Resolve {
                job: job.name.clone(),
                run: job.run(),
                images: job.spec.images.clone(),
                pull_secrets: job.spec.pull_secrets.clone(),
                trace: job.trace,
            });
        }
    }

    /// The registry has answered, or could not be reached: pulls may be released.
    pub(super) fn resolved(
        &mut self,
        now: Timestamp,
        name: &JobName,
        run: &Run,
        images: Vec<ResolvedImage>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = self.job_ids.get(name).copied().filter(|_| self.leading) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.stage != Stage::Resolving || !job.is_run(run) {
            return;
        }
        job.images = images;
        job.stage = Stage::Running;
        job.started_at.get_or_insert(now);
        job.round_started_at = Some(now);
        let first = job.round == 1;
        self.put_record(id, effects);
        if first {
            self.tell_job(now, id, JobEventKind::Started, effects);
        }
        self.arm_job_timers(id);
        self.update_job_limit(id);
        self.refill(now, &[Resource::Job(id)], effects);
        self.check_job(now, id, effects);
    }

    /// Ends the job or the round if nothing is left to do.
    pub(super) fn check_job(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id).filter(|_| self.leading) else {
            return;
        };
        if job.stage != Stage::Running {
            return;
        }
        if job.failed_too_often() {
            self.cut_short(now, id, CutShort::FailedTooOften, effects);
        } else if job.repeats() {
            self.check_round(now, id, effects);
        } else if job.counts.pending + job.counts.active == 0 {
            let outcome = outcome(job);
            self.finish(now, id, outcome, effects);
        } else if job.is_quiet() && job.slot_limit() > 0 {
            // Paused, by a user or by parallelism 0, it waits for whatever it waits for.
            self.check_absent(now, id, effects);
        }
    }

    /// Only absent nodes remain: they are given up when the last has been gone for long enough.
    fn check_absent(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let patience = Duration::from_secs(job.spec.absent_after_seconds.into());
        let waited_for = pending(id, job);
        let last_left = waited_for
            .iter()
            .filter_map(|pull| Some(self.fleet.get(pull.node)?.since))
            .max();
        let give_up_at = last_left.unwrap_or(now).after(patience);
        if give_up_at > now {
            self.timers.set(give_up_at, Timer::Absent(id));
            return;
        }
        let message = format!("the node was gone for more than {} s", patience.as_secs());
        for pull in waited_for {
            self.fail(now, pull, FailureKind::NodeAbsent, &message, effects);
        }
        if let Some(job) = self.jobs.get(&id) {
            let outcome = match job.failed_too_often() {
                true => Outcome::Failed,
                false => outcome(job),
            };
            self.finish(now, id, outcome, effects);
        }
    }

    pub(super) fn check_deadline(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.stage == Stage::Running && job.deadline().is_some_and(|at| at <= now) {
            self.cut_short(now, id, CutShort::Deadline, effects);
        } else {
            self.arm_job_timers(id);
        }
    }

    /// Ends a job although pulls are left: they are withdrawn, and revoked where they run.
    pub(super) fn cut_short(
        &mut self,
        now: Timestamp,
        id: JobId,
        why: CutShort,
        effects: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let mut freed = Vec::new();
        let revoked = self.active_of(id);
        for pull in unfinished(id, job) {
            if why == CutShort::Deadline {
                let message = "the job's deadline passed before the pull ended";
                freed.extend(self.fail(now, pull, FailureKind::DeadlineExceeded, message, effects));
            } else if let Some(state) = self.state_of(pull) {
                freed.extend(self.leave_slots(pull, state));
                self.set_state(pull, PullState::Cancelled);
            }
        }
        let outcome = match why {
            CutShort::Deadline => Outcome::DeadlineExceeded,
            CutShort::FailedTooOften => Outcome::Failed,
            CutShort::Cancelled => Outcome::Cancelled,
        };
        self.finish(now, id, outcome, effects);
        for (node, pulls) in revoked {
            self.revoke(node, pulls, effects);
        }
        freed.sort_unstable();
        freed.dedup();
        freed.retain(|resource| *resource != Resource::Job(id));
        self.refill(now, &freed, effects);
    }

    /// Ends a job whose pulls have all ended. The record is written first: it is the fence that
    /// another dispatcher's write fails at.
    fn finish(&mut self, now: Timestamp, id: JobId, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.stage = Stage::Finished(outcome);
        job.completed_at = Some(now);
        job.final_failures = job.failure_groups(&self.fleet);
        job.message = job.describe();
        let has_messages = std::mem::take(&mut job.has_messages);
        let name = job.name.clone();
        self.put_record(id, effects);
        let kind = match outcome {
            Outcome::Cancelled => JobEventKind::Cancelled,
            _ => JobEventKind::Completed,
        };
        self.tell_job(now, id, kind, effects);
        if has_messages {
            effects.push(Effect::WithdrawJob(name));
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.pulls.clear();
            job.outside.clear();
            job.failures.clear();
        }
        self.slots.remove(Resource::Job(id));
        self.arm_job_timers(id);
    }

    /// `Never`: the round ends when every node that is there and not held has had its turn. Nodes that come
    /// later still get the images; only their messages have to be cleared away again.
    fn check_round(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if !job.round_is_quiet() {
            return;
        }
        if job.counts.finished() == 0 {
            // Nobody has had a turn, so no round has ended; the next may be due all the same.
            self.arm_job_timers(id);
            return;
        }
        let ended = job.round_completed_at.is_none();
        if ended {
            job.round_completed_at = Some(now);
        }
        let cleared = std::mem::take(&mut job.has_messages);
        let name = job.name.clone();
        if ended {
            self.put_record(id, effects);
            self.tell_job(now, id, JobEventKind::RoundCompleted, effects);
        }
        if cleared {
            effects.push(Effect::WithdrawJob(name));
        }
        self.arm_job_timers(id);
    }

    pub(super) fn check_next_round(
        &mut self,
        now: Timestamp,
        id: JobId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let due = job.next_round_at().is_some_and(|at| at <= now);
        if job.stage != Stage::Running || job.paused || !job.round_is_quiet() {
            // The end of the round, or a resume, arms the timer again.
            return;
        }
        if !due || job.counts.desired == 0 {
            self.arm_next_round(now, id);
            return;
        }
        job.round += 1;
        job.trace = job.trace.map(|trace| trace.of_round(job.round, now));
        self.begin_run(now, id);
        self.put_record(id, effects);
        self.ask_to_resolve(id, effects);
    }

    fn arm_next_round(&mut self, now: Timestamp, id: JobId) {
        let Some(at) = self.jobs.get(&id).and_then(Job::next_round_at) else {
            return;
        };
        if at > now {
            self.timers.set(at, Timer::NextRound(id));
        }
    }

    pub(super) fn check_expired(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.is_finished() && job.expires_at().is_some_and(|at| at <= now) {
            self.forget(now, id, None, effects);
        }
    }

    /// Deletes a finished job. The event is told first: if this dispatcher stops in between, the
    /// record is still there and the next one deletes it again.
    pub(super) fn forget(
        &mut self,
        now: Timestamp,
        id: JobId,
        request: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.request_sequence = request.unwrap_or(job.request_sequence);
        let (name, uid) = (job.name.clone(), job.uid.clone());
        self.tell_job(now, id, JobEventKind::Deleted, effects);
        effects.push(Effect::DeleteRecord(name.clone()));
        self.jobs.remove(&id);
        self.job_uids.remove(&uid);
        self.job_ids.remove(&name);
        self.dirty.remove(&id);
        self.slots.remove(Resource::Job(id));
    }

    /// Takes a job's pulls out of every line and every slot; says what came free.
    pub(super) fn leave_everything(&mut self, id: JobId) -> Vec<Resource> {
        let Some(job) = self.jobs.get(&id) else {
            return Vec::new();
        };
        let mut freed = Vec::new();
        for pull in unfinished(id, job) {
            if let Some(state) = self.state_of(pull) {
                freed.extend(self.leave_slots(pull, state));
            }
        }
        freed.sort_unstable();
        freed.dedup();
        freed
    }

    /// A job's released pulls by node, as workers know them.
    pub(super) fn active_of(
        &self,
        id: JobId,
    ) -> Vec<(super::fleet::NodeId, Vec<crate::wire::worker::PullId>)> {
        let Some(job) = self.jobs.get(&id) else {
            return Vec::new();
        };
        let of_node = |pulls: &[super::job::Pull]| -> Vec<crate::wire::worker::PullId> {
            let active = pulls.iter().zip(&job.tokens);
            let active = active.filter(|(pull, _)| pull.state == PullState::Active);
            let id = |(_, token): (_, &String)| crate::wire::worker::PullId {
                job: job.name.clone(),
                run: job.run(),
                image: token.clone(),
            };
            active.map(id).collect()
        };
        let nodes = job
            .pulls
            .iter()
            .map(|(node, pulls)| (*node, of_node(pulls)));
        nodes.filter(|(_, pulls)| !pulls.is_empty()).collect()
    }
}

fn outcome(job: &Job) -> Outcome {
    // The workers, or a dispatcher before this one, may be the first to say so.
    if job.failures.contains_key(&FailureKind::DeadlineExceeded) {
        return Outcome::DeadlineExceeded;
    }
    match (job.counts.succeeded, job.counts.failed) {
        (_, 0) => Outcome::Succeeded,
        (0, _) => Outcome::Failed,
        _ => Outcome::PartiallyFailed,
    }
}

fn select(id: JobId, job: &Job, wanted: impl Fn(PullState) -> bool) -> Vec<PullIndex> {
    let mut selected = Vec::new();
    for (node, pulls) in &job.pulls {
        for (image, pull) in pulls.iter().enumerate() {
            if wanted(pull.state) {
                let image = u8::try_from(image).unwrap_or(u8::MAX);
                selected.push(PullIndex {
                    job: id,
                    node: *node,
                    image,
                });
            }
        }
    }
    selected
}

pub(super) fn pending(id: JobId, job: &Job) -> Vec<PullIndex> {
    select(id, job, |state| matches!(state, PullState::Pending(_)))
}

fn unfinished(id: JobId, job: &Job) -> Vec<PullIndex> {
    select(id, job, |state| !state.is_terminal())
}
