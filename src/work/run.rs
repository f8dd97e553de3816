//! The worker's shell: it carries the state's effects out and tells it what happened.
//!
//! The main loop waits for nothing but its inputs. Whatever may take time (the broker, the runtime) is
//! done by tasks that report back, so that a slow broker delays no pull and no timer.

mod clock;
mod fetching;
mod journal;
mod keeping;
mod observe;
mod outbox;
mod pinning;
mod pulling;
mod registering;
mod shelf;
mod spans;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Subject, Subscriber};
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::clock::Clock;
use self::fetching::Fetching;
use self::journal::Journal;
use self::keeping::Keeping;
pub use self::observe::{Observer, Seen};
use self::outbox::Outbox;
use self::pinning::Pinning;
use self::pulling::Pulling;
use self::registering::Registering;
use super::effect::{ConsumerName, DeliveryToken, Effect, EventToStore, PullHandle};
use super::input::{FetchEnd, Input};
use super::state::kept::KeptResult;
use super::state::{DEFAULT_GRACE, Settings, WorkerState};
use crate::bus::Bus;
use crate::bus::pull::{Answer, Delivery, PullTimes};
use crate::domain::failure::Failure;
use crate::domain::name::NodeName;
use crate::domain::node::{DEFAULT_CAPACITY, MAX_CAPACITY, NodeStanding};
use crate::image::{Runtime, RuntimeInfo};
use crate::wire::event::PullState;
use crate::wire::subject::PullKey;
use crate::wire::task::PullTask;
use crate::wire::worker::{ACK_WAIT_SECONDS, Heartbeat, Revocation};

/// Most things that happened and wait for the main loop; who reports more waits.
const MAX_ARRIVED: usize = 256;

/// What a worker needs to know.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The node it works for.
    pub node: NodeName,
    /// The node's labels, and whether it takes new pulls; the dispatcher hears of every change.
    pub standing: watch::Receiver<NodeStanding>,
    /// Pulls at once, 1 to [`MAX_CAPACITY`]; anything else is brought into that range.
    pub capacity: u32,
    /// How long pulls may go on after a stop was asked for.
    pub grace: Duration,
    /// How long the broker waits for an ack; what the dispatcher makes consumers with.
    pub ack_wait: Duration,
    /// The times of requests for tasks; `None`: those that suit the broker.
    pub pull_times: Option<PullTimes>,
    /// Where ends of pulls are kept that the broker could not be told; `None`: nowhere, and they are found again.
    pub state_dir: Option<PathBuf>,
}

impl WorkerSettings {
    /// The contract's defaults for this node.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            standing: fixed(NodeStanding::default()),
            capacity: DEFAULT_CAPACITY,
            grace: DEFAULT_GRACE,
            ack_wait: Duration::from_secs(ACK_WAIT_SECONDS),
            pull_times: None,
            state_dir: None,
        }
    }
}

/// A standing that does not change.
#[must_use]
pub fn fixed(standing: NodeStanding) -> watch::Receiver<NodeStanding> {
    watch::channel(standing).1
}

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The container runtime does not answer.
    #[error("this node's container runtime cannot be used: {}", .0.message)]
    Runtime(Failure),
    /// The connection to the broker is closed for good.
    #[error(
        "the worker cannot listen on {subject}, the connection to the broker is closed: {reason}"
    )]
    Broker {
        /// What it wanted to listen on.
        subject: String,
        /// The client's words.
        reason: String,
    },
}

/// Works for a node until `shutdown`, then lets running pulls end or gives them back, and returns.
///
/// A broker or dispatcher that cannot be reached is waited for, for as long as it takes.
///
/// # Errors
/// The worker could not begin: see [`WorkerError`].
pub async fn run(
    bus: Bus,
    runtime: Runtime,
    settings: WorkerSettings,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    run_observed(bus, runtime, settings, Arc::new(()), shutdown).await
}

/// [`run`], with somebody who hears what the worker sees.
///
/// # Errors
/// As [`run`].
pub async fn run_observed(
    bus: Bus,
    runtime: Runtime,
    mut settings: WorkerSettings,
    observer: Arc<dyn Observer>,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    settings.capacity = settings.capacity.clamp(1, MAX_CAPACITY);
    let info = runtime.probe().await.map_err(WorkerError::Runtime)?;
    let subject = bus.subjects.revoke(&settings.node);
    let revocations = bus.client.subscribe(subject.clone()).await;
    let revocations = revocations.map_err(|error| WorkerError::Broker {
        subject,
        reason: error.to_string(),
    })?;
    let (arrivals, arrived) = mpsc::channel(MAX_ARRIVED);
    let (outbox, sending) = Outbox::start(bus.clone(), arrivals.clone(), Arc::clone(&observer));
    let outboxes = (outbox.clone(), arrivals);
    let kept = Keeping::start(&settings, &bus.subjects.prefix().to_string()).await;
    let mut shell = Shell::new(bus, runtime, info, &settings, outboxes, kept, observer);
    shell.serve(arrived, revocations, shutdown).await;
    outbox.close(sending).await;
    shell.keeping.close().await;
    Ok(())
}

