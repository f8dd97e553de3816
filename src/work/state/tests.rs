use super::*;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::domain::job::{ImagePullPolicy, PullPolicy};
use crate::wire::event::{PullResult, PullState};
use crate::wire::task::{PullTask, Run};
use crate::work::hand::pull_id;
use crate::work::registration::{MAX_REGISTER_DELAY, REGISTER_EVERY};
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
        labels: [("team".to_owned(), "infra".to_owned())].into(),
        annotations: [].into(),
    }
}

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
        let now = Timestamp::from_millis(1_790_000_000_000);
        let mut worker = Self {
            state: WorkerState::new(settings(capacity), 1, now),
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

#[test]
fn a_task_is_pulled_at_once_and_acked_only_after_its_end_is_stored() {
    let mut worker = Worker::new(1);
    let (token, effects) = worker.deliver(&task("a", "nginx"), 1);
    assert!(
        matches!(&effects[..], [Effect::StartPull { attempt: 1, .. }, Effect::Store(event)]
            if event.event.state == PullState::Started),
        "{effects:#?}"
    );
    let effects = worker.succeed(started(&effects));
    let event = told(&effects);
    assert_eq!(effects.len(), 1, "nothing else happens before it is stored");
    assert_eq!(event.event.state, PullState::Succeeded);
    assert_eq!(event.event.result, Some(pulled()));
    assert_eq!(event.event.labels["team"], "infra");
    assert_eq!(worker.state.slots_taken(), 1);

    let effects = worker.input(Input::Stored(event.store));
    assert_eq!(effects[0], Effect::Ack(token));
    assert_eq!(fetched(&effects), 1, "the slot is free again");
}

#[test]
fn an_end_that_is_not_stored_is_stored_again_for_as_long_as_it_takes() {
    let mut worker = Worker::new(1);
    let (token, pull) = worker.start(&task("a", "nginx"));
    let event = told(&worker.succeed(pull));
    let mut in_progress = 0;
    for _ in 0..50 {
        let before = worker.now;
        assert_eq!(worker.input(Input::NotStored(event.store)), []);
        loop {
            let (reason, effects) = worker.wait();
            in_progress += usize::from(effects.contains(&Effect::InProgress(token)));
            if reason == DeadlineReason::StoreAgain {
                assert_eq!(told(&effects), event, "the very same event");
                break;
            }
        }
        assert!(worker.now.since(before) <= attempt::MAX_STORE_DELAY * 11 / 10);
    }
    assert!(in_progress > 30, "the broker kept hearing of it");
    let effects = worker.input(Input::Stored(event.store));
    assert_eq!(effects[0], Effect::Ack(token));
}

#[test]
fn a_lost_started_event_holds_nothing_up() {
    let mut worker = Worker::new(1);
    let (_, effects) = worker.deliver(&task("a", "nginx"), 1);
    let store = find(&effects, |effect| match effect {
        Effect::Store(event) => Some(event.store),
        _ => None,
    });
    assert_eq!(worker.input(Input::NotStored(store)), []);
    let event = told(&worker.succeed(started(&effects)));
    assert_eq!(event.event.state, PullState::Succeeded);
}

#[test]
fn a_failed_attempt_is_told_then_put_back_with_a_growing_delay_until_the_limit() {
    let mut worker = Worker::new(1);
    let mut delays = vec![];
    for attempt in 1..=3 {
        let (token, effects) = worker.deliver(&task("a", "nginx"), attempt);
        let event = told(&worker.fail(started(&effects), unavailable()));
        assert_eq!(event.event.attempt, attempt);
        let effects = worker.input(Input::Stored(event.store));
        if attempt <= 2 {
            assert_eq!(event.event.state, PullState::Retrying);
            let at = event.event.next_attempt_at.unwrap();
            let Effect::Nak {
                token: nacked,
                delay: Some(delay),
            } = effects[0]
            else {
                panic!("{effects:#?}");
            };
            assert_eq!((nacked, worker.now.after(delay)), (token, at));
            delays.push(delay);
            worker.pass(delay);
        } else {
            assert_eq!(event.event.state, PullState::Failed);
            let failure = event.event.failure.clone().unwrap();
            assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
            assert_eq!(effects[0], Effect::Ack(token));
        }
    }
    assert!(delays[0] <= Duration::from_millis(1_100) && delays[1] >= Duration::from_millis(1_800));
}

#[test]
fn the_delay_counts_from_the_failure_and_not_from_the_store() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let event = told(&worker.fail(pull, unavailable()));
    worker.pass(Duration::from_secs(5));
    let effects = worker.input(Input::Stored(event.store));
    assert!(
        matches!(effects[0], Effect::Nak { delay: None, .. }),
        "{effects:#?}"
    );
}

