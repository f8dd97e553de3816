//! Pins that heartbeats name: those of jobs that live and want them stay, the others are taken back.

use super::cell::{Cell, image, node};
use crate::domain::job::JobSpec;
use crate::domain::name::NodeName;
use crate::domain::pin::Pin;
use crate::wire::worker::Heartbeat;

/// The pin that the job sets for this image now.
fn pin(cell: &Cell, of: &str) -> Pin {
    let run = cell.record("base").run();
    Pin {
        uid: run.uid,
        image: image(of).token(),
        generation: run.generation,
    }
}

fn taken_back(cell: &mut Cell, on: &NodeName, pins: &[Pin]) -> Vec<Pin> {
    let before = cell.unpinned.len();
    let heartbeat = Heartbeat {
        pins: pins.to_vec(),
        ..Heartbeat::default()
    };
    cell.hear(on, heartbeat);
    let new = cell.unpinned[before..].iter();
    new.map(|(told, pin)| {
        assert_eq!(told, on);
        pin.clone()
    })
    .collect()
}

/// Whether a pin that is named is taken back.
fn goes(cell: &mut Cell, on: &NodeName, pin: &Pin) -> bool {
    let named = std::slice::from_ref(pin);
    let back = taken_back(cell, on, named);
    assert!(back.is_empty() || back == named, "{back:?}");
    !back.is_empty()
}

fn pinned(spec: &mut JobSpec) {
    spec.pin = true;
}

#[test]
fn a_pin_lives_as_long_as_its_job_also_after_the_job_has_ended() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", pinned);
    let held = pin(&cell, "app:1");
    let on = node("a");
    assert!(!goes(&mut cell, &on, &held));
    cell.succeed_all();
    cell.advance(5);
    assert!(cell.record("base").status.outcome.is_some());
    assert!(!goes(&mut cell, &on, &held));
    cell.take_over();
    assert!(!goes(&mut cell, &on, &held));
    cell.delete("base");
    assert!(goes(&mut cell, &on, &held));
    cell.take_over();
    let again = goes(&mut cell, &on, &held);
    assert!(again, "a word that was lost is said again");
}

#[test]
fn the_pins_of_a_job_go_with_its_time_to_live_and_not_to_another_of_its_name() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| {
        spec.pin = true;
        spec.completion_policy.ttl_seconds_after_finished = Some(60);
    });
    let held = pin(&cell, "app:1");
    cell.succeed_all();
    let on = node("a");
    cell.advance(30);
    assert!(!goes(&mut cell, &on, &held));
    cell.advance(40);
    assert!(goes(&mut cell, &on, &held));
    cell.submit("base", pinned);
    let newer = pin(&cell, "app:1");
    let both = [held.clone(), newer];
    assert_eq!(taken_back(&mut cell, &on, &both), [held]);
}

#[test]
fn an_edit_takes_the_pins_of_images_that_the_job_has_no_more() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| {
        spec.pin = true;
        spec.images = vec![image("app:1"), image("app:2")];
    });
    let both = [pin(&cell, "app:1"), pin(&cell, "app:2")];
    let on = node("a");
    assert_eq!(taken_back(&mut cell, &on, &both), []);
    cell.submit("base", |spec| {
        spec.pin = true;
        spec.images = vec![image("app:2"), image("app:3")];
    });
    assert_eq!(taken_back(&mut cell, &on, &both), [both[0].clone()]);
    cell.submit("base", |spec| {
        spec.images = vec![image("app:2"), image("app:3")];
    });
    assert_eq!(taken_back(&mut cell, &on, &both), both);
}

#[test]
fn an_edit_that_pins_is_another_generation_so_that_every_node_does_and_one_that_does_not_is_none() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| {
        spec.completion_policy.kind = crate::domain::job::CompletionType::Never;
    });
    cell.succeed_all();
    let generation = |cell: &Cell| cell.record("base").metadata.generation;
    assert_eq!(generation(&cell), 1);
    let never = |pin: bool| {
        move |spec: &mut JobSpec| {
            spec.completion_policy.kind = crate::domain::job::CompletionType::Never;
            spec.pin = pin;
        }
    };
    cell.submit("base", never(true));
    assert_eq!(generation(&cell), 2);
    assert_eq!(cell.active("base").len(), 1);
    cell.submit("base", never(false));
    assert_eq!(generation(&cell), 2);
}
