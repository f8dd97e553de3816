//! Asking for tasks, being registered, living and stopping.

use super::*;

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
    assert_eq!(worker.input(Input::Tick), vec![register.clone()]);
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
        vec![register.clone()]
    );
    assert!(worker.now.since(before) >= REGISTER_EVERY * 9 / 10);
    worker.input(Input::Registered(consumer()));

    let effects = worker.input(Input::Reconnected { in_cluster: false });
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
fn a_worker_that_left_requests_behind_in_a_cluster_has_its_consumer_made_anew_and_works_on_meanwhile()
 {
    let mut worker = Worker::new(2);
    let before = worker.now;
    let effects = worker.input(Input::Reconnected { in_cluster: true });
    assert_eq!(fetched(&effects), 2, "the consumer of before may still do");
    let renew = Effect::Register {
        consumer_lost: true,
    };
    assert!(worker.wait_for(DeadlineReason::Register).contains(&renew));
    assert!(worker.now.since(before) <= RENEW_SPREAD);
    let (_, pull) = worker.start(&task("a", "nginx"));
    let fetch = Effect::Fetch {
        consumer: consumer(),
        batch: 1,
    };
    assert_eq!(
        worker.input(Input::Registered(consumer())),
        [Effect::StopFetching, fetch],
        "what was asked of the consumer before ended with it"
    );
    let (again, _) = worker.deliver(&task("a", "nginx"), 1);
    let event = told(&worker.succeed(pull));
    assert_eq!(
        worker.input(Input::Stored(event.store))[0],
        Effect::Ack(again)
    );
    worker.wait_for(DeadlineReason::Register);
    assert!(worker.now.since(before) >= REGISTER_EVERY * 9 / 10);
}

#[test]
fn the_end_of_a_consumer_that_is_made_anew_is_no_second_loss() {
    let mut worker = Worker::new(1);
    worker.input(Input::Reconnected { in_cluster: true });
    worker.wait_for(DeadlineReason::Register);
    assert_eq!(worker.input(Input::ConsumerLost), [], "a request is open");
    let effects = worker.input(Input::Registered(consumer()));
    assert_eq!(fetched(&effects), 1, "{effects:?}");
    assert_eq!(effects.len(), 1, "{effects:?}");
}

#[test]
fn a_worker_that_left_no_request_behind_keeps_its_consumer() {
    let mut worker = Worker::new(1);
    worker.start(&task("a", "nginx"));
    worker.input(Input::Reconnected { in_cluster: true });
    let register = Effect::Register {
        consumer_lost: false,
    };
    assert!(
        worker
            .wait_for(DeadlineReason::Register)
            .contains(&register)
    );
}

#[test]
fn a_fleet_that_reconnects_spreads_over_the_time_it_has() {
    let register_at = |seed| {
        let mut worker = Worker::seeded(1, seed);
        let before = worker.now;
        worker.input(Input::Reconnected { in_cluster: true });
        worker.wait_for(DeadlineReason::Register);
        worker.now.since(before)
    };
    let mut at: Vec<Duration> = (0..100).map(register_at).collect();
    at.sort_unstable();
    let half = RENEW_SPREAD / 2;
    assert!(at[25] < half && half < at[75], "{at:?}");
}

#[test]
fn a_node_that_changed_is_announced_again_and_once_more_if_it_changed_meanwhile() {
    let mut worker = Worker::new(1);
    let register = Effect::Register {
        consumer_lost: false,
    };
    let before = worker.now;
    worker.input(Input::StandingChanged);
    assert_eq!(
        worker.wait_for(DeadlineReason::Register),
        vec![register.clone()]
    );
    assert!(worker.now.since(before) <= Duration::from_secs(1));
    assert_eq!(
        worker.input(Input::StandingChanged),
        [],
        "a request is open"
    );
    assert_eq!(worker.input(Input::Registered(consumer())), [register]);
    worker.input(Input::Registered(consumer()));
    let before = worker.now;
    worker.wait_for(DeadlineReason::Register);
    assert!(worker.now.since(before) >= REGISTER_EVERY * 9 / 10);
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
