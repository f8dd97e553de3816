//! Ends of pulls that the broker does not take outlive the worker.

use super::*;
use crate::work::state::kept::{KEEP_AFTER, KeptResult, MAX_KEPT_RESULTS};

fn kept(effects: &[Effect]) -> Option<KeptResult> {
    let mut kept = effects.iter().filter_map(|effect| match effect {
        Effect::Keep(event) => Some(KeptResult::from(&**event)),
        _ => None,
    });
    let first = kept.next();
    assert!(kept.next().is_none(), "more than one in {effects:#?}");
    first
}

fn discarded(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Discard(event) => Some(event.message_id.clone()),
        _ => None,
    })
}

fn starts(effects: &[Effect]) -> bool {
    let starts = |effect: &Effect| matches!(effect, Effect::StartPull { .. });
    effects.iter().any(starts)
}

/// A worker that has finished a pull and been told nothing by the broker.
fn finished() -> (Worker, Arc<EventToStore>) {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("base", "nginx"));
    let event = told(&worker.succeed(pull));
    (worker, event)
}

/// What is on the disk of a worker that is killed while the broker is away.
fn left_behind() -> KeptResult {
    let (mut worker, _) = finished();
    kept(&worker.wait_for(DeadlineReason::Keep)).unwrap()
}

/// The next life, and what it says first.
fn next_life(results: Vec<KeptResult>) -> (Worker, Vec<Effect>) {
    let now = Timestamp::from_millis(1_790_000_100_000);
    let mut settings = settings(1);
    settings.instance = "i2".to_owned();
    let mut worker = Worker {
        state: WorkerState::new(settings, 2, now).with_kept(now, results),
        now,
        tokens: 100,
    };
    let first = worker.input(Input::Tick);
    worker.input(Input::Registered(consumer()));
    (worker, first)
}

#[test]
fn what_the_broker_takes_at_once_never_touches_the_disk() {
    let (mut worker, event) = finished();
    let effects = worker.input(Input::Stored(event.store));
    assert_eq!((kept(&effects), discarded(&effects)), (None, None));
    for _ in 0..100 {
        assert_eq!(kept(&worker.wait().1), None);
    }
}

#[test]
fn what_the_broker_does_not_take_goes_to_the_disk_until_it_does() {
    let (mut worker, event) = finished();
    let finished_at = worker.now;
    let on_disk = kept(&worker.wait_for(DeadlineReason::Keep)).unwrap();
    assert_eq!(worker.now, finished_at.after(KEEP_AFTER));
    assert_eq!(on_disk, KeptResult::from(&*event));
    worker.input(Input::NotStored(event.store));
    let again = worker.wait_for(DeadlineReason::StoreAgain);
    assert_eq!(kept(&again), None, "once is enough");
    let effects = worker.input(Input::Stored(event.store));
    assert_eq!(discarded(&effects), Some(on_disk.message_id));
}

#[test]
fn what_is_tried_again_is_not_kept() {
    let mut worker = Worker::new(1);
    let (_, pull) = worker.start(&task("base", "nginx"));
    let event = told(&worker.fail(pull, unavailable()));
    assert_eq!(event.event.state, PullState::Retrying);
    for _ in 0..100 {
        assert_eq!(kept(&worker.wait().1), None);
    }
}

#[test]
fn the_next_life_tells_it_as_it_was() {
    let on_disk = left_behind();
    let (mut worker, first) = next_life(vec![on_disk.clone()]);
    let event = told(&first);
    assert_eq!(KeptResult::from(&*event), on_disk);
    let effects = worker.input(Input::NotStored(event.store));
    assert_eq!(discarded(&effects), None);
    let again = told(&worker.wait_for(DeadlineReason::StoreAgain));
    assert_eq!(again, event);
    let effects = worker.input(Input::Stored(event.store));
    assert_eq!(discarded(&effects), Some(on_disk.message_id));
}

