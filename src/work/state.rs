//! The worker's decisions: a pure state machine that is told what happened and says what to do.
//!
//! It reads no clock, draws no random number but from its seed, and does no I/O: the same inputs give
//! the same effects. The shell carries effects out in their order; what a crash between two of them
//! loses, a redelivery brings back.

pub mod attempt;
mod delivery;
pub mod kept;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::kept::Kept;
pub use super::effect::{
    ConsumerName, DeliveryToken, Effect, EventToStore, Note, PullHandle, StoreHandle,
};
use super::hand::{Hand, Held, Stage};
pub use super::input::{FetchEnd, Input};
use super::memory::Memory;
use super::pins::Pins;
use super::registration::Registration;
use super::retry::Jitter;
use crate::domain::name::NodeName;
use crate::domain::node::MAX_CAPACITY;
use crate::domain::time::Timestamp;
use crate::wire::worker::{ACK_WAIT_SECONDS, HEARTBEAT_SECONDS, Heartbeat, PullId, Revocation};

/// How long a pull may go on after `Stop`, unless a setting says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(20);
/// How long no tasks are asked for after the broker refused to be asked.
pub const FETCH_PAUSE: Duration = Duration::from_secs(1);
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_SECONDS);
/// In-progress acks within one ack wait: two may be lost before the broker delivers the task again.
const ACKS_PER_WAIT: u32 = 3;

/// What a worker is told at its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node it works for.
    pub node: NodeName,
    /// Names this process: a restart has another.
    pub instance: String,
    /// Pulls at once, 1 to [`MAX_CAPACITY`]; anything else is brought into that range.
    pub capacity: u32,
    /// How long a pull may go on after `Stop`.
    pub grace: Duration,
    /// How long the broker waits for an ack before it delivers again.
    pub ack_wait: Duration,
}

impl Settings {
    /// The contract's times.
    #[must_use]
    pub const fn new(node: NodeName, instance: String, capacity: u32) -> Self {
        Self {
            node,
            instance,
            capacity,
            grace: DEFAULT_GRACE,
            ack_wait: Duration::from_secs(ACK_WAIT_SECONDS),
        }
    }
}

/// What [`WorkerState::next_deadline`] waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DeadlineReason {
    /// The grace after `Stop` is over.
    GraceOver,
    /// An attempt takes too long, or its job's deadline passes.
    AttemptOver,
    /// The broker has to hear that a task is in good hands.
    InProgress,
    /// The broker is asked again to keep an event.
    StoreAgain,
    /// The end of a pull goes to the disk, because the broker does not say that it has it.
    Keep,
    /// A heartbeat is due.
    Heartbeat,
    /// The node registers.
    Register,
    /// Tasks may be asked for again.
    Fetch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    /// After `Stop`: what runs may go on until then.
    Grace(Timestamp),
    /// The grace is over: pulls are stopping.
    Stopping,
    Drained,
}

/// Everything a worker knows. One value is one worker process; a crash is a new value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerState {
    settings: Settings,
    jitter: Jitter,
    phase: Phase,
    registration: Registration,
    /// Tasks asked for and not delivered.
    outstanding: u32,
    /// No tasks are asked for before this.
    fetch_after: Timestamp,
    /// `None` until the node is registered for the first time.
    heartbeat_at: Option<Timestamp>,
    hand: Hand,
    memory: Memory,
    pins: Pins,
    /// Of an earlier life.
    kept: Vec<Kept>,
    handles: u64,
}

impl WorkerState {
    /// A worker that has just started. The first input, of whatever kind, makes it register.
    #[must_use]
    pub fn new(mut settings: Settings, seed: u64, now: Timestamp) -> Self {
        settings.capacity = settings.capacity.clamp(1, MAX_CAPACITY);
        Self {
            settings,
            jitter: Jitter::new(seed),
            phase: Phase::Serving,
            registration: Registration::new(now),
            outstanding: 0,
            fetch_after: now,
            heartbeat_at: None,
            hand: Hand::default(),
            memory: Memory::default(),
            pins: Pins::default(),
            kept: Vec::new(),
            handles: 0,
        }
    }