#[test]
fn a_permanent_failure_is_the_end() {
    for kind in FailureKind::ALL {
        let mut worker = Worker::new(1);
        let (_, pull) = worker.start(&task("a", "nginx"));
        let event = told(&worker.fail(pull, Failure::new(kind, "no")));
        assert_eq!(
            event.event.state.is_terminal(),
            kind.is_permanent(),
            "{kind}"
        );
    }
}

#[test]
fn the_registry_is_left_alone_for_as_long_as_it_asks() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let mut failure = Failure::new(FailureKind::RateLimited, "429");
    failure.retry_after = Some(Duration::from_secs(120));
    let event = told(&worker.fail(pull, failure));
    let wait = event.event.next_attempt_at.unwrap().since(worker.now);
    assert!(wait >= Duration::from_secs(120), "{wait:?}");
}

#[test]
fn attempts_are_counted_although_the_broker_forgot_the_deliveries() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let event = told(&worker.fail(pull, unavailable()));
    worker.input(Input::Stored(event.store));
    let (_, effects) = worker.deliver(&task("a", "nginx"), 1);
    let event = told(&worker.succeed(started(&effects)));
    assert_eq!(event.event.attempt, 2);
    worker.input(Input::Stored(event.store));
    let (_, effects) = worker.deliver(&task("a", "nginx"), 1);
    let event = told(&worker.succeed(started(&effects)));
    assert_eq!(event.event.attempt, 1, "what ended is forgotten");
}

#[test]
fn an_attempt_that_takes_too_long_is_stopped_and_fails_as_timeout() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let began = worker.now;
    assert!(
        worker
            .wait_for(DeadlineReason::AttemptOver)
            .contains(&Effect::CancelPull(pull))
    );
    assert_eq!(worker.now.since(began), Duration::from_secs(300));
    let event = told(&worker.fail(pull, Failure::new(FailureKind::Internal, "cancelled")));
    assert_eq!(event.event.state, PullState::Retrying);
    let failure = event.event.failure.clone().unwrap();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.message.contains("300 s"), "{}", failure.message);
}

#[test]
fn a_pull_that_ends_well_while_it_is_being_stopped_has_succeeded() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    worker.wait_for(DeadlineReason::AttemptOver);
    assert_eq!(
        told(&worker.succeed(pull)).event.state,
        PullState::Succeeded
    );
}

#[test]
fn the_jobs_deadline_stops_an_attempt_for_good() {
    let mut worker = Worker::new(1);
    let mut task = task("a", "nginx");
    task.expires_at = Some(worker.now.after(Duration::from_secs(60)));
    let (_, pull) = worker.start(&task);
    let began = worker.now;
    assert!(
        worker
            .wait_for(DeadlineReason::AttemptOver)
            .contains(&Effect::CancelPull(pull))
    );
    assert_eq!(worker.now.since(began), Duration::from_secs(60));
    let event = told(&worker.fail(pull, Failure::new(FailureKind::Internal, "cancelled")));
    assert_eq!(event.event.state, PullState::Failed);
    assert_eq!(
        event.event.failure.clone().unwrap().kind,
        FailureKind::DeadlineExceeded
    );
}

#[test]
fn an_expired_task_is_not_started() {
    let mut worker = Worker::new(1);
    let mut task = task("a", "nginx");
    task.expires_at = Some(worker.now);
    let (token, effects) = worker.deliver(&task, 1);
    let event = told(&effects);
    assert_eq!(effects.len(), 1);
    assert_eq!(
        event.event.failure.clone().unwrap().kind,
        FailureKind::DeadlineExceeded
    );
    assert_eq!(
        worker.input(Input::Stored(event.store))[0],
        Effect::Ack(token)
    );
}

