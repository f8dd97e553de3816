//! What must hold after every step, seen from the broker: it alone knows what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prewarm::dispatch::Request;
use prewarm::dispatch::state::{DEFAULT_LOOKAHEAD, Settings};
use prewarm::domain::failure::FailureKind;
use prewarm::domain::name::NodeName;
use prewarm::domain::node::{NodeFacts, ZONE_LABEL};
use prewarm::domain::status::{JobPhase, Outcome};
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{
    FailureGroup, FailureReport, JobEvent, JobEventKind, PullState, TaskEvent,
};
use prewarm::wire::manifest::{Rejection, Submission};
use prewarm::wire::record::{JobRecord, NodePresence};
use prewarm::wire::task::{PullTask, Run};

use crate::broker::{Broker, Millis};
use crate::counters::Counters;
use crate::net::Who;
use crate::payload::{JOB_RECORDS, NODE_RECORDS, Payload, TASKS, job_key, node_key};

/// What is wrong, in one sentence; `Ok` if nothing is.
pub type Verdict = Result<(), String>;

/// Names one pull of one run.
pub type EndKey = (Run, NodeName, String);

/// What the broker was told, as far as later words must agree with it.
#[derive(Default)]
pub struct Checks {
    /// The first terminal event of every pull: the truth.
    pub ends: BTreeMap<EndKey, PullState>,
    /// Tasks stored by a leader that was deposed: nobody counted them.
    pub late_tasks: BTreeSet<u64>,
    /// A deposed leader has written a record, or taken tasks, since the last one read them.
    pub disturbed: bool,
    /// When a node's consumer was made anew.
    pub remade: BTreeMap<NodeName, Millis>,
    /// How often each pull was released, when first, and how many attempts it has.
    released: BTreeMap<EndKey, Released>,
    /// The newest round of each generation.
    rounds: BTreeMap<(String, u32), Round>,
    /// Runs of which a worker said that the deadline had passed.
    overdue: BTreeSet<Run>,
    finished: BTreeMap<(String, u32), Arc<JobRecord>>,
    /// The generation that each request made or found.
    generations: BTreeMap<(String, u64), u32>,
    told: BTreeSet<String>,
    deleted: BTreeSet<String>,
    rejected: BTreeSet<u64>,
    pub requests: BTreeMap<u64, Arc<Request>>,
}

/// A round that was begun, and when, if it has; by whose clocks.
#[derive(Clone)]
struct Round {
    number: u32,
    began: Option<Timestamp>,
    clocks: BTreeSet<Who>,
}

#[derive(Clone, Copy)]
struct Released {
    times: u32,
    first: Millis,
    attempts: u32,
    /// Before this no worker may say that the deadline has passed; `None` where there is no deadline.
    overdue_from: Option<Millis>,
}

/// How much two clocks may differ over a time, in percent: the slowest and the fastest of a simulation, and some.
const DRIFT: u64 = 3;

/// The pull a task is.
pub fn end_key(task: &PullTask) -> EndKey {
    (task.run.clone(), task.node.clone(), task.image.token())
}

impl Checks {
    /// The tasks in the stream without a terminal event, those of deposed leaders left out.
    fn unfinished<'a>(&'a self, broker: &'a Broker<Payload>) -> impl Iterator<Item = &'a PullTask> {
        let tasks = broker.messages(TASKS, 0);
        let tasks = tasks.filter(|(sequence, _)| !self.late_tasks.contains(sequence));
        tasks.filter_map(|(_, message)| match &message.payload {
            Payload::Task(task) if !self.ends.contains_key(&end_key(task)) => Some(&**task),
            _ => None,
        })
    }

    /// Whether pulls of this node are released and unfinished.
    pub fn works(&self, broker: &Broker<Payload>, node: &NodeName) -> bool {
        self.unfinished(broker).any(|task| task.node == *node)
    }