/// What a task reports to the main loop.
#[derive(Debug)]
enum Arrived {
    /// The broker delivered a message.
    Delivery(Delivery),
    /// A request for tasks ended, if it was made after the last reset.
    Fetched {
        /// Counts the resets.
        epoch: u64,
        input: Input,
    },
    Registered(Result<ConsumerName, String>),
    Input(Input),
}

struct Shell {
    bus: Bus,
    node: NodeName,
    state: WorkerState,
    clock: Clock,
    journal: Journal,
    observer: Arc<dyn Observer>,
    outbox: Outbox,
    keeping: Keeping,
    fetching: Fetching,
    registering: Registering,
    standing: watch::Receiver<NodeStanding>,
    pulling: Pulling,
    pinning: Pinning,
    /// Where each unanswered delivery is answered.
    replies: HashMap<DeliveryToken, Subject>,
    deliveries: u64,
    running: HashMap<PullHandle, CancellationToken>,
    _pulls_end_with_us: DropGuard,
    /// Connections made before the last look.
    connects: u64,
    drained: bool,
}

impl Shell {
    fn new(
        bus: Bus,
        runtime: Runtime,
        info: RuntimeInfo,
        settings: &WorkerSettings,
        (outbox, arrivals): (Outbox, mpsc::Sender<Arrived>),
        (keeping, kept): (Keeping, Vec<KeptResult>),
        observer: Arc<dyn Observer>,
    ) -> Self {
        let mut clock = Clock::new();
        let journal = Journal::new(settings.node.clone());
        journal.begins(&info, settings.capacity);
        observer.saw(Seen::Began {
            capacity: settings.capacity,
        });
        let instance = format!("{:016x}", rand::random::<u64>());
        let state_settings = Settings {
            node: settings.node.clone(),
            instance: instance.clone(),
            capacity: settings.capacity,
            grace: settings.grace,
            ack_wait: settings.ack_wait,
        };
        let registering =
            Registering::new(&bus, &runtime, info, settings, instance, arrivals.clone());
        let pinning = Pinning::new(runtime.clone(), arrivals.clone());
        let pulling = Pulling::new(&bus, runtime, outbox.clone(), arrivals.clone());
        Self {
            node: settings.node.clone(),
            state: WorkerState::new(state_settings, rand::random(), clock.now())
                .with_kept(clock.now(), kept),
            clock,
            journal,
            observer,
            fetching: Fetching::start(&bus, settings.pull_times, arrivals),
            registering,
            standing: settings.standing.clone(),
            _pulls_end_with_us: pulling.drop_guard(),
            pulling,
            pinning,
            outbox,
            keeping,
            replies: HashMap::new(),
            deliveries: 0,
            running: HashMap::new(),
            connects: bus.client.statistics().connects.load(Ordering::Relaxed),
            drained: false,
            bus,
        }
    }

    async fn serve(
        &mut self,
        mut arrived: mpsc::Receiver<Arrived>,
        mut revocations: Subscriber,
        shutdown: CancellationToken,
    ) {
        let (mut listening, mut following, mut stopping) = (true, true, false);
        // The first registration reads it after this.
        self.standing.mark_unchanged();
        self.step(Input::Tick);
        while !self.drained {
            self.look_for_reconnect();
            let deadline = self.state.next_deadline();
            let sleep = self.clock.sleep_until(deadline.map(|(at, _)| at));
            let input = tokio::select! {
                Some(arrived) = arrived.recv() => self.read(arrived),
                message = revocations.next(), if listening => match message {
                    Some(message) => self.read_revocation(&message.payload),
                    None => {
                        listening = false;
                        None
                    }
                },
                changed = self.standing.changed(), if following => {
                    following = changed.is_ok();
                    following.then_some(Input::StandingChanged)
                }
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    self.journal.stops(self.state.slots_taken());
                    Some(Input::Stop)
                }
                () = sleep => Some(Input::Tick),
            };
            if let Some(input) = input {
                self.step(input);
            }
            self.observer.saw(Seen::Turned {
                slots: self.state.slots_taken(),
                registered: self.state.is_registered(),
            });
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.state.handle(self.clock.now(), input, &mut effects);
        self.clock.hold(self.state.slots_taken() > 0);
        for effect in effects {
            self.perform(effect);
        }
    }

    /// The client reconnects by itself and tells nobody who subscribed; requests for tasks do not
    /// survive it, and the consumer may not either.
    fn look_for_reconnect(&mut self) {
        let connects = self
            .bus
            .client
            .statistics()
            .connects
            .load(Ordering::Relaxed);
        if connects != std::mem::replace(&mut self.connects, connects) {
            self.fetching.reset();
            let in_cluster = self.bus.client.server_info().cluster.is_some();
            self.step(Input::Reconnected { in_cluster });
        }
    }