    /// Takes in what happened and adds what has to be done, in order.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Delivered {
                token,
                task,
                deliveries,
            } => self.delivered(now, token, task, deliveries, effects),
            Input::Undecodable {
                token,
                subject,
                problem,
                named,
                deliveries,
            } => {
                let note = Note::Undecodable {
                    subject,
                    problem: problem.clone(),
                };
                effects.push(Effect::Note(note));
                match named {
                    Some(task) => {
                        self.delivered(now, token, task, deliveries, effects);
                        self.fail_unread(now, token, &problem, effects);
                    }
                    None => {
                        self.outstanding = self.outstanding.saturating_sub(1);
                        effects.push(Effect::Ack(token));
                    }
                }
            }
            Input::PullEnded { pull, result } => self.pull_ended(now, pull, result, effects),
            Input::Stored(store) => self.stored(now, store, effects),
            Input::NotStored(store) => self.not_stored(now, store),
            Input::Revoked(Revocation { pulls, unpin }) => {
                self.revoked(now, pulls, effects);
                if !unpin.is_empty() && self.pins.take_back() {
                    effects.push(Effect::Unpin(unpin));
                }
            }
            Input::PinsFound(pins) => self.pins.found(pins),
            Input::Unpinned => self.pins.taken_back(),
            Input::Registered(consumer) => self.registered(now, consumer, effects),
            Input::NotRegistered => self.registration.refused(now, &mut self.jitter),
            Input::FetchEnded { undelivered, end } => {
                self.outstanding = self.outstanding.saturating_sub(undelivered);
                if end == FetchEnd::Refused {
                    self.fetch_after = now.after(FETCH_PAUSE);
                }
            }
            Input::ConsumerLost => {
                self.outstanding = 0;
                self.registration.consumer_lost(now, &mut self.jitter);
            }
            Input::Reconnected { in_cluster } => {
                let left = in_cluster && self.outstanding > 0;
                self.outstanding = 0;
                self.registration.reconnected(now, left, &mut self.jitter);
                self.hasten_stores(now);
            }
            Input::StandingChanged => {
                self.registration.standing_changed(now, &mut self.jitter);
            }
            Input::Stop => self.stop(now, effects),
            Input::Tick => {}
        }
        self.pass_time(now, effects);
    }

    /// When a `Tick` is needed at the latest, and for what; `None` when nothing but an input can
    /// change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Timestamp, DeadlineReason)> {
        let mut deadlines = vec![];
        match self.phase {
            Phase::Serving => {
                deadlines.extend(
                    self.registration
                        .deadline()
                        .map(|at| (at, DeadlineReason::Register)),
                );
                if self.missing_tasks() > 0 {
                    deadlines.push((self.fetch_after, DeadlineReason::Fetch));
                }
            }
            Phase::Grace(until) => deadlines.push((until, DeadlineReason::GraceOver)),
            Phase::Stopping => {}
            Phase::Drained => return None,
        }
        deadlines.extend(self.heartbeat_at.map(|at| (at, DeadlineReason::Heartbeat)));
        let untold = self.kept.iter().filter_map(Kept::deadline);
        deadlines.extend(untold.map(|at| (at, DeadlineReason::StoreAgain)));
        for held in &self.hand.held {
            deadlines.push((held.in_progress_at, DeadlineReason::InProgress));
            deadlines.extend(held.deadline());
        }
        deadlines.into_iter().min()
    }

    /// Pulls in hand, as the next heartbeat will name them.
    #[must_use]
    pub fn holding(&self) -> Vec<PullId> {
        self.hand.pulls()
    }

    /// Slots taken: tasks in hand, and pulls that were told to stop and have not ended. Never more than
    /// the capacity.
    #[must_use]
    pub fn slots_taken(&self) -> u32 {
        u32::try_from(self.hand.slots()).unwrap_or(u32::MAX)
    }

    /// Tasks asked for and not delivered. Together with the slots taken never more than the capacity.
    #[must_use]
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether the node has a consumer that is not known to be gone.
    #[must_use]
    pub const fn is_registered(&self) -> bool {
        self.registration.consumer().is_some()
    }

    fn next_handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    fn registered(&mut self, now: Timestamp, consumer: ConsumerName, effects: &mut Vec<Effect>) {
        let renewed = self.registration.renews();
        let moved = renewed || self.registration.consumer() != Some(&consumer);
        if self
            .registration
            .registered(now, consumer, &mut self.jitter)
        {
            if renewed {
                // They ended with the consumer before; that it was deleted is not to count as a loss.
                effects.push(Effect::StopFetching);
            }
            if moved {
                self.outstanding = 0;
            }
            if self.heartbeat_at.is_none() && self.phase == Phase::Serving {
                self.heartbeat_at = Some(now.after(HEARTBEAT));
            }
        }
    }

    fn stop(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Serving {
            return;
        }
        self.phase = Phase::Grace(now.after(self.settings.grace));
        self.outstanding = 0;
        effects.push(Effect::StopFetching);
        self.put_back(|held| held.stage == Stage::Waiting, effects);
    }

    /// Gives tasks back to the broker at once, stopping their pulls.
    fn put_back(&mut self, which: impl Fn(&Held) -> bool, effects: &mut Vec<Effect>) {
        while let Some(position) = self.hand.held.iter().position(&which) {
            let (held, to_cancel) = self.hand.release(position);
            effects.extend(to_cancel.map(Effect::CancelPull));
            effects.extend(held.to_keep().map(Effect::Keep));
            effects.push(Effect::Nak {
                token: held.token,
                delay: None,
            });
        }
    }

    /// Does everything that is due, and everything that has become possible.
    fn pass_time(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if let Phase::Grace(until) = self.phase
            && until <= now
        {
            self.phase = Phase::Stopping;
            self.put_back(|_| true, effects);
        }
        self.tell_kept(now, effects);
        self.start_waiting(now, effects);
        self.advance_attempts(now, effects);
        self.keep_in_hand(now, effects);
        match self.phase {
            Phase::Serving => {
                self.registration.pass_time(now, effects);
                self.fetch(now, effects);
            }
            Phase::Grace(_) | Phase::Stopping => {
                if self.hand.is_empty() {
                    self.phase = Phase::Drained;
                    self.heartbeat_at = None;
                    effects.push(Effect::Drained);
                }
            }
            Phase::Drained => {}
        }
        if let Some(at) = self.heartbeat_at
            && at <= now
        {
            self.heartbeat_at = Some(now.after(HEARTBEAT));
            effects.push(Effect::Heartbeat(Heartbeat {
                instance: self.settings.instance.clone(),
                holding: self.hand.pulls(),
                pins: self.pins.name_some(),
            }));
            if self.pins.look() {
                effects.push(Effect::FindPins);
            }
        }
    }

    fn keep_in_hand(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let every = self.settings.ack_wait / ACKS_PER_WAIT;
        for held in &mut self.hand.held {
            if held.in_progress_at <= now {
                held.in_progress_at = now.after(every);
                effects.push(Effect::InProgress(held.token));
            }
        }
    }

    /// Tasks that could be asked for now, the pause aside.
    fn missing_tasks(&self) -> u32 {
        if self.registration.consumer().is_none() {
            return 0;
        }
        self.settings
            .capacity
            .saturating_sub(self.slots_taken())
            .saturating_sub(self.outstanding)
    }

    fn fetch(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let batch = self.missing_tasks();
        if let Some(consumer) = self.registration.consumer()
            && batch > 0
            && self.fetch_after <= now
        {
            self.outstanding += batch;
            effects.push(Effect::Fetch {
                consumer: consumer.clone(),
                batch,
            });
        }
    }
}
