//! Jobs that never end: rounds, their interval and its jitter.

use super::cell::{Cell, node};
use crate::dispatch::Pause;
use crate::domain::failure::FailureKind;
use crate::domain::job::{CompletionType, JobSpec};
use crate::domain::status::JobPhase;
use crate::wire::event::JobEventKind::{Accepted, RoundCompleted, Started};

fn hourly(spec: &mut JobSpec) {
    spec.completion_policy.kind = CompletionType::Never;
    spec.completion_policy.repeat_seconds = Some(3_600);
}

#[test]
fn a_round_completes_once_and_the_job_is_idle() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("warm", hourly);
    cell.succeed("warm", "a", "app:1");
    assert_eq!(cell.record("warm").status.phase, JobPhase::Running);
    cell.fail("warm", "b", "app:1", FailureKind::ImageNotFound);
    assert_eq!(cell.record("warm").status.phase, JobPhase::Idle);
    assert_eq!(cell.kinds("warm"), [Accepted, Started, RoundCompleted]);
    assert!(cell.tasks.is_empty(), "the tasks of the round are removed");
}

#[test]
fn every_round_comes_within_five_percent_of_the_interval() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    let mut intervals = Vec::new();
    for round in 1..=20 {
        let began = cell.record("warm").status.round_started_at.unwrap();
        cell.succeed_all();
        while cell.record("warm").status.round == round {
            cell.advance(1);
        }
        let next = cell.record("warm").status.round_started_at.unwrap();
        intervals.push(next.since(began).as_secs());
    }
    assert!(
        intervals.iter().all(|i| (3_420..=3_781).contains(i)),
        "{intervals:?}"
    );
    intervals.sort_unstable();
    intervals.dedup();
    assert!(intervals.len() > 10, "no jitter: {intervals:?}");
}

#[test]
fn two_dispatchers_agree_on_when_the_next_round_is_due() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.succeed_all();
    let mut before = cell.dispatcher.clone();
    cell.take_over();
    // What is written of the round that ended is written.
    cell.advance(5);
    before.handle(cell.now, crate::dispatch::Input::Tick, &mut Vec::new());
    let due = |dispatcher: &mut crate::dispatch::state::Dispatcher| {
        let mut now = cell.now;
        let mut effects = Vec::new();
        while effects.is_empty() {
            now = now.after(std::time::Duration::from_secs(1));
            let heartbeat = crate::wire::worker::Heartbeat::default();
            let node = node("a");
            let input = crate::dispatch::Input::Heartbeat { node, heartbeat };
            dispatcher.handle(now, input, &mut effects);
        }
        now
    };
    let after = due(&mut cell.dispatcher.clone());
    assert_eq!(due(&mut before), after);
}

#[test]
fn a_round_asks_the_registry_again_and_starts_from_nothing() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.succeed_all();
    cell.resolves = false;
    cell.advance(4_000);
    let status = cell.record("warm").status;
    assert_eq!((status.round, status.phase), (2, JobPhase::Resolving));
    assert_eq!((status.counts.pending, status.counts.succeeded), (1, 0));
    cell.resolve();
    assert_eq!(cell.active("warm"), ["a/library/app"]);
    cell.succeed_all();
    let kinds = [Accepted, Started, RoundCompleted, RoundCompleted];
    assert_eq!(cell.kinds("warm"), kinds);
}

#[test]
fn a_round_that_takes_longer_than_the_interval_is_followed_by_the_next() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.advance(8_000);
    assert_eq!(
        cell.record("warm").status.round,
        1,
        "no round overtakes another"
    );
    cell.succeed("warm", "a", "app:1");
    assert_eq!(cell.record("warm").status.round, 2);
}

#[test]
fn a_failed_pull_is_tried_again_in_the_next_round() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.fail("warm", "a", "app:1", FailureKind::ImageNotFound);
    cell.advance(4_000);
    cell.succeed("warm", "a", "app:1");
    let status = cell.record("warm").status;
    assert_eq!((status.counts.failed, status.counts.succeeded), (0, 1));
    assert_eq!(status.failures, []);
}

#[test]
fn a_paused_job_begins_no_round_and_resuming_begins_the_one_that_is_due() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.succeed_all();
    cell.pause("warm", Pause::Pause);
    cell.advance(10_000);
    assert_eq!(cell.record("warm").status.round, 1);
    cell.pause("warm", Pause::Resume);
    assert_eq!(cell.record("warm").status.round, 2);
}

#[test]
fn an_edited_interval_counts_from_the_round_that_began() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.succeed_all();
    cell.advance(600);
    cell.submit("warm", |spec| {
        hourly(spec);
        spec.completion_policy.repeat_seconds = Some(60);
    });
    assert_eq!(cell.record("warm").status.round, 2);
}

#[test]
fn a_round_that_is_due_begins_when_its_nodes_have_left() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", hourly);
    cell.advance(8_000);
    cell.leave("a");
    assert_eq!(cell.record("warm").status.round, 2);
    cell.assert_rebuilds();
}

#[test]
fn rounds_go_on_while_there_are_no_nodes() {
    let mut cell = Cell::new();
    cell.submit("warm", hourly);
    cell.advance(20_000);
    cell.join("a");
    assert_eq!(cell.active("warm"), ["a/library/app"]);
    cell.succeed_all();
    assert_eq!(cell.kinds("warm").last(), Some(&RoundCompleted));
}

#[test]
fn a_node_that_is_held_for_days_keeps_nobody_else_from_the_next_round() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.hold("b", Some("cordoned"));
    cell.submit("warm", hourly);
    cell.succeed("warm", "a", "app:1");
    let status = cell.record("warm").status;
    assert_eq!(status.phase, JobPhase::Idle, "{}", status.message);
    assert!(
        status.message.contains("1 wait for held nodes"),
        "{}",
        status.message
    );
    cell.advance(4_000);
    assert_eq!(cell.record("warm").status.round, 2);
    // Held in mid-round, with a pull that was released before.
    cell.hold("b", None);
    assert_eq!(cell.active("warm").len(), 2);
    cell.hold("a", Some("cordoned"));
    cell.succeed("warm", "a", "app:1");
    cell.succeed("warm", "b", "app:1");
    assert_eq!(cell.record("warm").status.phase, JobPhase::Idle);
    cell.advance(4_000);
    assert_eq!(cell.record("warm").status.round, 3);
    assert_eq!(cell.active("warm"), ["b/library/app"]);
    cell.hold("a", None);
    cell.succeed_all();
    assert_eq!(cell.record("warm").status.counts.succeeded, 2);
}

#[test]
fn a_job_that_ends_waits_for_a_node_that_is_held() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.hold("b", Some("cordoned"));
    cell.submit("base", |_| {});
    cell.succeed("base", "a", "app:1");
    cell.advance(100_000);
    assert_eq!(cell.record("base").status.phase, JobPhase::Running);
    cell.take_over();
    cell.hold("b", None);
    cell.succeed_all();
    assert!(cell.record("base").status.phase.is_finished());
}
