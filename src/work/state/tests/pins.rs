//! The node's pins: found, named, taken back.

use super::*;
use crate::domain::pin::Pin;

fn pin(uid: &str) -> Pin {
    Pin {
        uid: uid.to_owned(),
        image: "0123456789ab".to_owned(),
        generation: 1,
    }
}

fn named(effects: &[Effect]) -> Vec<Pin> {
    find(effects, |effect| match effect {
        Effect::Heartbeat(beat) => Some(beat.pins.clone()),
        _ => None,
    })
}

fn unpin(pins: Vec<Pin>) -> Input {
    let pulls = Vec::new();
    Input::Revoked(Revocation { pulls, unpin: pins })
}

#[test]
fn a_worker_that_starts_looks_and_names_what_it_found() {
    let mut worker = Worker::new(1);
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert_eq!(named(&effects), []);
    assert!(effects.contains(&Effect::FindPins));
    worker.input(Input::PinsFound(None));
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert!(effects.contains(&Effect::FindPins), "the runtime was away");
    worker.input(Input::PinsFound(Some(vec![pin("a"), pin("b")])));
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert_eq!(named(&effects), [pin("a"), pin("b")]);
    assert!(!effects.contains(&Effect::FindPins), "nothing has changed");
}

#[test]
fn it_looks_again_after_a_pull_and_after_pins_were_taken_back() {
    let mut worker = Worker::new(1);
    worker.wait_for(DeadlineReason::Heartbeat);
    worker.input(Input::PinsFound(Some(vec![])));
    let (_, pull) = worker.start(&task("a", "nginx"));
    let effects = worker.succeed(pull);
    worker.input(Input::Stored(told(&effects).store));
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert!(effects.contains(&Effect::FindPins));
    worker.input(Input::PinsFound(Some(vec![pin("u")])));
    let effects = worker.input(unpin(vec![pin("u")]));
    assert_eq!(effects, [Effect::Unpin(vec![pin("u")])]);
    let again = worker.input(unpin(vec![pin("u")]));
    assert_eq!(again, [], "one at a time");
    worker.input(Input::Unpinned);
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert!(effects.contains(&Effect::FindPins));
    worker.input(Input::PinsFound(Some(vec![])));
    let effects = worker.wait_for(DeadlineReason::Heartbeat);
    assert_eq!(named(&effects), []);
}