    /// A leader has released a pull: no limit is exceeded. `nodes` are those the leader knows, which
    /// may be ahead of their records.
    pub fn released(
        &self,
        broker: &Broker<Payload>,
        settings: Settings,
        nodes: &BTreeMap<NodeName, NodeFacts>,
        task: &PullTask,
        counters: &mut Counters,
    ) -> Verdict {
        if self.disturbed {
            return Ok(());
        }
        let record = record(broker, &task.job)
            .ok_or_else(|| format!("{} was released without a record", task.job))?;
        if record.run() != task.run || record.status.outcome.is_some() {
            return Err(format!(
                "a pull of {:?} was released, the record is at {:?} {:?}",
                task.run,
                record.run(),
                record.status.phase
            ));
        }
        if record.status.paused {
            return Err(format!("{} is paused and was released", task.job));
        }
        let matching = |(name, facts): &(&NodeName, &NodeFacts)| {
            record.spec.selector.matches(name, &facts.labels)
        };
        let matching = nodes.iter().filter(matching).count();
        let limit = record
            .spec
            .parallelism
            .of(u32::try_from(matching).unwrap_or(u32::MAX));
        let of_job = self
            .unfinished(broker)
            .filter(|other| other.job == task.job);
        at_most(
            limit,
            of_job.count(),
            &format!("released pulls of {}", task.job),
        )?;
        let of_node = self
            .unfinished(broker)
            .filter(|other| other.node == task.node);
        if let Some(why) = nodes
            .get(&task.node)
            .and_then(|facts| facts.waiting.as_ref())
        {
            return Err(format!("{} is {why} and was released to", task.node));
        }
        let capacity = nodes.get(&task.node).map_or(0, |facts| facts.capacity);
        let room = capacity + DEFAULT_LOOKAHEAD;
        at_most(
            room,
            of_node.count(),
            &format!("released pulls on {}", task.node),
        )?;
        if let Some(limit) = settings.host_limit {
            let host = task.image.registry();
            let at_host = self
                .unfinished(broker)
                .filter(|other| other.image.registry() == host);
            let at_host = at_host.count();
            if at_host == limit as usize {
                counters.bump("a zone or a host was full");
            }
            at_most(limit, at_host, &format!("released pulls from {host}"))?;
        }
        let zone = |node: &NodeName| nodes.get(node)?.labels.get(ZONE_LABEL).cloned();
        if let (Some(limit), Some(here)) = (settings.zone_limit, zone(&task.node)) {
            let there = |other: &&PullTask| zone(&other.node).as_ref() == Some(&here);
            let in_zone = self.unfinished(broker).filter(there).count();
            at_most(limit, in_zone, &format!("released pulls in zone {here}"))?;
        }
        Ok(())
    }

    /// A task was stored.
    pub fn task(&mut self, now: Millis, task: &PullTask) {
        // What is left of the job's time by the clock of whoever released the pull: the one that decides.
        let left = task.expires_at.zip(task.released_at);
        let left = left.map(|(expires, released)| expires.since(released).as_millis());
        let left = left.map(|left| u64::try_from(left).unwrap_or(Millis::MAX));
        let overdue_from = left.map(|left| now + left * (100 - DRIFT) / 100);
        let released = self.released.entry(end_key(task)).or_insert(Released {
            times: 0,
            first: now,
            attempts: task.pull_policy.backoff_limit + 1,
            overdue_from,
        });
        released.times += 1;
        released.overdue_from = released.overdue_from.min(overdue_from);
    }

    /// However wrong a node's clock is, no pull fails of a deadline before its time.
    fn overdue(&self, now: Millis, event: &TaskEvent) -> Verdict {
        let key = (event.run.clone(), event.node.clone(), event.image.token());
        let from = self.released.get(&key).and_then(|task| task.overdue_from);
        if from.is_some_and(|from| from <= now) {
            return Ok(());
        }
        Err(format!(
            "{} said at {now} ms that the deadline of {} has passed, which it has at {from:?}",
            event.node, event.job
        ))
    }

