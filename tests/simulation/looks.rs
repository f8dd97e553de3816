//! Looking at the whole: after steps, at quiet moments, and at the end.

use std::collections::BTreeMap;

use prewarm::dispatch::state::{Dispatcher, View};
use prewarm::dispatch::{Effect, Input};
use prewarm::domain::status::{JobPhase, Outcome};
use prewarm::wire::event::{JobEventKind, PullState, TaskEvent};
use prewarm::wire::record::JobRecord;
use prewarm::wire::subject::PullKey;
use prewarm::wire::worker::PullId;

use crate::broker::Broker;
use crate::invariants::{self, Verdict};
use crate::leader::{Leader, MOST_ARRIVALS};
use crate::net::{Answer, Read, Who};
use crate::payload::{EVENTS, Payload, TASKS};
use crate::serve::read_back;
use crate::world::World;

/// How long a worker may hold what nobody wants: three heartbeats, and the wire.
const UNWANTED_LIMIT: u64 = 16_000;
/// Steps between two comparisons with a rebuilt dispatcher, at least.
const COMPARE_EVERY: u64 = 150;

impl World {
    /// Whoever leads, if it has read everything back.
    pub fn leader(&self) -> Option<&Leader> {
        let (life, leadership) = self.leading?;
        let Who::Dispatcher(index) = life.who else {
            return None;
        };
        let leader = self.dispatchers[index].leader.as_ref()?;
        (leader.leadership == leadership && leader.listens()).then_some(leader)
    }

    pub fn check_worker(&mut self, index: usize) -> Verdict {
        self.check_unwanted(index)?;
        let process = &self.workers[index];
        let (taken, outstanding) = process.slots();
        if taken + outstanding > process.facts.capacity.max(4) {
            return Err(format!(
                "{} has {taken} slots taken and asks for {outstanding} tasks",
                process.node
            ));
        }
        Ok(())
    }

    /// When all is well, a worker does not keep for long what nobody wants.
    fn check_unwanted(&mut self, index: usize) -> Verdict {
        if !self.is_well_since(60_000) || !self.steps.is_multiple_of(16) {
            return Ok(());
        }
        let (now, process) = (self.net.now, &self.workers[index]);
        let held = process
            .state
            .as_ref()
            .map(prewarm::work::state::WorkerState::holding);
        let is_wanted = |pull: &PullId| {
            let record = invariants::record(&self.broker, &pull.job);
            record.is_some_and(|record| record.run() == pull.run && record.status.outcome.is_none())
        };
        let unwanted: Vec<PullId> = held
            .unwrap_or_default()
            .into_iter()
            .filter(|pull| !is_wanted(pull))
            .collect();
        self.unwanted
            .retain(|(of, pull), _| *of != index || unwanted.contains(pull));
        for pull in unwanted {
            let since = *self.unwanted.entry((index, pull.clone())).or_insert(now);
            if now > since + UNWANTED_LIMIT {
                return Err(format!(
                    "node {index} goes on with a pull of {} nobody wants",
                    pull.job
                ));
            }
        }
        Ok(())
    }

    pub fn check_image_is_there(&self, event: &TaskEvent) -> Verdict {
        let Some(result) = event
            .result
            .as_ref()
            .filter(|_| event.state == PullState::Succeeded)
        else {
            return Ok(());
        };
        let process = self
            .workers
            .iter()
            .find(|process| process.node == event.node);
        let has = process.and_then(|process| process.images.get(&event.image.to_string()));
        if has.is_some() {
            return Ok(());
        }
        Err(format!(
            "{} is said to be on {} as {}",
            event.image, event.node, result.digest
        ))
    }

