//! What users ask: new jobs, edits, another run, cancel, delete, pause, resume.
//!
//! Each request is applied once: the record keeps the sequence of the last one. A repeat (the
//! dispatcher stopped between writing the record and acknowledging the message) changes nothing; it
//! only tells again, under the same id, what may not have been told. This rests on requests being
//! taken strictly one after the other, in their order: a submission that is delivered again after
//! the request that deleted its job would make the job anew. Pushes alone are taken as they come,
//! because one may have to wait for its registry: the youngest of those that are about one job wins.

use super::input::{Effect, Pause, Request};
use super::job::{Job, Stage};
use super::rounds::CutShort;
use super::slots::{JobId, PullIndex, Resource};
use super::state::Dispatcher;
use crate::domain::name::JobName;
use crate::domain::status::{Counts, NodeCounts, Outcome};
use crate::domain::time::Timestamp;
use crate::wire::event::{JobEventKind, Problem};
use crate::wire::manifest::{Rejection, Submission};
use crate::wire::record::RunTrace;

/// Most jobs a cell keeps, finished ones included.
pub(super) const MAX_JOBS: usize = 10_000;

impl Dispatcher {
    pub(super) fn request(
        &mut self,
        now: Timestamp,
        request: Request,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.leading {
            return;
        }
        let applied = match request {
            Request::Submit(submission) => self.submit(now, *submission, (sequence, 0), effects),
            Request::Cancel(name) => self.cancel(now, &name, sequence, effects),
            Request::Delete(name) => self.delete(now, &name, sequence, effects),
            Request::Pause(name, pause) => self.pause(now, &name, pause, sequence, effects),
            Request::Push(jobs) => {
                self.push(now, jobs, sequence, effects);
                Ok(())
            }
            Request::Unreadable { name, problems } => {
                self.tell_rejected(now, (name, problems), (sequence, 0), effects);
                Ok(())
            }
        };
        if let Err(refused) = applied {
            self.tell_rejected(now, problem(refused), (sequence, 0), effects);
        }
        effects.push(Effect::Acknowledge { sequence });
    }

    /// Each job of a push for itself: one that cannot be made holds up no other.
    fn push(
        &mut self,
        now: Timestamp,
        jobs: Vec<Result<Submission, Rejection>>,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        for (ordinal, job) in jobs.into_iter().enumerate() {
            let applied = match job {
                Ok(submission) => self
                    .submit_pushed(now, submission, (sequence, ordinal), effects)
                    .map_err(problem),
                Err(rejection) => Err((rejection.name, rejection.problems)),
            };
            if let Err(refused) = applied {
                self.tell_rejected(now, refused, (sequence, ordinal), effects);
            }
        }
    }

    /// As [`Self::submit`], but a job that is there, says the same and has not failed is left alone,
    /// and nothing that was asked after the push was stored is undone.
    fn submit_pushed(
        &mut self,
        now: Timestamp,
        submission: Submission,
        (sequence, ordinal): (u64, usize),
        effects: &mut Vec<Effect>,
    ) -> Result<(), (JobName, String)> {
        if let Some((_, job)) = self.job(&submission.name)
            && job.request_sequence != sequence
        {
            let applied = job.request_sequence;
            match job.spec == submission.spec {
                true if !job.is_finished() || job.outcome() == Some(Outcome::Succeeded) => {
                    return Ok(());
                }
                false if sequence < applied => {
                    let message = format!(
                        "request {applied}, which came after this push, is what the job does now; the push changes nothing"
                    );
                    return Err((submission.name, message));
                }
                _ => {}
            }
        }
        self.submit(now, submission, (sequence, ordinal), effects)
    }

    fn submit(
        &mut self,
        now: Timestamp,
        submission: Submission,
        (sequence, ordinal): (u64, usize),
        effects: &mut Vec<Effect>,
    ) -> Result<(), (JobName, String)> {
        match self
            .job(&submission.name)
            .map(|(id, job)| (id, job.request_sequence, job.is_finished()))
        {
            None if self.jobs.len() >= MAX_JOBS => {
                let message = format!(
                    "there are {MAX_JOBS} jobs already; delete some, or give them ttlSecondsAfterFinished"
                );
                return Err((submission.name, message));
            }
            None => self.create(now, submission, (sequence, ordinal), effects),
            Some((id, applied, _)) if sequence == applied => {
                self.tell_job(now, id, JobEventKind::Accepted, effects);
            }
            Some((_, applied, _)) if sequence < applied => {}
            Some((id, _, true)) => self.run_again(now, id, submission, sequence, effects),
            Some((id, _, false)) => self.edit(now, id, submission, sequence, effects),
        }
        Ok(())
    }

