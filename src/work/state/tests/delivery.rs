//! Tasks that arrive, wait, come again, give way, are revoked.

use super::*;

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
    let effects = worker.input(revoke(vec![pull_id(&task("a", "nginx"))]));
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
    assert_eq!(worker.input(revoke(vec![other])), []);
    assert_eq!(worker.state.holding().len(), 1);
}

#[test]
fn a_task_that_crossed_its_revocation_is_put_back_and_one_released_later_runs() {
    let mut worker = Worker::new(1);
    let revoked = task("a", "nginx");
    worker.input(revoke(vec![pull_id(&revoked)]));
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
        named: None,
        deliveries: 1,
    });
    assert!(effects.contains(&Effect::Ack(token)));
    assert_eq!(fetched(&effects), 1);

    let mut foreign = task("a", "nginx");
    foreign.node = "node-2".parse().unwrap();
    let (token, effects) = worker.deliver(&foreign, 1);
    assert_eq!(effects[0], Effect::Ack(token));
    assert_eq!(fetched(&effects), 1);
}

#[test]
fn a_task_that_only_names_its_pull_fails_and_is_acked_when_that_is_stored() {
    let mut worker = Worker::new(1);
    let mut message = serde_json::to_value(task("a", "nginx")).unwrap();
    message["imagePullPolicy"] = "Sometimes".into();
    let named = PullTask::named_in(message.to_string().as_bytes()).unwrap();
    let token = DeliveryToken(99);
    let effects = worker.input(Input::Undecodable {
        token,
        subject: "prewarm.task.node-1.a.b".to_owned(),
        problem: "unknown variant `Sometimes`".to_owned(),
        named: Some(Arc::new(named)),
        deliveries: 2,
    });
    let failed = told(&effects);
    assert_eq!(failed.event.state, PullState::Failed);
    assert_eq!(
        (failed.event.attempt, &failed.event.image),
        (2, &task("a", "nginx").image)
    );
    let failure = failed.event.failure.as_ref().unwrap();
    assert_eq!(failure.kind, FailureKind::Internal);
    assert!(
        failure.message.contains("`Sometimes`"),
        "{}",
        failure.message
    );
    let is_answer = |effect: &Effect| matches!(effect, Effect::Ack(_) | Effect::Nak { .. });
    assert!(!effects.iter().any(is_answer), "{effects:#?}");
    let effects = worker.input(Input::Stored(failed.store));
    assert!(effects.contains(&Effect::Ack(token)), "{effects:#?}");
    assert_eq!(worker.state.slots_taken(), 0);
}

#[test]
fn more_than_was_asked_for_goes_back() {
    let mut worker = Worker::new(1);
    worker.start(&task("a", "nginx"));
    let (token, effects) = worker.deliver(&task("b", "redis"), 1);
    assert_eq!(effects[0], Effect::Nak { token, delay: None });
    assert_eq!(worker.state.slots_taken(), 1);
}
