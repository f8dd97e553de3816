//! Whatever happens in whatever order, these hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::kept::KeptResult;
use super::tests::{consumer, pulled, settings, task};
use super::*;
use crate::domain::failure::{Failure, FailureKind};
use crate::wire::event::{PullState, TaskEvent};
use crate::wire::task::PullTask;
use crate::work::hand::{Content, pull_id};

/// One thing the world does; numbers choose among what there is, and are taken modulo it.
#[derive(Clone, Debug)]
enum Step {
    Deliver {
        job: u8,
        image: u8,
        run: u8,
        priority: i8,
        expires: Option<u16>,
        deliveries: u8,
    },
    Redeliver(usize),
    Junk {
        foreign: bool,
    },
    PullEnds {
        which: usize,
        result: Option<FailureKind>,
    },
    StoreEnds {
        which: usize,
        stored: bool,
    },
    Revoke(usize),
    RegisterEnds(bool),
    FetchEnds {
        undelivered: u8,
        refused: bool,
    },
    ConsumerLost,
    Reconnected(bool),
    StandingChanged,
    Stop,
    Restart,
    Wait(u16),
    WaitForDeadline,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = proptest::sample::select(FailureKind::ALL.to_vec());
    prop_oneof![
        12 => (0..3u8, 0..3u8, 0..4u8, any::<i8>(), proptest::option::weighted(0.2, 0..400u16), 1..5u8).prop_map(
            |(job, image, run, priority, expires, deliveries)| Step::Deliver {
                job, image, run, priority, expires, deliveries
            }
        ),
        3 => any::<usize>().prop_map(Step::Redeliver),
        1 => any::<bool>().prop_map(|foreign| Step::Junk { foreign }),
        10 => (any::<usize>(), proptest::option::of(kind))
            .prop_map(|(which, result)| Step::PullEnds { which, result }),
        10 => (any::<usize>(), proptest::bool::weighted(0.7))
            .prop_map(|(which, stored)| Step::StoreEnds { which, stored }),
        3 => any::<usize>().prop_map(Step::Revoke),
        5 => proptest::bool::weighted(0.8).prop_map(Step::RegisterEnds),
        2 => (any::<u8>(), any::<bool>())
            .prop_map(|(undelivered, refused)| Step::FetchEnds { undelivered, refused }),
        1 => Just(Step::ConsumerLost),
        1 => any::<bool>().prop_map(Step::Reconnected),
        1 => Just(Step::StandingChanged),
        1 => proptest::bool::weighted(0.1).prop_map(|stop| if stop { Step::Stop } else { Step::Wait(0) }),
        1 => Just(Step::Restart),
        5 => any::<u16>().prop_map(Step::Wait),
        5 => Just(Step::WaitForDeadline),
    ]
}

/// The world around one worker, and everything that must be true of it.
struct World {
    state: WorkerState,
    now: Timestamp,
    capacity: u32,
    tokens: u64,
    /// Delivered and not answered, with the run they ask for.
    open: BTreeMap<DeliveryToken, PullId>,
    last_task: Option<Arc<PullTask>>,
    pulls: BTreeMap<PullHandle, Arc<PullTask>>,
    stores: BTreeMap<StoreHandle, Arc<EventToStore>>,
    /// By message id; it survives a restart.
    disk: BTreeMap<String, KeptResult>,
    lives: u64,
    /// Runs whose end the broker keeps, and which may be acked once for it.
    ended: BTreeSet<PullId>,
    registering: bool,
    drained: bool,
}

impl World {
    fn new(capacity: u32, seed: u64) -> Self {
        let now = Timestamp::from_millis(1_790_000_000_000);
        Self {
            state: WorkerState::new(settings(capacity), seed, now),
            now,
            capacity,
            tokens: 0,
            open: BTreeMap::new(),
            last_task: None,
            pulls: BTreeMap::new(),
            stores: BTreeMap::new(),
            disk: BTreeMap::new(),
            lives: 1,
            ended: BTreeSet::new(),
            registering: false,
            drained: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Deliver {
                job,
                image,
                run,
                priority,
                expires,
                deliveries,
            } => {
                let job = ["a", "b", "c"][usize::from(job)];
                let image = ["nginx", "redis", "busybox"][usize::from(image)];
                let mut task = task(job, image);
                task.run.round = u32::from(run % 2) + 1;
                task.run.uid = ["u", "v"][usize::from(run / 2)].to_owned();
                task.priority = i32::from(priority);
                task.expires_at =
                    expires.map(|seconds| self.now.after(Duration::from_secs(seconds.into())));
                self.deliver(Arc::new(task), deliveries.into());
            }
            Step::Redeliver(which) => {
                let in_hand: Vec<_> = self
                    .pulls
                    .values()
                    .chain(&self.last_task)
                    .cloned()
                    .collect();
                if let Some(task) = pick(&in_hand, which) {
                    self.deliver(task, 2);
                }
            }
            Step::Junk { foreign } => self.junk(foreign),
            Step::Restart => self.restart(),
            Step::StoreEnds { which, stored } => {
                let stores: Vec<_> = self.stores.keys().copied().collect();
                if let Some(store) = pick(&stores, which) {
                    self.store_ends(store, stored);
                }
            }
            other => {
                if let Some(input) = self.plain(other) {
                    self.input(input, &BTreeSet::new());
                }
            }
        }
    }