    fn read(&mut self, arrived: Arrived) -> Option<Input> {
        match arrived {
            Arrived::Delivery(delivery) => Some(self.read_delivery(delivery)),
            Arrived::Fetched { epoch, input } => (epoch == self.fetching.epoch()).then_some(input),
            Arrived::Registered(Ok(consumer)) => {
                self.journal.registered(&consumer);
                self.observer.saw(Seen::Registered);
                Some(Input::Registered(consumer))
            }
            Arrived::Registered(Err(reason)) => {
                self.observer.saw(Seen::NotRegistered(&reason));
                self.journal.not_registered(reason);
                Some(Input::NotRegistered)
            }
            Arrived::Input(input) => {
                if let Input::PullEnded { pull, .. } = &input {
                    self.running.remove(pull);
                }
                Some(input)
            }
        }
    }

    fn read_delivery(&mut self, delivery: Delivery) -> Input {
        self.deliveries += 1;
        let token = DeliveryToken(self.deliveries);
        self.replies.insert(token, delivery.reply);
        let read = serde_json::from_slice::<PullTask>(&delivery.payload);
        self.observer.saw(Seen::Delivered {
            task: read.as_ref().ok(),
            deliveries: delivery.deliveries,
            stored_at: delivery.stored_at,
        });
        match read {
            Ok(mut task) => {
                if task.released_at.is_none() {
                    let expires_at = task.expires_at;
                    task.expires_at = expires_at.map(|at| self.clock.when_wall_shows(at));
                }
                Input::Delivered {
                    token,
                    task: Arc::new(task),
                    deliveries: delivery.deliveries,
                }
            }
            Err(error) => Input::Undecodable {
                token,
                subject: delivery.subject.to_string(),
                problem: error.to_string(),
                named: PullTask::named_in(&delivery.payload).map(Arc::new),
                deliveries: delivery.deliveries,
            },
        }
    }

    fn read_revocation(&self, payload: &[u8]) -> Option<Input> {
        match serde_json::from_slice::<Revocation>(payload) {
            Ok(revocation) => Some(Input::Revoked(revocation)),
            Err(error) => {
                self.journal.unreadable_revocation(&error);
                None
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Register { consumer_lost } => self.registering.start(consumer_lost),
            Effect::Fetch { consumer, batch } => {
                if !self.fetching.fetch(consumer, batch) {
                    self.step(Input::FetchEnded {
                        undelivered: batch,
                        end: FetchEnd::Refused,
                    });
                }
            }
            Effect::StopFetching => self.fetching.reset(),
            Effect::StartPull {
                pull,
                task,
                attempt,
            } => {
                let cancelled = self.pulling.start(pull, task, attempt);
                self.running.insert(pull, cancelled);
            }
            Effect::CancelPull(pull) => {
                if let Some(cancelled) = self.running.get(&pull) {
                    cancelled.cancel();
                }
            }
            Effect::Store(event) => self.store(event),
            Effect::Keep(event) => self.keeping.keep(event),
            Effect::Discard(event) => self.keeping.discard(event),
            Effect::Ack(token) => self.answer(token, Answer::Ack),
            Effect::Nak { token, delay } => self.answer(token, Answer::Nak(delay)),
            Effect::InProgress(token) => {
                if let Some(reply) = self.replies.get(&token) {
                    self.outbox
                        .publish(reply.clone(), Answer::InProgress.body());
                }
            }
            Effect::Forget(token) => {
                self.replies.remove(&token);
            }
            Effect::Heartbeat(heartbeat) => self.beat(&heartbeat),
            Effect::FindPins => self.pinning.find(),
            Effect::Unpin(pins) => self.pinning.take_back(pins),
            Effect::Note(note) => self.journal.note(&note),
            Effect::Drained => self.drained = true,
        }
    }

    fn answer(&mut self, token: DeliveryToken, answer: Answer) {
        if let Some(reply) = self.replies.remove(&token) {
            self.outbox.publish(reply, answer.body());
        }
    }

    fn store(&mut self, event: Arc<EventToStore>) {
        if self.journal.told(&event) {
            self.observer.saw(Seen::Told(&event.event));
        }
        if event.event.state == PullState::Retrying {
            let message = pulling::waiting(&event.event);
            let key = PullKey::new(
                self.node.clone(),
                event.event.job.clone(),
                &event.event.image,
            );
            self.outbox.say(self.bus.subjects.progress(&key), &message);
        }
        let store = event.store;
        if !self.outbox.store(event) {
            self.step(Input::NotStored(store));
        }
    }

    fn beat(&self, heartbeat: &Heartbeat) {
        self.outbox
            .say(self.bus.subjects.heartbeat(&self.node), heartbeat);
    }
}
