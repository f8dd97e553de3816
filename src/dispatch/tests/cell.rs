//! A cell with a perfect broker: what the dispatcher asks for is done at once and completely.

mod rebuild;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::dispatch::state::{Dispatcher, Settings, View};
use crate::dispatch::{Effect, Input, Pause, ReplyToken, Request};
use crate::domain::failure::FailureKind;
use crate::domain::image::{Digest, ImageRef};
use crate::domain::job::JobSpec;
use crate::domain::name::{JobName, NodeName};
use crate::domain::node::NodeFacts;
use crate::domain::pin::Pin;
use crate::domain::status::Counts;
use crate::domain::time::Timestamp;
use crate::wire::event::{
    FailureReport, JobEvent, JobEventKind, NodeEventKind, PullResult, PullState, TaskEvent,
};
use crate::wire::manifest::Submission;
use crate::wire::record::{JobRecord, NodeRecord, ResolvedImage};
use crate::wire::subject::PullKey;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::{GONE_AFTER_SECONDS, HEARTBEAT_SECONDS, Heartbeat, PullId, Registration};

pub(super) fn job(name: &str) -> JobName {
    name.parse().unwrap()
}

pub(super) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(super) fn image(name: &str) -> ImageRef {
    name.parse().unwrap()
}

/// A fact about a job with its id, in the order in which they were told.
pub(super) type Told = (String, JobEvent);

/// The dispatcher under test and everything around it.
pub(super) struct Cell {
    pub(super) dispatcher: Dispatcher,
    settings: Settings,
    pub(super) now: Timestamp,
    /// The task stream.
    pub(super) tasks: BTreeMap<PullKey, (u64, PullTask)>,
    last_task: u64,
    pub(super) records: BTreeMap<JobName, JobRecord>,
    pub(super) nodes: BTreeMap<NodeName, NodeRecord>,
    /// The event stream, task events only.
    pub(super) events: Vec<(u64, TaskEvent)>,
    last_event: u64,
    pub(super) told: Vec<Told>,
    pub(super) node_events: Vec<(NodeName, NodeEventKind)>,
    last_request: u64,
    pub(super) acknowledged: Vec<u64>,
    /// How many records were written.
    pub(super) writes: usize,
    pub(super) revoked: Vec<(NodeName, PullId)>,
    pub(super) unpinned: Vec<(NodeName, Pin)>,
    /// The start of the consumer that was made or found last, by node.
    pub(super) welcomed: Vec<(NodeName, bool, u64)>,
    /// Workers that live, with their facts.
    workers: BTreeMap<NodeName, NodeFacts>,
    /// Whether the registry answers at once; otherwise see [`Cell::resolve`].
    pub(super) resolves: bool,
    pub(super) unresolved: Vec<(JobName, Run, Vec<ImageRef>)>,
    /// Whether the broker answers a release at once; otherwise see [`Cell::confirm_releases`].
    pub(super) confirms: bool,
    unconfirmed: Vec<Input>,
}