#[test]
fn tasks_for_one_content_share_a_pull_and_the_higher_priority_is_next() {
    let mut worker = Worker::new(3);
    let (_, first) = worker.start(&task("a", "nginx"));
    let (_, effects) = worker.deliver(&task("b", "nginx"), 1);
    assert_eq!(effects, [], "the slot is taken, no pull is started");
    let mut urgent = task("c", "nginx");
    urgent.priority = 5;
    worker.deliver(&urgent, 1);
    assert_eq!(worker.state.slots_taken(), 3);
    assert_eq!(worker.state.holding().len(), 3);

    let effects = worker.succeed(first);
    let next = find(&effects, |effect| match effect {
        Effect::StartPull { task, .. } => Some(task.job.to_string()),
        _ => None,
    });
    assert_eq!(next, "c");
    let effects = worker.fail(started(&effects), unavailable());
    assert_eq!(
        find(&effects, |effect| match effect {
            Effect::StartPull { task, .. } => Some(task.job.to_string()),
            _ => None,
        }),
        "b",
        "a failed pull is tried by the next with its own secrets"
    );
}

#[test]
fn contents_that_differ_do_not_wait_for_each_other() {
    let mut worker = Worker::new(4);
    let plain = task("a", "nginx");
    let mut other = [task("b", "nginx"), task("c", "nginx"), task("d", "nginx")];
    other[0].digest = Some(Digest::of(b"x"));
    other[1].platform = Some("linux/arm64".parse().unwrap());
    other[2].unpack = false;
    worker.start(&plain);
    for task in &other {
        worker.start(task);
    }
}

#[test]
fn a_task_that_waits_past_its_jobs_deadline_fails() {
    let mut worker = Worker::new(2);
    worker.start(&task("a", "nginx"));
    let mut waiting = task("b", "nginx");
    waiting.expires_at = Some(worker.now.after(Duration::from_secs(7)));
    worker.deliver(&waiting, 1);
    let event = told(&worker.wait_for(DeadlineReason::AttemptOver));
    assert_eq!(event.event.job.as_str(), "b");
    assert_eq!(
        event.event.failure.clone().unwrap().kind,
        FailureKind::DeadlineExceeded
    );
}

#[test]
fn everything_in_hand_is_kept_by_in_progress_acks() {
    let mut worker = Worker::new(3);
    let (running, pull) = worker.start(&task("a", "nginx"));
    let (waiting, _) = worker.deliver(&task("b", "nginx"), 1);
    for _ in 0..3 {
        let effects = worker.pass(Duration::from_secs(10));
        assert!(effects.contains(&Effect::InProgress(running)));
        assert!(effects.contains(&Effect::InProgress(waiting)));
    }
    worker.succeed(pull);
    assert!(
        worker
            .pass(Duration::from_secs(10))
            .contains(&Effect::InProgress(running))
    );
}

#[test]
fn a_task_that_comes_again_while_in_hand_is_answered_once_by_its_last_delivery() {
    let mut worker = Worker::new(2);
    let (first, pull) = worker.start(&task("a", "nginx"));
    let (again, effects) = worker.deliver(&task("a", "nginx"), 2);
    assert_eq!(effects[0], Effect::Forget(first));
    assert_eq!(fetched(&effects), 1, "it took no second slot");
    assert_eq!(effects.len(), 2);
    let event = told(&worker.succeed(pull));
    assert_eq!(event.event.attempt, 1);
    assert_eq!(
        worker.input(Input::Stored(event.store))[0],
        Effect::Ack(again)
    );
}

#[test]
fn a_later_run_takes_the_place_of_the_earlier() {
    let later = |generation, round, uid: &str| {
        let mut task = task("a", "nginx");
        task.run = Run {
            uid: uid.to_owned(),
            generation,
            round,
        };
        task
    };
    for (run, by_ack) in [
        (later(2, 1, "u"), true),
        (later(1, 2, "u"), true),
        (later(1, 1, "v"), false),
    ] {
        let mut worker = Worker::new(2);
        let (token, pull) = worker.start(&task("a", "nginx"));
        let (_, effects) = worker.deliver(&run, 1);
        assert_eq!(effects[0], Effect::CancelPull(pull));
        let answer = if by_ack {
            Effect::Ack(token)
        } else {
            Effect::Nak { token, delay: None }
        };
        assert_eq!(effects[1], answer);
        assert_eq!(worker.state.holding(), [pull_id(&run)]);
        assert_eq!(worker.state.slots_taken(), 2, "the old pull has not ended");
        let effects = worker.fail(pull, Failure::new(FailureKind::Internal, "cancelled"));
        started(&effects);
        assert_eq!(fetched(&effects), 1);
    }
}