    /// At quiet moments a rebuilt dispatcher knows the same and finds nothing to do.
    pub fn check_dispatcher(&mut self, index: usize) -> Verdict {
        let process = &self.dispatchers[index];
        let Some(leader) = &process.leader else {
            return Ok(());
        };
        if leader.backlog() > MOST_ARRIVALS {
            return Err(format!(
                "dispatcher {index} has a backlog of {}",
                leader.backlog()
            ));
        }
        let is_due = self.steps >= self.compared_at + COMPARE_EVERY;
        let leads = self.leading == Some((process.life(), leader.leadership));
        let last = self.broker.last_sequence(EVENTS);
        let undisturbed = !self.checks.disturbed && !self.has_late_tasks();
        if !(is_due && leads && undisturbed && leader.is_quiet(last)) {
            return Ok(());
        }
        let now = process.clock.wall(self.net.now);
        if leader.state.next_deadline().is_some_and(|at| at <= now) {
            return Ok(());
        }
        self.compared_at = self.steps;
        let mut rebuilt = rebuild(&self.broker, now, self.settings);
        let difference = differ(&leader.state.view(), &rebuilt.view());
        self.net.counters.bump("a rebuilt dispatcher was compared");
        if let Some(difference) = difference {
            return Err(format!(
                "a rebuilt dispatcher is not the same: {difference}"
            ));
        }
        let mut effects = Vec::new();
        rebuilt.handle(now, Input::Lead, &mut effects);
        let unexpected = effects.iter().find(|effect| !self.is_expected(effect));
        match unexpected {
            None => Ok(()),
            Some(effect) => Err(format!(
                "a takeover at a quiet moment would {}",
                crate::describe::effect(effect)
            )),
        }
    }

    fn has_late_tasks(&self) -> bool {
        let mut stored = self.broker.messages(TASKS, 0);
        stored.any(|(sequence, _)| self.checks.late_tasks.contains(&sequence))
    }

    /// What a takeover may do although nothing is left undone.
    fn is_expected(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Resolve { .. } => true,
            Effect::WithdrawPull(key) => self.has_ended(key),
            _ => false,
        }
    }

    fn has_ended(&self, key: &PullKey) -> bool {
        let is_it = |(run, node, image): &(prewarm::wire::task::Run, _, String)| {
            let task = self.broker.last_by_subject(
                TASKS,
                &prewarm::wire::subject::Subjects::default().task(key),
            );
            let of_run = task.is_some_and(|(_, message)| match &message.payload {
                Payload::Task(task) => task.run == *run,
                _ => false,
            });
            of_run && *node == key.node && *image == key.image
        };
        self.checks.ends.keys().any(is_it)
    }

    /// What has not come to its end, in words.
    pub fn unfinished(&self) -> Option<String> {
        if !self.net.broker_up {
            return Some("the broker is down".to_owned());
        }
        let waiting = self.waiting_requests();
        if let Some((sequence, _)) = waiting.first() {
            return Some(format!("request {sequence} waits"));
        }
        for record in invariants::records(&self.broker) {
            if let Some(what) = self.is_unfinished(&record) {
                return Some(what);
            }
        }
        if let Some(what) = self.ownerless_pin() {
            return Some(what);
        }
        let last = self.broker.last_sequence(EVENTS);
        match self.leader() {
            None => Some("nobody leads".to_owned()),
            Some(leader) if !leader.is_quiet(last) => Some("the leader is busy".to_owned()),
            Some(_) => None,
        }
    }

    fn is_unfinished(&self, record: &JobRecord) -> Option<String> {
        let name = &record.metadata.name;
        if record.status.outcome.is_some() || self.seen_idle.contains(name) {
            return None;
        }
        if record.status.phase == JobPhase::Idle {
            return None;
        }
        let repeats =
            record.spec.completion_policy.kind == prewarm::domain::job::CompletionType::Never;
        let matching = |(node, process): &(&_, &crate::worker::WorkerProcess)| {
            record.spec.selector.matches(node, &process.facts.labels)
        };
        let anybody = self.nodes_that_live().iter().any(matching);
        if repeats && !anybody {
            return None;
        }
        let (phase, counts) = (record.status.phase, record.status.counts);
        Some(format!("{name} is {phase:?} with {counts:?}"))
    }

    /// Everything has ended: nothing is missing and nothing is left over.
    pub fn check_the_end(&mut self) -> Verdict {
        self.check_pins_held()?;
        for record in invariants::records(&self.broker) {
            let status = &record.status;
            let end = status.outcome.map(|outcome| match outcome {
                Outcome::Cancelled => JobEventKind::Cancelled,
                _ => JobEventKind::Completed,
            });
            let started = status.started_at.map(|_| JobEventKind::Started);
            let (uid, generation) = (&record.metadata.uid, record.metadata.generation);
            let id = |kind: JobEventKind| format!("{uid}.{generation}.{}", kind.token());
            let round = format!("{uid}.{generation}.{}.round-completed", status.round);
            let round = status.round_completed_at.map(|_| round);
            let expected = [started.map(id), end.map(id), round];
            for id in expected.into_iter().flatten() {
                if !self.checks.was_told(&id) {
                    return Err(format!("{} was never told: {id}", record.metadata.name));
                }
            }
        }
        let finished: BTreeMap<_, _> = invariants::records(&self.broker)
            .into_iter()
            .map(|record| {
                (
                    record.metadata.name.clone(),
                    record.status.outcome.is_some(),
                )
            })
            .collect();
        for (sequence, message) in self.broker.messages(TASKS, 0) {
            let Payload::Task(task) = &message.payload else {
                continue;
            };
            let is_late = self.checks.late_tasks.contains(&sequence);
            if !is_late && finished.get(&task.job).copied().unwrap_or(true) {
                return Err(format!("a task of {} was left over", task.job));
            }
        }
        Ok(())
    }
}