impl Cell {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let mut cell = Self {
            dispatcher: Dispatcher::new(settings),
            settings,
            now: Timestamp::from_millis(1_790_000_000_000),
            tasks: BTreeMap::new(),
            last_task: 0,
            records: BTreeMap::new(),
            nodes: BTreeMap::new(),
            events: Vec::new(),
            last_event: 0,
            told: Vec::new(),
            node_events: Vec::new(),
            last_request: 0,
            acknowledged: Vec::new(),
            writes: 0,
            revoked: Vec::new(),
            unpinned: Vec::new(),
            welcomed: Vec::new(),
            workers: BTreeMap::new(),
            resolves: true,
            unresolved: Vec::new(),
            confirms: true,
            unconfirmed: Vec::new(),
        };
        cell.tell(Input::Lead);
        cell
    }

    /// With these nodes present, all of capacity 3.
    pub(super) fn of_nodes(names: &[&str]) -> Self {
        let mut cell = Self::new();
        for name in names {
            cell.join(name);
        }
        cell
    }

    /// Hands an input to the dispatcher and does what it asks for, in order, until it asks for
    /// nothing more.
    pub(super) fn tell(&mut self, input: Input) {
        let mut asked = VecDeque::new();
        let mut inputs = VecDeque::from([input]);
        loop {
            let mut effects = Vec::new();
            while let Some(input) = inputs.pop_front() {
                self.dispatcher.handle(self.now, input, &mut effects);
                self.check();
            }
            asked.extend(effects);
            let Some(effect) = asked.pop_front() else {
                break;
            };
            inputs.extend(self.perform(effect));
        }
    }

    /// What has to hold after every step.
    fn check(&self) {
        for (name, record) in self.dispatcher.view().jobs {
            let counts = record.status.counts;
            assert!(counts.add_up(), "{name}: {counts:?}");
        }
    }

    pub(super) fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::PutRecord(record) => {
                self.writes += 1;
                self.records.insert(record.metadata.name.clone(), *record);
            }
            Effect::DeleteRecord(name) => {
                self.records.remove(&name);
            }
            Effect::PutNode(record) => {
                self.nodes.insert(record.name.clone(), *record);
            }
            Effect::DeleteNode(name) => {
                self.nodes.remove(&name);
            }
            Effect::TellJob { id, event, .. } => self.told.push((id, *event)),
            Effect::TellPull { event, .. } => {
                self.last_event += 1;
                self.events.push((self.last_event, (*event).clone()));
                let sequence = self.last_event;
                return Some(Input::TaskEvent { event, sequence });
            }
            Effect::TellNode { event, .. } => self.node_events.push((event.node, event.event)),
            Effect::Release(task) => return self.release(*task),
            Effect::WithdrawJob(name) => self.tasks.retain(|key, _| key.job != name),
            Effect::WithdrawPull(key) => {
                self.tasks.remove(&key);
            }
            Effect::Revoke { node, revocation } => {
                let pulls = revocation.pulls.into_iter();
                self.revoked.extend(pulls.map(|pull| (node.clone(), pull)));
                let pins = revocation.unpin.into_iter();
                self.unpinned.extend(pins.map(|pin| (node.clone(), pin)));
            }
            Effect::Resolve {
                job, run, images, ..
            } => {
                self.unresolved.push((job, run, images));
                if self.resolves {
                    return self.next_resolution();
                }
            }
            Effect::Welcome {
                node,
                remake,
                start,
                ..
            } => self.welcomed.push((node, remake, start)),
            Effect::Acknowledge { sequence } => self.acknowledged.push(sequence),
        }
        None
    }

    fn release(&mut self, task: PullTask) -> Option<Input> {
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        self.last_task += 1;
        let (sequence, run) = (self.last_task, task.run.clone());
        let before = self.tasks.insert(key.clone(), (sequence, task));
        assert_eq!(before, None, "released over a message: {key:?}");
        let stored = Input::Released { key, run, sequence };
        if self.confirms {
            return Some(stored);
        }
        self.unconfirmed.push(stored);
        None
    }

    /// The broker's word for every release that waits for one.
    pub(super) fn confirm_releases(&mut self) {
        for stored in std::mem::take(&mut self.unconfirmed) {
            self.tell(stored);
        }
    }

    /// How many pulls were ever released.
    pub(super) fn releases(&self) -> u64 {
        self.last_task
    }

    fn next_resolution(&mut self) -> Option<Input> {
        let (job, run, images) = self.unresolved.pop()?;
        let resolved = |image: ImageRef| ResolvedImage {
            digest: Some(Digest::of(image.to_string().as_bytes())),
            image,
            problem: None,
        };
        let images = images.into_iter().map(resolved).collect();
        Some(Input::Resolved { job, run, images })
    }

    /// Answers the question to the registry that was asked last.
    pub(super) fn resolve(&mut self) {
        let answer = self.next_resolution().expect("a question to the registry");
        self.tell(answer);
    }

    /// A node with capacity 3 and no labels registers.
    pub(super) fn join(&mut self, name: &str) {
        self.join_with(name, &[], 3);
    }

    pub(super) fn join_with(&mut self, name: &str, labels: &[(&str, &str)], capacity: u32) {
        let label = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let facts = NodeFacts {
            waiting: None,
            labels: labels.iter().map(label).collect(),
            platform: "linux/amd64".parse().unwrap(),
            runtime: "simulated 1".to_owned(),
            capacity,
            disk_total_bytes: 100,
            disk_free_bytes: 50,
            version: "0.1.0".to_owned(),
        };
        self.workers.insert(node(name), facts);
        self.register(name, false);
    }

    /// The node's worker says that it waits, and why, or that it takes new pulls again.
    pub(super) fn hold(&mut self, name: &str, why: Option<&str>) {
        if let Some(facts) = self.workers.get_mut(&node(name)) {
            facts.waiting = why.map(str::to_owned);
        }
        self.register(name, false);
    }

    /// The node's worker announces itself again.
    pub(super) fn register(&mut self, name: &str, consumer_lost: bool) {
        let registration = Registration {
            instance: format!("{name}-1"),
            facts: self.workers[&node(name)].clone(),
            consumer_lost,
        };
        self.tell(Input::Registered {
            node: node(name),
            registration: Box::new(registration),
            reply: ReplyToken(0),
        });
    }

    /// The node falls silent and is noticed.
    pub(super) fn leave(&mut self, name: &str) {
        self.workers.remove(&node(name)).expect("a worker");
        self.advance(GONE_AFTER_SECONDS + 1);
    }

    /// Time passes: heartbeats come, timers fire.
    pub(super) fn advance(&mut self, seconds: u64) {
        let end = self.now.after(Duration::from_secs(seconds));
        let mut beat = self.now.after(Duration::from_secs(HEARTBEAT_SECONDS));
        loop {
            let timer = self.dispatcher.next_deadline().filter(|at| *at < beat);
            let next = timer.unwrap_or(beat);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if timer.is_some() {
                self.tell(Input::Tick);
                continue;
            }
            for name in self.workers.keys().cloned().collect::<Vec<_>>() {
                self.heartbeat(&name, Vec::new());
            }
            beat = beat.after(Duration::from_secs(HEARTBEAT_SECONDS));
        }
        self.now = end;
    }

    pub(super) fn heartbeat(&mut self, name: &NodeName, holding: Vec<PullId>) {
        let heartbeat = Heartbeat {
            instance: format!("{name}-1"),
            holding,
            pins: Vec::new(),
        };
        self.hear(name, heartbeat);
    }

    pub(super) fn hear(&mut self, name: &NodeName, heartbeat: Heartbeat) {
        let node = name.clone();
        self.tell(Input::Heartbeat { node, heartbeat });
    }

    /// The next message in `PREWARM_JOBS`; its sequence.
    pub(super) fn request(&mut self, request: Request) -> u64 {
        self.last_request += 1;
        self.repeat(request, self.last_request);
        self.last_request
    }

    /// The same message again.
    pub(super) fn repeat(&mut self, request: Request, sequence: u64) {
        self.tell(Input::Request { request, sequence });
        assert_eq!(self.acknowledged.last(), Some(&sequence));
    }

    /// A job of one image on every node, ten at a time, changed by `change`.
    pub(super) fn submit(&mut self, name: &str, change: impl FnOnce(&mut JobSpec)) -> u64 {
        self.request(submission(name, change))
    }

    pub(super) fn cancel(&mut self, name: &str) -> u64 {
        self.request(Request::Cancel(job(name)))
    }

    pub(super) fn delete(&mut self, name: &str) -> u64 {
        self.request(Request::Delete(job(name)))
    }

    pub(super) fn pause(&mut self, name: &str, pause: Pause) -> u64 {
        self.request(Request::Pause(job(name), pause))
    }

    /// The pulls that are released and unfinished, as `node/image`, in order.
    pub(super) fn active(&self, name: &str) -> Vec<String> {
        let pulls = self.dispatcher.view().pulls;
        let active = pulls.iter().filter(|(key, state)| {
            key.job == job(name) && **state == "active" && self.tasks.contains_key(key)
        });
        active.map(|(key, _)| self.label(key)).collect()
    }

    fn label(&self, key: &PullKey) -> String {
        let (_, task) = &self.tasks[key];
        format!("{}/{}", key.node, task.image.repository())
    }

    /// The pull that was released to this node first, of those that are unfinished: its job and image.
    pub(super) fn unfinished_on(&self, on: &str) -> Option<(JobName, String)> {
        let pulls = self.dispatcher.view().pulls;
        let of_node = pulls.iter().filter(|(key, _)| key.node == node(on));
        let active = of_node.filter(|(_, state)| **state == "active");
        let tasks = active.filter_map(|(key, _)| Some((key, self.tasks.get(key)?)));
        let (key, (_, task)) = tasks.min_by_key(|(_, (sequence, _))| *sequence)?;
        Some((key.job.clone(), task.image.to_string()))
    }

    /// Every released pull succeeds, and those released then, until nothing is.
    pub(super) fn succeed_all(&mut self) {
        let mut done = BTreeSet::new();
        loop {
            let next = self
                .tasks
                .iter()
                .find(|(_, (sequence, _))| !done.contains(sequence));
            let Some((_, (sequence, task))) = next else {
                break;
            };
            done.insert(*sequence);
            let (name, on, of) = (task.job.clone(), task.node.clone(), task.image.to_string());
            self.succeed(name.as_str(), on.as_str(), &of);
        }
    }

    /// The job as the dispatcher knows it now.
    pub(super) fn record(&self, name: &str) -> JobRecord {
        self.dispatcher.view().jobs[&job(name)].clone()
    }

    pub(super) fn counts(&self, name: &str) -> Counts {
        self.record(name).status.counts
    }

    /// What was told of a job, in order.
    pub(super) fn kinds(&self, name: &str) -> Vec<JobEventKind> {
        let of_job = self
            .told
            .iter()
            .filter(|(_, event)| event.job == Some(job(name)));
        of_job.map(|(_, event)| event.event).collect()
    }
}

pub(super) fn submission(name: &str, change: impl FnOnce(&mut JobSpec)) -> Request {
    let mut spec = JobSpec::new(vec![image("app:1")]);
    change(&mut spec);
    Request::Submit(Box::new(Submission {
        name: job(name),
        labels: BTreeMap::new(),
        spec,
        trace: None,
    }))
}