#[test]
fn an_earlier_run_is_dropped() {
    let mut worker = Worker::new(2);
    let mut later = task("a", "nginx");
    later.run.round = 2;
    worker.start(&later);
    let (token, effects) = worker.deliver(&task("a", "nginx"), 1);
    assert_eq!(effects[0], Effect::Ack(token));
    assert_eq!(worker.state.holding(), [pull_id(&later)]);
}

#[test]
fn a_revoked_pull_stops_and_nothing_more_is_said_of_it() {
    let mut worker = Worker::new(1);
    let (token, pull) = worker.start(&task("a", "nginx"));
    let effects = worker.input(Input::Revoked(vec![pull_id(&task("a", "nginx"))]));
    assert_eq!(effects[0], Effect::CancelPull(pull));
    assert!(matches!(effects[1], Effect::Nak { token: nacked, delay: Some(_) } if nacked == token));
    assert_eq!(worker.state.holding(), []);
    let effects = worker.fail(pull, Failure::new(FailureKind::Internal, "cancelled"));
    assert_eq!(fetched(&effects), 1);
    assert_eq!(effects.len(), 1);
}

#[test]
fn only_the_revoked_run_stops() {
    let mut worker = Worker::new(1);
    worker.start(&task("a", "nginx"));
    let mut other = pull_id(&task("a", "nginx"));
    other.run.round = 2;
    assert_eq!(worker.input(Input::Revoked(vec![other])), []);
    assert_eq!(worker.state.holding().len(), 1);
}

#[test]
fn a_task_that_crossed_its_revocation_is_put_back_and_one_released_later_runs() {
    let mut worker = Worker::new(1);
    let revoked = task("a", "nginx");
    worker.input(Input::Revoked(vec![pull_id(&revoked)]));
    worker.pass(Duration::from_secs(4));
    let (token, effects) = worker.deliver(&revoked, 1);
    let delay = Some(Duration::from_secs(6));
    assert_eq!(effects[0], Effect::Nak { token, delay });
    worker.pass(Duration::from_secs(6));
    worker.start(&revoked);
}

#[test]
fn a_task_that_cannot_be_read_or_is_for_another_node_is_dropped() {
    let mut worker = Worker::new(1);
    let token = DeliveryToken(99);
    let effects = worker.input(Input::Undecodable {
        token,
        subject: "prewarm.task.node-1.a.b".to_owned(),
        problem: "expected value at line 1 column 1".to_owned(),
    });
    assert_eq!(effects[0], Effect::Ack(token));
    assert_eq!(fetched(&effects), 1);

    let mut foreign = task("a", "nginx");
    foreign.node = "node-2".parse().unwrap();
    let (token, effects) = worker.deliver(&foreign, 1);
    assert_eq!(effects[0], Effect::Ack(token));
    assert_eq!(fetched(&effects), 1);
}

#[test]
fn more_than_was_asked_for_goes_back() {
    let mut worker = Worker::new(1);
    worker.start(&task("a", "nginx"));
    let (token, effects) = worker.deliver(&task("b", "redis"), 1);
    assert_eq!(effects[0], Effect::Nak { token, delay: None });
    assert_eq!(worker.state.slots_taken(), 1);
}

#[test]
fn exactly_as_many_tasks_are_asked_for_as_slots_are_free() {
    let mut worker = Worker::new(3);
    let (_, pull) = worker.start(&task("a", "nginx"));
    assert_eq!(worker.state.outstanding(), 2);
    let effects = worker.input(Input::FetchEnded {
        undelivered: 2,
        end: FetchEnd::Expired,
    });
    assert_eq!(fetched(&effects), 2);
    let event = told(&worker.succeed(pull));
    assert_eq!(fetched(&worker.input(Input::Stored(event.store))), 1);
    assert_eq!(worker.state.outstanding(), 3);
}

