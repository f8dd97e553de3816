//! A worker's process, as `prewarm::work::run` is, with a runtime that keeps names of images.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prewarm::domain::failure::{Failure, FailureKind};
use prewarm::domain::image::{Digest, Platform};
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::name::NodeName;
use prewarm::domain::node::NodeFacts;
use prewarm::domain::pin::Pin;
use prewarm::wire::event::PullResult;
use prewarm::wire::subject::{PullKey, Subjects};
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::Registration;
use prewarm::work::effect::{
    ConsumerName, DeliveryToken, Effect, EventToStore, Note, PullHandle, StoreHandle,
};
use prewarm::work::input::{FetchEnd, Input};
use prewarm::work::state::kept::KeptResult;
use prewarm::work::state::{Settings, WorkerState};

use crate::broker::{Delivery, Demands, End, Millis};
use crate::dispatcher::{Clock, Step};
use crate::net::{
    Answer, Ask, Core, Event, Life, Net, PullEnd, TaskAnswer, Ticket, TimerKind, Who,
};
use crate::payload::{EVENTS, Payload, TASKS};

/// How long the shell waits for an answer.
const REQUEST_TIMEOUT: Millis = 5_000;
/// How long a request for tasks stays open (`bus::pull`).
const FETCH_EXPIRES: Millis = 120_000;
/// How long the broker may say nothing (`bus::pull`).
const SILENCE: Millis = 25_000;

/// What a node has of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnNode {
    digest: Digest,
    platform: Option<Platform>,
    unpacked: bool,
}

impl OnNode {
    fn is_good_enough(&self, task: &PullTask) -> bool {
        let is_newest = match task.image_pull_policy {
            ImagePullPolicy::IfNotPresent => true,
            ImagePullPolicy::Always => Some(&self.digest) == task.digest.as_ref(),
        };
        is_newest && self.platform == task.platform && (self.unpacked || !task.unpack)
    }
}

struct Running {
    task: Arc<PullTask>,
    cancelled: bool,
    /// Whether it fails of a registry that is not well.
    fails: bool,
}

/// One node, its worker running or not.
pub struct WorkerProcess {
    index: usize,
    pub node: NodeName,
    pub incarnation: u32,
    pub is_up: bool,
    pub frozen_until: Millis,
    pub clock: Clock,
    pub facts: NodeFacts,
    pub state: Option<WorkerState>,
    /// What the node has, by reference.
    pub images: BTreeMap<String, OnNode>,
    /// What holds its images: labels of the runtime, so they outlive the worker.
    pub pins: BTreeSet<Pin>,
    /// Results on its disk, by message id.
    kept: BTreeMap<String, KeptResult>,
    /// What an earlier life left there.
    inherited: BTreeMap<String, KeptResult>,
    running: BTreeMap<PullHandle, Running>,
    tokens: BTreeMap<DeliveryToken, u64>,
    next_token: u64,
    /// Requests for tasks that are open, and what they lack.
    fetches: BTreeMap<Ticket, u32>,
    stores: BTreeMap<Ticket, (StoreHandle, bool)>,
    registering: Option<Ticket>,
    tick: Option<Millis>,
    pub stopping: bool,
    pub crash_after: Option<u32>,
}

impl WorkerProcess {
    pub fn new(index: usize, facts: NodeFacts, clock: Clock) -> Self {
        Self {
            index,
            node: format!("n{index}").parse().expect("a node's name"),
            incarnation: 0,
            is_up: false,
            frozen_until: 0,
            clock,
            facts,
            state: None,
            images: BTreeMap::new(),
            pins: BTreeSet::new(),
            kept: BTreeMap::new(),
            inherited: BTreeMap::new(),
            running: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            fetches: BTreeMap::new(),
            stores: BTreeMap::new(),
            registering: None,
            tick: None,
            stopping: false,
            crash_after: None,
        }
    }

    pub fn life(&self) -> Life {
        Life {
            who: Who::Worker(self.index),
            incarnation: self.incarnation,
        }
    }

    fn instance(&self) -> String {
        format!("{}-{}", self.node, self.incarnation)
    }

    pub fn begin(&mut self, net: &mut Net) -> Step {
        self.incarnation += 1;
        self.is_up = true;
        self.stopping = false;
        self.crash_after = None;
        self.tick = None;
        self.registering = None;
        let settings = Settings::new(self.node.clone(), self.instance(), self.facts.capacity);
        let now = self.clock.wall(net.now);
        let kept = self.kept.values().cloned().collect();
        self.inherited = self.kept.clone();
        self.state = Some(WorkerState::new(settings, net.rng.next(), now).with_kept(now, kept));
        net.nodes.insert(self.node.clone(), self.life());
        self.step(net, Input::Tick)
    }