    /// The input of a step that brings no task and stores no event, if it is possible now.
    fn plain(&mut self, step: Step) -> Option<Input> {
        Some(match step {
            Step::PullEnds { which, result } => {
                let pulls: Vec<_> = self.pulls.keys().copied().collect();
                let pull = pick(&pulls, which)?;
                self.pulls.remove(&pull);
                let result =
                    result.map_or_else(|| Ok(pulled()), |kind| Err(Failure::new(kind, "no")));
                Input::PullEnded { pull, result }
            }
            Step::Revoke(which) => {
                let known: Vec<_> = self.open.values().cloned().collect();
                Input::Revoked(Revocation {
                    pulls: pick(&known, which).into_iter().collect(),
                    unpin: Vec::new(),
                })
            }
            Step::RegisterEnds(registered) => {
                if !std::mem::take(&mut self.registering) {
                    return None;
                }
                if registered {
                    Input::Registered(consumer())
                } else {
                    Input::NotRegistered
                }
            }
            Step::FetchEnds {
                undelivered,
                refused,
            } => Input::FetchEnded {
                undelivered: u32::from(undelivered).min(self.state.outstanding()),
                end: if refused {
                    FetchEnd::Refused
                } else {
                    FetchEnd::Expired
                },
            },
            Step::ConsumerLost => Input::ConsumerLost,
            Step::Reconnected(in_cluster) => Input::Reconnected { in_cluster },
            Step::StandingChanged => Input::StandingChanged,
            Step::Stop => Input::Stop,
            Step::Wait(millis) => {
                self.now = self.now.after(Duration::from_millis(millis.into()));
                Input::Tick
            }
            Step::WaitForDeadline => {
                self.now = self.state.next_deadline()?.0;
                Input::Tick
            }
            Step::Deliver { .. }
            | Step::Redeliver(_)
            | Step::Junk { .. }
            | Step::Restart
            | Step::StoreEnds { .. } => {
                return None;
            }
        })
    }

    fn deliver(&mut self, task: Arc<PullTask>, deliveries: u32) {
        self.tokens += 1;
        let token = DeliveryToken(self.tokens);
        self.last_task = Some(Arc::clone(&task));
        let id = pull_id(&task);
        // Runs that may be acked without having ended: both of two that meet.
        let met: BTreeSet<PullId> = self
            .open
            .values()
            .filter(|other| other.job == id.job && other.image == id.image && other.run != id.run)
            .cloned()
            .chain([id.clone()])
            .collect();
        let mut may_ack = BTreeSet::new();
        if met.len() > 1 {
            may_ack = met;
        }
        self.open.insert(token, id);
        self.input(
            Input::Delivered {
                token,
                task,
                deliveries,
            },
            &may_ack,
        );
    }

    fn junk(&mut self, foreign: bool) {
        self.tokens += 1;
        let token = DeliveryToken(self.tokens);
        let mut task = task("foreign", "nginx");
        task.node = "node-2".parse().unwrap();
        let id = pull_id(&task);
        self.open.insert(token, id.clone());
        let input = if foreign {
            Input::Delivered {
                token,
                task: Arc::new(task),
                deliveries: 1,
            }
        } else {
            Input::Undecodable {
                token,
                subject: "s".to_owned(),
                problem: "p".to_owned(),
                named: None,
                deliveries: 1,
            }
        };
        self.input(input, &BTreeSet::from([id]));
    }

    /// kill -9: what is on the disk is there for the next life, and nothing else is.
    fn restart(&mut self) {
        self.open.clear();
        self.pulls.clear();
        self.stores.clear();
        self.registering = false;
        self.drained = false;
        self.lives += 1;
        let kept = self.disk.values().cloned().collect();
        let mut settings = settings(self.capacity);
        settings.instance = format!("life {}", self.lives);
        self.state = WorkerState::new(settings, self.lives, self.now).with_kept(self.now, kept);
        self.input(Input::Tick, &BTreeSet::new());
    }

    fn store_ends(&mut self, store: StoreHandle, stored: bool) {
        let event = self.stores.remove(&store).unwrap();
        if stored && event.event.state.is_terminal() {
            let TaskEvent {
                job, run, image, ..
            } = event.event.clone();
            self.ended.insert(PullId {
                job,
                run,
                image: image.token(),
            });
        }
        let input = if stored {
            Input::Stored(store)
        } else {
            Input::NotStored(store)
        };
        self.input(input, &BTreeSet::new());
    }