#[test]
fn a_broker_that_refuses_is_asked_again_after_a_pause() {
    let mut worker = Worker::new(3);
    let effects = worker.input(Input::FetchEnded {
        undelivered: 3,
        end: FetchEnd::Refused,
    });
    assert_eq!(effects, []);
    let before = worker.now;
    assert_eq!(fetched(&worker.wait_for(DeadlineReason::Fetch)), 3);
    assert_eq!(worker.now.since(before), FETCH_PAUSE);
}

#[test]
fn a_lost_consumer_is_asked_for_anew_and_what_is_in_hand_stays() {
    let mut worker = Worker::new(2);
    let (_, pull) = worker.start(&task("a", "nginx"));
    worker.pass(Duration::from_secs(60));
    let effects = worker.input(Input::ConsumerLost);
    assert_eq!(
        effects,
        [Effect::Register {
            consumer_lost: true
        }]
    );
    assert_eq!(worker.input(Input::ConsumerLost), [], "it is known");
    let effects = worker.input(Input::Registered(consumer()));
    assert_eq!(fetched(&effects), 1, "one slot of two is taken");
    let (again, _) = worker.deliver(&task("a", "nginx"), 1);
    let event = told(&worker.succeed(pull));
    assert_eq!(
        worker.input(Input::Stored(event.store))[0],
        Effect::Ack(again)
    );
}

#[test]
fn an_answer_from_before_the_loss_is_no_answer_to_it() {
    let mut worker = Worker::new(1);
    worker.pass(REGISTER_EVERY * 2);
    let effects = worker.input(Input::ConsumerLost);
    assert_eq!(effects, [], "a request is open");
    let effects = worker.input(Input::Registered(consumer()));
    assert_eq!(
        effects,
        [Effect::Register {
            consumer_lost: true
        }]
    );
    assert_eq!(fetched(&worker.input(Input::Registered(consumer()))), 1);
}

#[test]
fn a_consumer_that_keeps_being_lost_is_asked_for_ever_more_slowly() {
    let mut worker = Worker::new(1);
    let mut last = worker.now;
    for _ in 0..20 {
        worker.input(Input::ConsumerLost);
        if worker.state.registration.deadline().is_some() {
            worker.wait_for(DeadlineReason::Register);
        }
        last = worker.now;
        worker.input(Input::Registered(consumer()));
    }
    worker.input(Input::ConsumerLost);
    worker.wait_for(DeadlineReason::Register);
    assert!(worker.now.since(last) >= MAX_REGISTER_DELAY * 9 / 10);
}

#[test]
fn registering_is_tried_for_as_long_as_it_takes_with_a_bounded_delay() {
    let now = Timestamp::EPOCH;
    let state = WorkerState::new(settings(1), 1, now);
    let mut worker = Worker {
        state,
        now,
        tokens: 0,
    };
    let register = Effect::Register {
        consumer_lost: false,
    };
    assert_eq!(worker.input(Input::Tick), [register.clone()]);
    for _ in 0..20 {
        let before = worker.now;
        worker.input(Input::NotRegistered);
        assert_eq!(
            worker.wait(),
            (DeadlineReason::Register, vec![register.clone()])
        );
        assert!(worker.now.since(before) <= MAX_REGISTER_DELAY * 11 / 10);
    }
    assert_eq!(worker.state.outstanding(), 0, "nothing is asked for before");
}

#[test]
fn a_registered_worker_announces_itself_from_time_to_time_and_after_a_reconnect() {
    let mut worker = Worker::new(1);
    let before = worker.now;
    let register = Effect::Register {
        consumer_lost: false,
    };
    assert_eq!(
        worker.wait_for(DeadlineReason::Register),
        [register.clone()]
    );
    assert!(worker.now.since(before) >= REGISTER_EVERY * 9 / 10);
    worker.input(Input::Registered(consumer()));

    let effects = worker.input(Input::Reconnected);
    assert_eq!(fetched(&effects), 1, "requests from before are dead");
    let before = worker.now;
    assert!(
        worker
            .wait_for(DeadlineReason::Register)
            .contains(&register)
    );
    assert!(worker.now.since(before) <= Duration::from_secs(1));
}