    fn create(
        &mut self,
        now: Timestamp,
        submission: Submission,
        (sequence, ordinal): (u64, usize),
        effects: &mut Vec<Effect>,
    ) {
        let job = Job {
            name: submission.name,
            labels: submission.labels,
            uid: format!("{:x}-{}", now.as_millis(), part_id(sequence, ordinal)),
            generation: 1,
            created_at: now,
            request_sequence: sequence,
            trace: submission
                .trace
                .map(|origin| RunTrace { origin, since: now }),
            spec: submission.spec,
            tokens: Vec::new(),
            stage: Stage::Resolving,
            paused: false,
            round: 1,
            images: Vec::new(),
            started_at: None,
            round_started_at: None,
            round_completed_at: None,
            completed_at: None,
            events_after: self.last_event,
            message: String::new(),
            pulls: std::collections::BTreeMap::new(),
            outside: std::collections::BTreeMap::new(),
            counts: Counts::default(),
            nodes: NodeCounts::default(),
            pending_absent: 0,
            pending_held: 0,
            failures: std::collections::BTreeMap::new(),
            final_failures: Vec::new(),
            bytes_registry: 0,
            bytes_elsewhere: 0,
            has_messages: false,
        };
        let id = self.insert_job(job);
        self.begin_accepted(now, id, effects);
    }