    /// No more attempts are made than the limit allows. What was released or delivered again may be tried again, so the
    /// node must have had no trouble since the release.
    pub fn attempts(&self, event: &TaskEvent, trouble: Millis, counters: &mut Counters) -> Verdict {
        let key = (event.run.clone(), event.node.clone(), event.image.token());
        let Some(released) = self.released.get(&key) else {
            return Ok(());
        };
        let remade = self.remade.get(&event.node).copied().unwrap_or(0);
        if released.times > 1 || trouble.max(remade) >= released.first {
            return Ok(());
        }
        if event.attempt == released.attempts && event.state == PullState::Failed {
            counters.bump("a pull failed with its last attempt");
        }
        at_most(
            released.attempts,
            event.attempt as usize,
            &format!("attempts of {} on {}", event.image, event.node),
        )
    }

    /// An end that time brings does not come before its time, by the clocks that decided it.
    fn in_time(&self, broker: &Broker<Payload>, record: &JobRecord, late: bool) -> Verdict {
        let (name, spec, status) = (&record.metadata.name, &record.spec, &record.status);
        let Some(ended) = status.completed_at else {
            return Ok(());
        };
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        // A worker counts what was left at the release, and its clock may be faster.
        let overdue = self.overdue.contains(&record.run());
        if status.outcome == Some(Outcome::DeadlineExceeded) && !overdue {
            let deadline = spec.completion_policy.active_deadline_seconds;
            let due = status.started_at.zip(deadline);
            let due = due.map(|(started, deadline)| started.after(seconds(deadline)));
            if due.is_none_or(|due| ended < due) {
                return Err(format!(
                    "{name} ended at {ended}, its deadline is at {due:?}"
                ));
            }
        }
        if self.disturbed || late {
            return Ok(());
        }
        let absent = |group: &&FailureGroup| group.kind == FailureKind::NodeAbsent;
        for node in status
            .failures
            .iter()
            .filter(absent)
            .flat_map(|group| &group.nodes)
        {
            let Some(since) = gone_since(broker, node) else {
                continue;
            };
            if ended < since.after(seconds(spec.absent_after_seconds)) {
                return Err(format!(
                    "{name} gave {node} up at {ended}, gone since {since}"
                ));
            }
        }
        Ok(())
    }

    /// A round begins no sooner after the one before than the interval less its jitter, as far as one clock decides.
    fn round(&mut self, record: &JobRecord, by: Who) -> Verdict {
        let (metadata, status) = (&record.metadata, &record.status);
        let key = (metadata.uid.clone(), metadata.generation);
        let new = Round {
            number: status.round,
            began: status.round_started_at,
            clocks: BTreeSet::from([by]),
        };
        let before = self.rounds.entry(key).or_insert_with(|| new.clone());
        let last_began = before.began;
        before.clocks.insert(by);
        if before.number != new.number && new.began.is_none() {
            // It is due; until it has begun, what is known is when the one before did.
            return Ok(());
        }
        let clocks = std::mem::replace(before, new).clocks;
        let repeat = record.spec.completion_policy.repeat_seconds;
        let Some((((last, began), repeat), is_next)) = last_began
            .zip(status.round_started_at)
            .zip(repeat)
            .map(|times| (times, times.0.0 != times.0.1))
        else {
            return Ok(());
        };
        let least = Duration::from_secs(repeat.into()) * 95 / 100;
        if is_next && clocks.len() == 1 && began < last.after(least) {
            return Err(format!(
                "round {} of {} began at {began}, the one before at {last}",
                status.round, metadata.name
            ));
        }
        Ok(())
    }