#[test]
fn a_consumer_of_another_name_is_asked_afresh() {
    let mut worker = Worker::new(2);
    worker.wait_for(DeadlineReason::Register);
    let mut moved = consumer();
    moved.stream = "PREWARM_TASKS_2".to_owned();
    let effects = worker.input(Input::Registered(moved.clone()));
    assert_eq!(
        effects,
        [Effect::Fetch {
            consumer: moved,
            batch: 2
        }]
    );
}

#[test]
fn heartbeats_name_what_is_in_hand() {
    let mut worker = Worker::new(2);
    worker.start(&task("a", "nginx"));
    let (reason, effects) = worker.wait();
    assert_eq!(reason, DeadlineReason::Heartbeat);
    let beat = find(&effects, |effect| match effect {
        Effect::Heartbeat(beat) => Some(beat.clone()),
        _ => None,
    });
    assert_eq!(beat.instance, "i");
    assert_eq!(beat.holding, [pull_id(&task("a", "nginx"))]);
}

#[test]
fn after_stop_nothing_is_taken_and_running_pulls_may_end_within_the_grace() {
    let mut worker = Worker::new(3);
    let (running, pull) = worker.start(&task("a", "nginx"));
    let (waiting, _) = worker.deliver(&task("b", "nginx"), 1);
    let effects = worker.input(Input::Stop);
    assert_eq!(
        effects,
        [
            Effect::StopFetching,
            Effect::Nak {
                token: waiting,
                delay: None
            }
        ]
    );
    let (late, effects) = worker.deliver(&task("c", "redis"), 1);
    assert_eq!(
        effects[0],
        Effect::Nak {
            token: late,
            delay: None
        }
    );

    let event = told(&worker.succeed(pull));
    let effects = worker.input(Input::Stored(event.store));
    assert_eq!(effects, [Effect::Ack(running), Effect::Drained]);
    assert_eq!(worker.state.next_deadline(), None);
}

#[test]
fn when_the_grace_is_over_everything_goes_back_without_delay() {
    let mut worker = Worker::new(3);
    let (running, pull) = worker.start(&task("a", "nginx"));
    let (storing, other) = worker.start(&task("b", "redis"));
    worker.succeed(other);
    let began = worker.now;
    worker.input(Input::Stop);
    let effects = worker.wait_for(DeadlineReason::GraceOver);
    assert_eq!(worker.now.since(began), DEFAULT_GRACE);
    assert!(effects.contains(&Effect::CancelPull(pull)));
    for token in [running, storing] {
        assert!(
            effects.contains(&Effect::Nak { token, delay: None }),
            "{effects:#?}"
        );
    }
    assert!(!effects.contains(&Effect::Drained), "a pull has not ended");
    let effects = worker.fail(pull, Failure::new(FailureKind::Internal, "cancelled"));
    assert_eq!(effects, [Effect::Drained]);
}

#[test]
fn an_idle_worker_stops_at_once_and_stays_stopped() {
    let mut worker = Worker::new(1);
    assert_eq!(
        worker.input(Input::Stop),
        [Effect::StopFetching, Effect::Drained]
    );
    assert_eq!(worker.input(Input::Stop), []);
    assert_eq!(worker.input(Input::Tick), []);
    assert_eq!(worker.input(Input::ConsumerLost), []);
}

#[test]
fn a_message_id_is_the_same_for_repeats_and_another_for_another_telling() {
    let mut worker = Worker::new(1);
    let mut ids = vec![];
    for _ in 0..2 {
        let (_, pull) = worker.start(&task("a", "nginx"));
        let event = told(&worker.succeed(pull));
        ids.push((event.event.id(), event.message_id.clone()));
        worker.input(Input::Stored(event.store));
    }
    assert_eq!(ids[0].0, ids[1].0, "one fact");
    assert_ne!(ids[0].1, ids[1].1, "told twice");
}

#[test]
fn a_long_failure_message_is_cut_at_a_character() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let event = told(&worker.fail(pull, Failure::new(FailureKind::Internal, "é".repeat(5_000))));
    let message = &event.event.failure.as_ref().unwrap().message;
    assert!(message.len() <= attempt::MAX_FAILURE_MESSAGE_BYTES + '…'.len_utf8());
    assert!(message.ends_with("é…"));
}