    pub fn crash(&mut self, net: &mut Net) {
        if !self.running.is_empty() {
            net.counters.bump("a running pull's worker crashed");
        }
        net.nodes.remove(&self.node);
        self.is_up = false;
        self.state = None;
        self.running.clear();
        self.tokens.clear();
        self.fetches.clear();
        self.stores.clear();
    }

    pub fn stop(&mut self, net: &mut Net) -> Step {
        self.stopping = true;
        self.step(net, Input::Stop)
    }

    pub fn slots(&self) -> (u32, u32) {
        let state = self.state.as_ref();
        state.map_or((0, 0), |state| (state.slots_taken(), state.outstanding()))
    }

    pub fn step(&mut self, net: &mut Net, input: Input) -> Step {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(state) = &mut self.state else {
                return Step::Done;
            };
            if let Input::PullEnded { pull, .. } = &input {
                self.running.remove(pull);
            }
            let mut effects = Vec::new();
            let index = self.index;
            net.trace.line(net.now, || {
                format!(
                    "worker {index} takes {}",
                    crate::describe::work_input(&input)
                )
            });
            state.handle(self.clock.wall(net.now), input, &mut effects);
            for effect in effects {
                match &mut self.crash_after {
                    Some(0) => {
                        net.counters.bump("a worker crashed between two effects");
                        return Step::Crashes;
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
                net.trace.line(net.now, || {
                    format!(
                        "worker {index} does {}",
                        crate::describe::work_effect(&effect)
                    )
                });
                if effect == Effect::Drained {
                    net.counters.bump("a worker drained");
                    return Step::Ended;
                }
                inputs.extend(self.perform(net, effect));
            }
        }
        self.arm(net);
        Step::Done
    }

    fn arm(&mut self, net: &mut Net) {
        let deadline = self.state.as_ref().and_then(WorkerState::next_deadline);
        let Some((at, _)) = deadline else {
            return;
        };
        let at = self.clock.when_wall(at).max(net.now + 1);
        if self.tick.is_none_or(|armed| at < armed) {
            self.tick = Some(at);
            let (to, timer) = (self.life(), TimerKind::State);
            net.at(at, Event::Tick { to, timer });
        }
    }

    pub fn tick(&mut self, net: &mut Net) -> Step {
        if self.tick.take_if(|at| *at <= net.now).is_none() {
            return Step::Done;
        }
        self.step(net, Input::Tick)
    }

    fn perform(&mut self, net: &mut Net, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Register { consumer_lost } => self.register(net, consumer_lost),
            Effect::Fetch { consumer, batch } => {
                let ask = Ask::Pull {
                    stream: TASKS,
                    consumer: consumer.consumer,
                    batch,
                    expires: FETCH_EXPIRES,
                };
                let limit = FETCH_EXPIRES + SILENCE;
                let ticket = net.ask(self.life(), 0, ask, limit);
                self.fetches.insert(ticket, batch);
            }
            Effect::StopFetching => self.reset_fetches(net),
            Effect::StartPull {
                pull,
                task,
                attempt,
            } => {
                if attempt > 1 {
                    net.counters.bump("a failed pull was tried again");
                }
                self.start_pull(net, pull, task);
            }
            Effect::CancelPull(pull) => {
                if let Some(running) = self.running.get_mut(&pull) {
                    running.cancelled = true;
                    let at = net.now + net.rng.range(1, 200);
                    let to = self.life();
                    net.at(at, Event::ImagePulled { to, pull });
                }
            }
            Effect::Store(event) => self.store(net, &event),
            Effect::Keep(event) => self.keep(net, &event),
            Effect::Discard(event) => {
                self.kept.remove(&event.message_id);
            }
            Effect::Ack(token) => self.answer(net, token, TaskAnswer::Ack),
            Effect::Nak { token, delay } => {
                let delay = delay.map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(0));
                self.answer(net, token, TaskAnswer::Nak(delay));
            }
            Effect::InProgress(token) => {
                if let Some(sequence) = self.tokens.get(&token).copied() {
                    self.say(net, sequence, TaskAnswer::InProgress);
                }
            }
            Effect::Forget(token) => {
                self.tokens.remove(&token);
            }
            Effect::Heartbeat(heartbeat) => {
                let node = self.node.clone();
                let message = Core::Heartbeat { node, heartbeat };
                net.send_to_dispatchers(self.life(), &message);
            }
            Effect::FindPins => return Some(self.find_pins(net)),
            Effect::Unpin(pins) => {
                self.pins
                    .retain(|held| !pins.iter().any(|pin| held.goes_with(pin)));
                net.counters.bump("pins were taken back");
                return Some(Input::Unpinned);
            }
            Effect::Note(Note::Revoked(_)) => {
                net.counters.bump("a revocation stopped a running pull");
            }
            Effect::Note(_) | Effect::Drained => {}
        }
        None
    }

    fn keep(&mut self, net: &mut Net, event: &EventToStore) {
        if net.rng.percent(10) {
            net.counters.bump("a disk took no result");
            return;
        }
        let kept = KeptResult::from(event);
        self.kept.insert(event.message_id.clone(), kept);
    }

    fn register(&mut self, net: &mut Net, consumer_lost: bool) {
        if consumer_lost {
            net.counters.bump("a consumer was lost");
        }
        let ticket = net.ticket();
        self.registering = Some(ticket);
        let registration = Registration {
            instance: self.instance(),
            facts: self.facts.clone(),
            consumer_lost,
        };
        let message = Core::Registration {
            node: self.node.clone(),
            registration,
            reply: (self.life(), ticket),
        };
        let to = self.life();
        let heard = net.send_to_dispatchers(self.life(), &message);
        let limit = if heard {
            REQUEST_TIMEOUT
        } else {
            net.latency()
        };
        let answer = Answer::Unclear;
        net.at(net.now + limit, Event::Answered { to, ticket, answer });
    }

    fn reset_fetches(&mut self, net: &mut Net) {
        for pull in std::mem::take(&mut self.fetches).into_keys() {
            let ask = Ask::DropPull {
                stream: TASKS,
                consumer: self.node.token(),
                pull,
            };
            net.tell(self.life(), 0, ask);
        }
    }

    fn start_pull(&mut self, net: &mut Net, pull: PullHandle, task: Arc<PullTask>) {
        let image = task.image.to_string();
        let present = self.images.get(&image);
        let is_there = present.is_some_and(|present| present.is_good_enough(&task));
        let takes = if is_there {
            net.rng.range(2, 40)
        } else if net.registry.stalls_until > net.now {
            net.rng.range(60_000, 120_000)
        } else if net.rng.percent(10) {
            net.rng.range(5_000, 40_000)
        } else {
            net.rng.range(100, 4_000)
        };
        let running = Running {
            task,
            cancelled: false,
            fails: net.registry.flaky_until > net.now && net.rng.percent(50),
        };
        self.running.insert(pull, running);
        let to = self.life();
        net.at(net.now + takes, Event::ImagePulled { to, pull });
    }

    pub fn image_pulled(&mut self, net: &mut Net, pull: PullHandle) -> Step {
        let Some(running) = self.running.get(&pull) else {
            return Step::Done;
        };
        let (task, cancelled, fails) = (running.task.clone(), running.cancelled, running.fails);
        let result = if cancelled {
            Err(Failure::new(FailureKind::Internal, "cancelled"))
        } else if fails {
            Err(Failure::new(FailureKind::RateLimited, "too many requests"))
        } else {
            self.put(net, &task)
        };
        self.step(net, Input::PullEnded { pull, result })
    }

    fn put(&mut self, net: &mut Net, task: &PullTask) -> Result<PullResult, Failure> {
        let image = task.image.to_string();
        let present = self.images.get(&image).cloned();
        let present = present.filter(|present| present.is_good_enough(task));
        let good_enough = present.is_some();
        let digest = match present {
            Some(present) => present.digest,
            None => {
                if !net.registry.is_up(net.now) {
                    net.counters.bump("a pull met a registry that was down");
                }
                let newest = net.registry.digest(net.now, &task.image)?;
                let digest = task.digest.clone().unwrap_or(newest);
                let on_node = OnNode {
                    digest: digest.clone(),
                    platform: task.platform.clone(),
                    unpacked: task.unpack,
                };
                self.images.insert(image, on_node);
                digest
            }
        };
        self.pin(task);
        let bytes = if good_enough { 0 } else { 1_000 };
        Ok(PullResult {
            digest,
            already_present: good_enough,
            bytes_registry: bytes,
            bytes_elsewhere: 0,
            bytes_present: 1_000 - bytes,
            resolve_millis: 1,
            download_millis: 1,
            unpack_millis: 1,
            engine: String::new(),
            engine_reason: String::new(),
        })
    }

    fn find_pins(&self, net: &mut Net) -> Input {
        if net.rng.percent(5) {
            // The runtime does not answer.
            return Input::PinsFound(None);
        }
        Input::PinsFound(Some(self.pins.iter().cloned().collect()))
    }

    /// As the runtime does: a hold of an earlier generation becomes one of this.
    fn pin(&mut self, task: &PullTask) {
        let pin = Pin {
            uid: task.run.uid.clone(),
            image: task.image.token(),
            generation: task.run.generation,
        };
        let newer = |held: &Pin| held.is_same_hold(&pin) && held.generation > pin.generation;
        if task.pin && !self.pins.iter().any(newer) {
            self.pins.retain(|held| !held.is_same_hold(&pin));
            self.pins.insert(pin);
        }
    }

    fn store(&mut self, net: &mut Net, stored: &EventToStore) {
        let event = &stored.event;
        let key = PullKey::new(self.node.clone(), event.job.clone(), &event.image);
        let ask = Ask::Publish {
            stream: EVENTS,
            subject: Subjects::default().task_event(&key),
            payload: Payload::TaskEvent(Arc::new(event.clone())),
            demands: Demands {
                message_id: Some(stored.message_id.clone()),
                last_subject_sequence: None,
            },
        };
        let ticket = net.ask(self.life(), 0, ask, REQUEST_TIMEOUT);
        let inherited = self.inherited.contains_key(&stored.message_id);
        self.stores.insert(ticket, (stored.store, inherited));
    }

    fn answer(&mut self, net: &mut Net, token: DeliveryToken, answer: TaskAnswer) {
        if let Some(sequence) = self.tokens.remove(&token) {
            self.say(net, sequence, answer);
        }
    }

    fn say(&mut self, net: &mut Net, sequence: u64, answer: TaskAnswer) {
        let ask = Ask::Answer {
            stream: TASKS,
            consumer: self.node.token(),
            sequence,
            answer,
        };
        net.tell(self.life(), 0, ask);
    }

    pub fn answered(&mut self, net: &mut Net, ticket: Ticket, answer: &Answer) -> Step {
        if self.registering.take_if(|open| *open == ticket).is_some() {
            return self.step(net, Input::NotRegistered);
        }
        if let Some((store, inherited)) = self.stores.remove(&ticket) {
            let is_stored = matches!(answer, Answer::Published(Ok(_)));
            if is_stored && inherited {
                net.counters.bump("a result of an earlier life was stored");
            }
            if !is_stored {
                net.counters.bump("a worker stored an event again");
            }
            let input = if is_stored {
                Input::Stored(store)
            } else {
                Input::NotStored(store)
            };
            return self.step(net, input);
        }
        self.pull_over(net, ticket, 0, PullEnd::Silence)
    }

    pub fn delivered(&mut self, net: &mut Net, pull: Ticket, delivery: Delivery<Payload>) -> Step {
        let Some(left) = self.fetches.get_mut(&pull) else {
            // Nobody listens there any more.
            return Step::Done;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.fetches.remove(&pull);
        }
        let Payload::Task(task) = delivery.payload else {
            return Step::Done;
        };
        let finished = |kept: &KeptResult| {
            let event = &kept.event;
            event.job == task.job && event.run == task.run && event.image == task.image
        };
        if self.inherited.values().any(finished) {
            net.counters
                .bump("a task came again that an earlier life had finished");
        }
        self.next_token += 1;
        let token = DeliveryToken(self.next_token);
        self.tokens.insert(token, delivery.sequence);
        let input = Input::Delivered {
            token,
            task,
            deliveries: delivery.deliveries,
        };
        self.step(net, input)
    }

    pub fn pull_over(
        &mut self,
        net: &mut Net,
        pull: Ticket,
        undelivered: u32,
        end: PullEnd,
    ) -> Step {
        if self.fetches.remove(&pull).is_none() {
            return Step::Done;
        }
        let input = match end {
            PullEnd::Said(End::Expired) => Input::FetchEnded {
                undelivered,
                end: FetchEnd::Expired,
            },
            PullEnd::Said(End::ConsumerDeleted) | PullEnd::NoConsumer | PullEnd::Silence => {
                self.reset_fetches(net);
                Input::ConsumerLost
            }
        };
        self.step(net, input)
    }

    pub fn core(&mut self, net: &mut Net, message: Core) -> Step {
        match message {
            Core::Revocation(revocation) => self.step(net, Input::Revoked(revocation)),
            Core::Welcome(ticket) => {
                if self.registering.take_if(|open| *open == ticket).is_none() {
                    return Step::Done;
                }
                let name = ConsumerName {
                    stream: TASKS.to_owned(),
                    consumer: self.node.token(),
                };
                self.step(net, Input::Registered(name))
            }
            Core::Registration { .. } | Core::Heartbeat { .. } => Step::Done,
        }
    }

    pub fn reconnected(&mut self, net: &mut Net) -> Step {
        self.reset_fetches(net);
        // The model's broker is one server, where requests from before do no harm; a cluster's way has to do for it, too.
        let in_cluster = net.now.is_multiple_of(2);
        self.step(net, Input::Reconnected { in_cluster })
    }

    pub fn standing_changed(&mut self, net: &mut Net) -> Step {
        self.step(net, Input::StandingChanged)
    }
}