/// A dispatcher that has read everything back at one moment.
fn rebuild(
    broker: &Broker<Payload>,
    now: prewarm::domain::time::Timestamp,
    settings: prewarm::dispatch::state::Settings,
) -> Dispatcher {
    let mut rebuilt = Dispatcher::new(settings);
    let mut feed = |read| {
        let Answer::Read { inputs, cursor, .. } = read_back(broker, read) else {
            return 0;
        };
        for input in inputs {
            rebuilt.handle(now, input, &mut Vec::new());
        }
        cursor
    };
    let end = feed(Read::EventsEnd);
    for read in [Read::Nodes, Read::Jobs, Read::Tasks, Read::Told] {
        feed(read);
    }
    let after = rebuilt.events_after().min(end);
    let Answer::Read { inputs, .. } = read_back(broker, Read::EventsAfter(after)) else {
        return rebuilt;
    };
    for input in inputs {
        rebuilt.handle(now, input, &mut Vec::new());
    }
    rebuilt
}

/// The first difference between what two dispatchers know. A failure group's message is what any
/// one of its pulls said, so it may differ.
fn differ(live: &View, rebuilt: &View) -> Option<String> {
    let normal = |record: &JobRecord| {
        let mut record = record.clone();
        for group in &mut record.status.failures {
            group.message.clear();
        }
        record
    };
    let jobs = |view: &View| -> Vec<JobRecord> { view.jobs.values().map(normal).collect() };
    let (live_jobs, rebuilt_jobs) = (jobs(live), jobs(rebuilt));
    let pair = live_jobs
        .iter()
        .zip(&rebuilt_jobs)
        .find(|(one, other)| one != other);
    if let Some((one, other)) = pair {
        return Some(format!("{one:?}\nand {other:?}"));
    }
    if live_jobs.len() != rebuilt_jobs.len() {
        return Some(format!(
            "{} jobs and {}",
            live_jobs.len(),
            rebuilt_jobs.len()
        ));
    }
    if live.nodes != rebuilt.nodes {
        return Some(format!("{:?}\nand {:?}", live.nodes, rebuilt.nodes));
    }
    let only = live
        .pulls
        .iter()
        .find(|(key, state)| rebuilt.pulls.get(key) != Some(state));
    if let Some((key, state)) = only {
        return Some(format!("{key:?} {state} and {:?}", rebuilt.pulls.get(key)));
    }
    (live.pulls.len() != rebuilt.pulls.len())
        .then(|| format!("{} pulls and {}", live.pulls.len(), rebuilt.pulls.len()))
}
