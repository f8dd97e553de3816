//! Each state and input by an example. What follows from which is told by the tests' names.

mod attempt;
mod delivery;
mod kept;
mod link;
mod pins;

use super::*;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::domain::job::{ImagePullPolicy, PullPolicy};
use crate::wire::event::{PullResult, PullState};
use crate::wire::task::{PullTask, Run};
use crate::work::hand::pull_id;
use crate::work::registration::{MAX_REGISTER_DELAY, REGISTER_EVERY, RENEW_SPREAD};
use std::sync::Arc;

pub(super) fn consumer() -> ConsumerName {
    ConsumerName {
        stream: "PREWARM_TASKS".to_owned(),
        consumer: "node-1".to_owned(),
    }
}

pub(super) fn settings(capacity: u32) -> Settings {
    Settings::new("node-1".parse().unwrap(), "i".to_owned(), capacity)
}

pub(super) fn task(job: &str, image: &str) -> PullTask {
    PullTask {
        job: job.parse().unwrap(),
        run: Run {
            uid: "u".to_owned(),
            generation: 1,
            round: 1,
        },
        node: "node-1".parse().unwrap(),
        image: image.parse().unwrap(),
        digest: None,
        platform: None,
        image_pull_policy: ImagePullPolicy::IfNotPresent,
        pull_policy: PullPolicy {
            timeout_seconds: 300,
            backoff_limit: 2,
        },
        priority: 0,
        pull_secrets: vec![],
        pin: false,
        unpack: true,
        expires_at: None,
        released_at: None,
        labels: [("team".to_owned(), "infra".to_owned())].into(),
        annotations: [].into(),
        traceparent: Some(TRACEPARENT.parse().unwrap()),
    }
}

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub(super) fn pulled() -> PullResult {
    PullResult {
        digest: Digest::of(b"image"),
        already_present: false,
        bytes_registry: 1,
        bytes_elsewhere: 0,
        bytes_present: 0,
        resolve_millis: 1,
        download_millis: 1,
        unpack_millis: 1,
        engine: String::new(),
        engine_reason: String::new(),
    }
}

/// A worker and its clock, with what it did in response to the last input.
struct Worker {
    state: WorkerState,
    now: Timestamp,
    tokens: u64,
}

impl Worker {
    /// Registered, with its first request for tasks open.
    fn new(capacity: u32) -> Self {
        Self::seeded(capacity, 1)
    }

    fn seeded(capacity: u32, seed: u64) -> Self {
        let now = Timestamp::from_millis(1_790_000_000_000);
        let mut worker = Self {
            state: WorkerState::new(settings(capacity), seed, now),
            now,
            tokens: 0,
        };
        let register = Effect::Register {
            consumer_lost: false,
        };
        assert_eq!(worker.input(Input::Tick), [register]);
        let batch = capacity;
        let consumer = consumer();
        assert_eq!(
            worker.input(Input::Registered(consumer.clone())),
            [Effect::Fetch { consumer, batch }]
        );
        worker
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = vec![];
        self.state.handle(self.now, input, &mut effects);
        effects
    }

    fn deliver(&mut self, task: &PullTask, deliveries: u32) -> (DeliveryToken, Vec<Effect>) {
        self.tokens += 1;
        let token = DeliveryToken(self.tokens);
        let task = Arc::new(task.clone());
        let effects = self.input(Input::Delivered {
            token,
            task,
            deliveries,
        });
        (token, effects)
    }

    fn start(&mut self, task: &PullTask) -> (DeliveryToken, PullHandle) {
        let (token, effects) = self.deliver(task, 1);
        (token, started(&effects))
    }

    /// Lets time pass up to the next deadline.
    fn wait(&mut self) -> (DeadlineReason, Vec<Effect>) {
        let (at, reason) = self.state.next_deadline().expect("a deadline");
        assert!(at > self.now, "{reason:?} is overdue");
        self.now = at;
        (reason, self.input(Input::Tick))
    }

    /// Lets time pass until something of this reason is due.
    fn wait_for(&mut self, reason: DeadlineReason) -> Vec<Effect> {
        for _ in 0..1_000 {
            let (waited_for, effects) = self.wait();
            if waited_for == reason {
                return effects;
            }
        }
        panic!("{reason:?} never came");
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.after(time);
        self.input(Input::Tick)
    }

    fn fail(&mut self, pull: PullHandle, failure: Failure) -> Vec<Effect> {
        let result = Err(failure);
        self.input(Input::PullEnded { pull, result })
    }

    fn succeed(&mut self, pull: PullHandle) -> Vec<Effect> {
        let result = Ok(pulled());
        self.input(Input::PullEnded { pull, result })
    }
}

fn revoke(pulls: Vec<PullId>) -> Input {
    let unpin = Vec::new();
    Input::Revoked(Revocation { pulls, unpin })
}

fn find<T>(effects: &[Effect], pick: impl Fn(&Effect) -> Option<T>) -> T {
    let mut found = effects.iter().filter_map(pick);
    let first = found.next();
    assert!(found.next().is_none(), "more than one in {effects:#?}");
    first.unwrap_or_else(|| panic!("not in {effects:#?}"))
}

fn started(effects: &[Effect]) -> PullHandle {
    find(effects, |effect| match effect {
        Effect::StartPull { pull, .. } => Some(*pull),
        _ => None,
    })
}

/// The one event to store that is not `started`.
fn told(effects: &[Effect]) -> Arc<EventToStore> {
    find(effects, |effect| match effect {
        Effect::Store(event) if event.event.state != PullState::Started => Some(Arc::clone(event)),
        _ => None,
    })
}

fn fetched(effects: &[Effect]) -> u32 {
    find(effects, |effect| match effect {
        Effect::Fetch { batch, .. } => Some(*batch),
        _ => None,
    })
}

fn unavailable() -> Failure {
    Failure::new(FailureKind::RegistryUnavailable, "connection refused")
}
