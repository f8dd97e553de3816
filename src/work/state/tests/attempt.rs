//! One attempt and what it comes to.

use super::*;

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
fn every_event_belongs_to_the_trace_of_its_task() {
    let mut worker = Worker::new(1);
    let nginx = task("a", "nginx");
    let (_, effects) = worker.deliver(&nginx, 1);
    let begins = |effects: &[Effect]| {
        find(effects, |effect| match effect {
            Effect::Store(event) => Some(Arc::clone(event)),
            _ => None,
        })
    };
    let began = begins(&effects);
    let retrying = told(&worker.fail(started(&effects), unavailable()));
    worker.input(Input::Stored(retrying.store));
    let (_, again) = worker.deliver(&nginx, 2);
    let ended = told(&worker.succeed(started(&again)));
    for (event, state) in [
        (began, PullState::Started),
        (retrying, PullState::Retrying),
        (ended, PullState::Succeeded),
    ] {
        assert_eq!(event.event.state, state);
        assert_eq!(event.traceparent, nginx.traceparent);
    }
    let (mut worker, untraced) = (
        Worker::new(1),
        PullTask {
            traceparent: None,
            ..nginx
        },
    );
    assert_eq!(begins(&worker.deliver(&untraced, 1).1).traceparent, None);
}

#[test]
fn an_end_that_is_not_stored_is_stored_again_for_as_long_as_it_takes() {
    let mut worker = Worker::new(1);
    let (token, pull) = worker.start(&task("a", "nginx"));
    let event = told(&worker.succeed(pull));
    let mut in_progress = 0;
    for _ in 0..250 {
        let before = worker.now;
        assert_eq!(worker.input(Input::NotStored(event.store)), []);
        loop {
            let (reason, effects) = worker.wait();
            let waited = worker.now.since(before);
            assert!(waited <= super::super::attempt::MAX_STORE_DELAY * 11 / 10);
            in_progress += usize::from(effects.contains(&Effect::InProgress(token)));
            if reason == DeadlineReason::StoreAgain {
                assert_eq!(told(&effects), event, "the very same event");
                break;
            }
        }
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

/// A worker's clock is minutes ahead, or behind: what was left at the release is what there is.
#[test]
fn a_deadline_is_counted_from_the_delivery_whatever_this_nodes_clock_shows() {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    for ahead in [0, 10, 600] {
        for behind in [0, 20] {
            let mut worker = Worker::new(1);
            worker.pass(minutes(ahead));
            let mut task = task("a", "nginx");
            let released = worker.now.after(minutes(behind));
            let released = released.since(Timestamp::EPOCH) - minutes(ahead);
            task.released_at = Some(Timestamp::EPOCH.after(released));
            task.expires_at = Some(Timestamp::EPOCH.after(released + minutes(2)));
            let (_, pull) = worker.start(&task);
            let began = worker.now;
            let effects = worker.wait_for(DeadlineReason::AttemptOver);
            assert!(effects.contains(&Effect::CancelPull(pull)));
            assert_eq!(worker.now.since(began), minutes(2), "{ahead} {behind}");
            let failure = Failure::new(FailureKind::Internal, "cancelled");
            let failure = told(&worker.fail(pull, failure)).event.failure.clone();
            assert_eq!(failure.unwrap().kind, FailureKind::DeadlineExceeded);
        }
    }
}

#[test]
fn a_retry_has_what_its_first_attempt_left_of_the_deadline() {
    let mut worker = Worker::new(1);
    let mut task = task("a", "nginx");
    task.released_at = Some(Timestamp::EPOCH);
    task.expires_at = Some(Timestamp::EPOCH.after(Duration::from_secs(60)));
    let (_, pull) = worker.start(&task);
    let began = worker.now;
    worker.pass(Duration::from_secs(20));
    let failure = Failure::new(FailureKind::RegistryUnavailable, "503");
    let event = told(&worker.fail(pull, failure));
    worker.input(Input::Stored(event.store));
    worker.pass(Duration::from_secs(10));
    worker.start(&task);
    worker.wait_for(DeadlineReason::AttemptOver);
    assert_eq!(worker.now.since(began), Duration::from_secs(60));
}

/// Tasks of a dispatcher that says nothing of the release; between two of a run its deadline may have been edited.
#[test]
fn a_task_that_does_not_say_when_it_was_released_keeps_to_its_own_deadline() {
    let mut worker = Worker::new(1);
    let mut task = task("a", "nginx");
    let (_, pull) = worker.start(&task);
    let failure = Failure::new(FailureKind::RegistryUnavailable, "503");
    let event = told(&worker.fail(pull, failure));
    worker.input(Input::Stored(event.store));
    task.expires_at = Some(worker.now);
    let (_, effects) = worker.deliver(&task, 2);
    let failure = told(&effects).event.failure.clone();
    assert_eq!(failure.unwrap().kind, FailureKind::DeadlineExceeded);
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
    assert!(message.len() <= super::super::attempt::MAX_FAILURE_MESSAGE_BYTES + '…'.len_utf8());
    assert!(message.ends_with("é…"));
}