#[test]
fn a_task_that_comes_again_is_answered_without_a_pull() {
    for (name, before) in [("asked", None), ("due", Some(false)), ("told", Some(true))] {
        let (mut worker, first) = next_life(vec![left_behind()]);
        let event = told(&first);
        match before {
            Some(true) => drop(worker.input(Input::Stored(event.store))),
            Some(false) => drop(worker.input(Input::NotStored(event.store))),
            None => {}
        }
        let (token, effects) = worker.deliver(&task("base", "nginx"), 2);
        assert!(!starts(&effects), "{name}");
        let stores = effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Store(_)));
        // The same id: a broker that has it drops it.
        assert_eq!(stores.count(), usize::from(before.is_some()), "{name}");
        assert!(!effects.contains(&Effect::Ack(token)), "{name}");
        let effects = worker.input(Input::Stored(event.store));
        assert!(effects.contains(&Effect::Ack(token)), "{name}");
        assert_eq!(
            discarded(&effects).is_some(),
            before != Some(true),
            "{name}"
        );
        let (_, effects) = worker.deliver(&task("base", "nginx"), 3);
        assert!(starts(&effects), "{name}: it answers once");
    }
}

#[test]
fn long_after_it_was_told_it_answers_no_more() {
    let (mut worker, first) = next_life(vec![left_behind()]);
    worker.input(Input::Stored(told(&first).store));
    worker.pass(Duration::from_secs(121));
    let (_, effects) = worker.deliver(&task("base", "nginx"), 2);
    assert!(starts(&effects));
}

#[test]
fn a_task_of_another_run_takes_its_place() {
    let on_disk = left_behind();
    for uid in ["u", "v"] {
        let (mut worker, _) = next_life(vec![on_disk.clone()]);
        let mut later = task("base", "nginx");
        later.run.uid = uid.to_owned();
        later.run.round = 2;
        let (_, effects) = worker.deliver(&later, 1);
        assert!(starts(&effects));
        assert_eq!(discarded(&effects).as_ref(), Some(&on_disk.message_id));
        for _ in 0..50 {
            let told_again = |effect: &Effect| matches!(effect, Effect::Store(event) if event.message_id == on_disk.message_id);
            assert!(!worker.wait().1.iter().any(told_again));
        }
    }
}

#[test]
fn what_is_revoked_or_gives_way_leaves_the_disk() {
    let (mut worker, _) = finished();
    let on_disk = kept(&worker.wait_for(DeadlineReason::Keep)).unwrap();
    let effects = worker.input(revoke(vec![pull_id(&task("base", "nginx"))]));
    assert_eq!(discarded(&effects).as_ref(), Some(&on_disk.message_id));

    let (mut worker, _) = finished();
    let on_disk = kept(&worker.wait_for(DeadlineReason::Keep)).unwrap();
    let mut later = task("base", "nginx");
    later.run.generation = 2;
    let (_, effects) = worker.deliver(&later, 1);
    assert_eq!(discarded(&effects).as_ref(), Some(&on_disk.message_id));
}

#[test]
fn a_worker_that_stops_waiting_keeps_what_it_could_not_tell() {
    let mut worker = Worker::new(1);
    worker.state.settings.grace = KEEP_AFTER / 2;
    let (_, pull) = worker.start(&task("base", "nginx"));
    worker.succeed(pull);
    worker.input(Input::Stop);
    let effects = worker.wait_for(DeadlineReason::GraceOver);
    assert!(kept(&effects).is_some());
    assert!(effects.contains(&Effect::Drained));
}

#[test]
fn a_broker_that_is_back_is_told_at_once() {
    let (mut worker, event) = finished();
    let (mut next, _) = next_life(vec![left_behind()]);
    for _ in 0..5 {
        worker.input(Input::NotStored(event.store));
        worker.wait_for(DeadlineReason::StoreAgain);
    }
    worker.input(Input::NotStored(event.store));
    assert_eq!(
        told(&worker.input(Input::Reconnected { in_cluster: false })),
        event
    );

    let inherited = next.state.kept[0].clone();
    next.input(Input::NotStored(StoreHandle(1)));
    assert!(inherited != next.state.kept[0]);
    told(&next.input(Input::Reconnected { in_cluster: false }));
}

#[test]
fn only_so_many_are_told_and_the_oldest_are_not() {
    let one = left_behind();
    let results = (0..MAX_KEPT_RESULTS + 3).map(|number| {
        let mut result = one.clone();
        result.message_id = format!("m{number}");
        result.at = Timestamp::from_millis(i64::try_from(number).unwrap());
        result
    });
    let mut results: Vec<_> = results.collect();
    results.reverse();
    let (_, first) = next_life(results);
    let ids: Vec<_> = first
        .iter()
        .filter_map(|effect| match effect {
            Effect::Store(event) => Some(event.message_id.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(ids.len(), MAX_KEPT_RESULTS);
    assert_eq!(ids[0], "m3");
}