    /// Another run of a finished job: a new generation of the same job.
    fn run_again(
        &mut self,
        now: Timestamp,
        id: JobId,
        submission: Submission,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.take_over(now, submission, sequence);
            job.paused = false;
        }
        self.begin_accepted(now, id, effects);
    }

    fn begin_accepted(&mut self, now: Timestamp, id: JobId, effects: &mut Vec<Effect>) {
        self.begin_run(now, id);
        self.put_record(id, effects);
        self.tell_job(now, id, JobEventKind::Accepted, effects);
        self.ask_to_resolve(id, effects);
    }

    /// An edit of a job that runs. Other content is a new generation, whose tasks replace those of
    /// the old one; everything else applies at once, to what is not released yet.
    fn edit(
        &mut self,
        now: Timestamp,
        id: JobId,
        submission: Submission,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if !submission.spec.puts_other_content_than(&job.spec) {
            self.edit_policies(now, id, submission, sequence, effects);
            return;
        }
        let withdrawn = std::mem::take(&mut job.has_messages).then(|| job.name.clone());
        let revoked = self.active_of(id);
        let freed = self.leave_everything(id);
        if let Some(job) = self.jobs.get_mut(&id) {
            // The pulls hold nothing any more, so that the new run must not give it back again.
            job.pulls.clear();
            job.take_over(now, submission, sequence);
        }
        self.begin_run(now, id);
        self.put_record(id, effects);
        self.tell_job(now, id, JobEventKind::Accepted, effects);
        effects.extend(withdrawn.map(Effect::WithdrawJob));
        for (node, pulls) in revoked {
            self.revoke(node, pulls, effects);
        }
        self.ask_to_resolve(id, effects);
        self.refill(now, &freed, effects);
    }

    fn edit_policies(
        &mut self,
        now: Timestamp,
        id: JobId,
        submission: Submission,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.requeue(id, |job| {
            job.spec = submission.spec;
            job.labels = submission.labels;
            job.request_sequence = sequence;
        });
        let mut withdrawals = Vec::new();
        let mut freed = vec![Resource::Job(id)];
        for node in self.fleet.ids() {
            freed.extend(self.match_node(now, id, node, &mut withdrawals));
        }
        self.update_job_limit(id);
        self.arm_job_timers(id);
        self.put_record(id, effects);
        self.tell_job(now, id, JobEventKind::Accepted, effects);
        effects.extend(withdrawals);
        self.refill(now, &freed, effects);
        self.check_job(now, id, effects);
    }

    /// Takes a job's pending pulls out of every line, changes the job, and lets them wait at the
    /// job again: a changed priority is another place in every line.
    fn requeue(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        let pending = self.pending_of(id);
        for pull in &pending {
            if let Some(state) = self.state_of(*pull) {
                self.leave_slots(*pull, state);
            }
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            change(job);
        }
        let resource = Resource::Job(id);
        for pull in pending {
            self.wait_at(resource, pull);
        }
    }

    fn pending_of(&self, id: JobId) -> Vec<PullIndex> {
        self.jobs
            .get(&id)
            .map_or_else(Vec::new, |job| super::rounds::pending(id, job))
    }

    /// The job a command is for, unless the command was applied already (`Ok(None)`).
    fn target(&self, name: &JobName, sequence: u64) -> Result<Option<JobId>, (JobName, String)> {
        match self.job(name) {
            None => Err((name.clone(), format!("there is no job named {name}"))),
            Some((_, job)) if sequence <= job.request_sequence => Ok(None),
            Some((id, _)) => Ok(Some(id)),
        }
    }

    fn running_target(
        &mut self,
        name: &JobName,
        sequence: u64,
    ) -> Result<Option<JobId>, (JobName, String)> {
        let Some(id) = self.target(name, sequence)? else {
            return Ok(None);
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return Ok(None);
        };
        if job.is_finished() {
            let message = format!("the job has ended already: {:?}", job.phase());
            return Err((name.clone(), message));
        }
        job.request_sequence = sequence;
        Ok(Some(id))
    }

    fn cancel(
        &mut self,
        now: Timestamp,
        name: &JobName,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), (JobName, String)> {
        if let Some(id) = self.running_target(name, sequence)? {
            self.cut_short(now, id, CutShort::Cancelled, effects);
        }
        Ok(())
    }

    fn delete(
        &mut self,
        now: Timestamp,
        name: &JobName,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), (JobName, String)> {
        // Deleting what is not there is done already: perhaps by this very request.
        let Ok(Some(id)) = self.target(name, sequence) else {
            return Ok(());
        };
        // The record that says "cancelled" keeps the sequence before this one: if this dispatcher
        // stops before the record is deleted, the next one has to apply the request again.
        if self.jobs.get(&id).is_some_and(|job| !job.is_finished()) {
            self.cut_short(now, id, CutShort::Cancelled, effects);
        }
        self.forget(now, id, Some(sequence), effects);
        Ok(())
    }

    fn pause(
        &mut self,
        now: Timestamp,
        name: &JobName,
        pause: Pause,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), (JobName, String)> {
        let kind = match pause {
            Pause::Pause => JobEventKind::Paused,
            Pause::Resume => JobEventKind::Resumed,
        };
        if let Some((id, job)) = self.job(name)
            && job.request_sequence == sequence
        {
            self.tell_job(now, id, kind, effects);
            return Ok(());
        }
        let Some(id) = self.running_target(name, sequence)? else {
            return Ok(());
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.paused = pause == Pause::Pause;
        }
        self.put_record(id, effects);
        self.tell_job(now, id, kind, effects);
        self.update_job_limit(id);
        self.arm_job_timers(id);
        self.refill(now, &[Resource::Job(id)], effects);
        self.check_job(now, id, effects);
        Ok(())
    }
}

/// Names a job that a request is about: most are about one, a push may be about several.
pub(super) fn part_id(sequence: u64, ordinal: usize) -> String {
    match ordinal {
        0 => format!("{sequence:x}"),
        _ => format!("{sequence:x}-{ordinal:x}"),
    }
}

fn problem((name, message): (JobName, String)) -> (Option<JobName>, Vec<Problem>) {
    let path = String::new();
    (Some(name), vec![Problem { path, message }])
}

impl Job {
    /// Becomes the next generation of itself.
    fn take_over(&mut self, now: Timestamp, submission: Submission, sequence: u64) {
        self.spec = submission.spec;
        self.trace = submission
            .trace
            .map(|origin| RunTrace { origin, since: now });
        self.labels = submission.labels;
        self.request_sequence = sequence;
        self.generation += 1;
        self.round = 1;
        self.started_at = None;
        self.completed_at = None;
        self.message = String::new();
    }
}