    /// A worker has told a fact.
    pub fn task_event(
        &mut self,
        now: Millis,
        event: &TaskEvent,
        by: Who,
        counters: &mut Counters,
    ) -> Verdict {
        if !event.state.is_terminal() {
            return Ok(());
        }
        let overdue = |failure: &FailureReport| failure.kind == FailureKind::DeadlineExceeded;
        if matches!(by, Who::Worker(_)) && event.failure.as_ref().is_some_and(overdue) {
            counters.bump("a worker ended a pull for its job's deadline");
            self.overdue(now, event)?;
            self.overdue.insert(event.run.clone());
        }
        let key = (event.run.clone(), event.node.clone(), event.image.token());
        let first = *self.ends.entry(key).or_insert(event.state);
        if first != event.state {
            counters.bump("a second terminal event differed from the first");
        }
        Ok(())
    }

    /// A record was written.
    pub fn record(
        &mut self,
        broker: &Broker<Payload>,
        record: &Arc<JobRecord>,
        (late, by): (bool, Who),
    ) -> Verdict {
        self.round(record, by)?;
        self.in_time(broker, record, late)?;
        let (name, status) = (&record.metadata.name, &record.status);
        let counts = status.counts;
        if !counts.add_up() {
            return Err(format!("the counts of {name} do not add up: {counts:?}"));
        }
        if status.nodes.succeeded + status.nodes.failed > status.nodes.desired {
            return Err(format!(
                "the nodes of {name} do not add up: {:?}",
                status.nodes
            ));
        }
        let request = (
            record.metadata.uid.clone(),
            record.metadata.request_sequence,
        );
        let generation = record.metadata.generation;
        if *self.generations.entry(request).or_insert(generation) != generation {
            return Err(format!(
                "{name} has another generation without another request"
            ));
        }
        let grouped: u32 = status.failures.iter().map(|group| group.pulls).sum();
        if grouped != counts.failed {
            return Err(format!(
                "{name} has {} failed pulls and {grouped} in groups",
                counts.failed
            ));
        }
        if status.phase != JobPhase::Idle && status.outcome.is_none() {
            return Ok(());
        }
        if counts.active > 0 || (status.outcome.is_some() && counts.pending > 0) {
            return Err(format!("{name} is {:?} with {counts:?}", status.phase));
        }
        let run = record.run();
        let ended = |state| {
            let of_run = self.ends.iter().filter(|((of, ..), _)| *of == run);
            let count = of_run.filter(|(_, ended)| **ended == state).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        if counts.succeeded > ended(PullState::Succeeded) {
            return Err(format!(
                "{name} counts {} successes, workers told {}",
                counts.succeeded,
                ended(PullState::Succeeded)
            ));
        }
        if status.outcome.is_some() {
            let key = (record.metadata.uid.clone(), record.metadata.generation);
            let first = self.finished.entry(key).or_insert_with(|| record.clone());
            if first != record {
                return Err(format!(
                    "{name} had ended and changed: {first:?} {record:?}"
                ));
            }
        }
        Ok(())
    }

    /// A fact about a job was told.
    pub fn job_event(&mut self, id: &str, event: &JobEvent) {
        self.told.insert(id.to_owned());
        if let (JobEventKind::Deleted, Some(run)) = (event.event, &event.run) {
            self.deleted.insert(run.uid.clone());
        }
        if let (JobEventKind::Rejected, Some(sequence)) = (event.event, event.request_sequence) {
            self.rejected.insert(sequence);
        }
    }

    pub fn was_told(&self, id: &str) -> bool {
        self.told.contains(id)
    }

    /// A job's record was deleted: that was told before.
    pub fn deleted(&self, before: &JobRecord) -> Verdict {
        if self.deleted.contains(&before.metadata.uid) {
            Ok(())
        } else {
            Err(format!(
                "{} was deleted and nobody was told",
                before.metadata.name
            ))
        }
    }

    /// A request was taken off the queue: what it asked for is on record.
    pub fn acknowledged(&self, broker: &Broker<Payload>, sequence: u64) -> Verdict {
        let Some(request) = self.requests.get(&sequence) else {
            return Ok(());
        };
        let name = match &**request {
            Request::Submit(submission) => &submission.name,
            Request::Cancel(name) | Request::Pause(name, _) => name,
            Request::Delete(_) => return Ok(()),
            Request::Push(jobs) => return self.pushed(broker, sequence, jobs),
            Request::Unreadable { .. } => {
                return if self.rejected.contains(&sequence) {
                    Ok(())
                } else {
                    Err(format!("request {sequence} was not rejected"))
                };
            }
        };
        let applied =
            record(broker, name).is_some_and(|record| record.metadata.request_sequence >= sequence);
        if applied || self.rejected.contains(&sequence) || self.was_deleted_since(sequence) {
            Ok(())
        } else {
            Err(format!(
                "request {sequence} was acknowledged and is lost: {request:?}"
            ))
        }
    }

    /// A push was taken off the queue: each of its jobs is there with what it says, or with what came later.
    fn pushed(
        &self,
        broker: &Broker<Payload>,
        sequence: u64,
        jobs: &[Result<Submission, Rejection>],
    ) -> Verdict {
        for job in jobs {
            let there = job.as_ref().is_ok_and(|submission| {
                record(broker, &submission.name).is_some_and(|record| {
                    record.metadata.request_sequence >= sequence || record.spec == submission.spec
                })
            });
            if !there && !self.rejected.contains(&sequence) && !self.was_deleted_since(sequence) {
                return Err(format!(
                    "push {sequence} was acknowledged and is lost: {job:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether the job that the request made or changed has been deleted: its name is in its uid.
    fn was_deleted_since(&self, sequence: u64) -> bool {
        let made_by = |uid: &String| u64::from_str_radix(uid.split('-').nth(1)?, 16).ok();
        self.deleted
            .iter()
            .filter_map(made_by)
            .any(|by| by <= sequence)
    }
}

fn at_most(limit: u32, count: usize, what: &str) -> Verdict {
    if count <= limit as usize {
        Ok(())
    } else {
        Err(format!("{count} {what}, {limit} are allowed"))
    }
}

/// The job's record as the bucket has it.
pub fn record<'a>(
    broker: &'a Broker<Payload>,
    name: &prewarm::domain::name::JobName,
) -> Option<&'a Arc<JobRecord>> {
    let (_, message) = broker.last_by_subject(JOB_RECORDS, &job_key(&name.token()))?;
    match &message.payload {
        Payload::JobRecord(record) => Some(record),
        _ => None,
    }
}

/// Since when a node is absent, by its record; `None` if it is not.
fn gone_since(broker: &Broker<Payload>, node: &NodeName) -> Option<Timestamp> {
    let (_, message) = broker.last_by_subject(NODE_RECORDS, &node_key(&node.token()))?;
    match &message.payload {
        Payload::NodeRecord(record) if record.presence == NodePresence::Absent => {
            Some(record.since)
        }
        _ => None,
    }
}

/// All jobs' records.
pub fn records(broker: &Broker<Payload>) -> Vec<Arc<JobRecord>> {
    let record = |message: &crate::broker::Message<Payload>| match &message.payload {
        Payload::JobRecord(record) => Some(record.clone()),
        _ => None,
    };
    let newest = broker.last_per_subject(JOB_RECORDS);
    newest
        .into_iter()
        .filter_map(|(_, message)| record(message))
        .collect()
}

/// All nodes' facts, by name.
pub fn node_facts(broker: &Broker<Payload>) -> BTreeMap<NodeName, NodeFacts> {
    let newest = broker.last_per_subject(NODE_RECORDS);
    let facts = newest
        .into_iter()
        .filter_map(|(_, message)| match &message.payload {
            Payload::NodeRecord(record) => Some((record.name.clone(), record.facts.clone())),
            _ => None,
        });
    facts.collect()
}