    fn input(&mut self, input: Input, may_ack: &BTreeSet<PullId>) {
        let mut effects = vec![];
        self.state.handle(self.now, input, &mut effects);
        for effect in effects {
            self.perform(effect, may_ack);
        }
        self.check();
    }

    fn perform(&mut self, effect: Effect, may_ack: &BTreeSet<PullId>) {
        match effect {
            Effect::Register { .. } => {
                assert!(!self.registering, "two registrations at once");
                self.registering = true;
            }
            Effect::Fetch { batch, .. } => assert!(batch > 0 && !self.drained),
            Effect::StartPull {
                pull,
                task,
                attempt,
            } => {
                assert!(attempt > 0);
                let content = Content::of(&task);
                let shared = self
                    .pulls
                    .values()
                    .any(|other| Content::of(other) == content);
                assert!(!shared, "{} is pulled twice at once", task.image);
                assert!(
                    task.expires_at.is_none_or(|at| at > self.now),
                    "started after its deadline"
                );
                self.pulls.insert(pull, task);
            }
            Effect::CancelPull(pull) => assert!(self.pulls.contains_key(&pull)),
            Effect::Store(event) => {
                assert!(
                    event.event.state != PullState::Retrying
                        || event.event.next_attempt_at.is_some()
                );
                let twice = self.stores.insert(event.store, event);
                assert!(twice.is_none(), "stored again before the first answer");
            }
            Effect::Ack(token) => {
                let id = self.open.remove(&token).expect("acked what was not open");
                assert!(
                    self.ended.remove(&id) || may_ack.contains(&id),
                    "{id:?} acked before its end was stored"
                );
            }
            Effect::Nak { token, .. } => {
                self.open.remove(&token).expect("nacked what was not open");
            }
            Effect::Forget(token) => {
                let id = self.open.remove(&token).expect("forgot what was not open");
                let again = self.open.values().any(|other| *other == id);
                assert!(again, "forgot what was not delivered again");
            }
            Effect::InProgress(token) => assert!(self.open.contains_key(&token)),
            Effect::Heartbeat(beat) => {
                let in_hand: BTreeSet<_> = self.open.values().collect();
                assert!(beat.holding.iter().all(|id| in_hand.contains(id)));
                assert!(!self.drained);
            }
            Effect::Drained => {
                assert!(!self.drained && self.open.is_empty() && self.pulls.is_empty());
                self.drained = true;
            }
            Effect::Keep(event) => {
                assert!(event.event.state.is_terminal());
                let id = event.message_id.clone();
                let twice = self.disk.insert(id, KeptResult::from(&*event));
                assert!(twice.is_none(), "written twice");
            }
            Effect::Discard(event) => {
                self.disk.remove(&event.message_id);
            }
            Effect::StopFetching | Effect::Note(_) | Effect::FindPins | Effect::Unpin(_) => {}
        }
    }

    fn check(&self) {
        let slots = self.state.slots_taken();
        assert!(slots + self.state.outstanding() <= self.capacity);
        assert!(
            self.pulls.len() <= self.capacity as usize,
            "more pulls than slots"
        );
        let holding: BTreeSet<_> = self.state.holding().into_iter().collect();
        let open: BTreeSet<_> = self.open.values().cloned().collect();
        assert_eq!(holding, open, "what is in hand is what is unanswered");
        assert_eq!(holding.len(), self.open.len(), "one delivery for each");
        if let Some((at, reason)) = self.state.next_deadline() {
            assert!(at > self.now, "{reason:?} is overdue: the shell would spin");
        }
    }

    /// Lets everything go well until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            let told = self.stores.is_empty() && self.disk.is_empty();
            if self.open.is_empty() && self.pulls.is_empty() && (told || self.drained) {
                return;
            }
            if self.registering {
                self.step(Step::RegisterEnds(true));
            } else if !self.pulls.is_empty() {
                self.step(Step::PullEnds {
                    which: 0,
                    result: None,
                });
            } else if !self.stores.is_empty() {
                self.step(Step::StoreEnds {
                    which: 0,
                    stored: true,
                });
            } else {
                self.step(Step::WaitForDeadline);
            }
        }
        panic!("still in hand or on the disk: {:#?}", self.state);
    }
}

fn pick<T: Clone>(among: &[T], which: usize) -> Option<T> {
    (!among.is_empty()).then(|| among[which % among.len()].clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_the_workers_word(
        capacity in 1..5u32,
        seed in any::<u64>(),
        steps in vec(step(), 1..120),
    ) {
        let mut world = World::new(capacity, seed);
        world.input(Input::Tick, &BTreeSet::new());
        for step in steps {
            world.step(step);
        }
        world.settle();
    }

    #[test]
    fn the_same_inputs_give_the_same_effects(seed in any::<u64>(), steps in vec(step(), 1..60)) {
        let run = || {
            let mut world = World::new(2, seed);
            for step in steps.clone() {
                world.step(step);
            }
            format!("{:?}", world.state)
        };
        prop_assert_eq!(run(), run());
    }
}
