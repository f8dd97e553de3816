//! How jobs end other than by themselves: deadline, too many failures; and what follows, the TTL.

use super::cell::{Cell, image, node};
use crate::domain::failure::FailureKind;
use crate::domain::job::{Amount, FailurePolicy};
use crate::domain::status::{JobPhase, Outcome};
use crate::wire::event::JobEventKind::{Completed, Deleted};
use crate::wire::event::PullState;

const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn with_deadline() -> Cell {
    let mut cell = Cell::of_nodes(&["a", "b", "c"]);
    cell.submit("base", |spec| {
        spec.parallelism = Amount::Count(1);
        spec.completion_policy.active_deadline_seconds = Some(60);
    });
    cell
}

#[test]
fn a_deadline_ends_the_job_and_fails_what_is_left() {
    let mut cell = with_deadline();
    cell.succeed("base", "a", "app:1");
    cell.advance(59);
    assert_eq!(cell.record("base").status.phase, JobPhase::Running);
    cell.advance(2);
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::DeadlineExceeded));
    assert_eq!((status.counts.succeeded, status.counts.failed), (1, 2));
    let [group] = &status.failures[..] else {
        panic!("one group expected: {:?}", status.failures);
    };
    assert_eq!(
        (group.kind, group.pulls),
        (FailureKind::DeadlineExceeded, 2)
    );
    assert_eq!(cell.kinds("base").last(), Some(&Completed));
}

#[test]
fn every_pull_that_the_dispatcher_gives_up_is_told() {
    let mut cell = with_deadline();
    let mut event = cell.event("base", "a", "app:1", PullState::Retrying);
    event.attempt = 2;
    cell.tell_event(event);
    cell.advance(61);
    let told: Vec<_> = cell.events[1..]
        .iter()
        .map(|(_, event)| {
            let kind = event.failure.as_ref().map(|failure| failure.kind);
            (event.node.clone(), event.state, event.attempt, kind)
        })
        .collect();
    let kind = Some(FailureKind::DeadlineExceeded);
    let failed = |on, attempt| (node(on), PullState::Failed, attempt, kind);
    assert_eq!(told, [failed("a", 2), failed("b", 0), failed("c", 0)]);
}

#[test]
fn whoever_takes_over_between_the_pulls_and_the_record_ends_the_job_alike() {
    let mut cell = with_deadline();
    let mut now = cell.now;
    let mut effects = Vec::new();
    while effects.is_empty() {
        now = now.after(std::time::Duration::from_secs(1));
        let mut dispatcher = cell.dispatcher.clone();
        dispatcher.handle(now, crate::dispatch::Input::Tick, &mut effects);
        effects.retain(|effect| matches!(effect, crate::dispatch::Effect::TellPull { .. }));
    }
    for effect in effects {
        // Of which the dispatcher that told them does not learn any more.
        let _ = cell.perform(effect);
    }
    cell.take_over();
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::DeadlineExceeded));
    assert_eq!((status.counts.succeeded, status.counts.failed), (0, 3));
}

#[test]
fn a_deadline_withdraws_what_waits_and_stops_what_runs() {
    let mut cell = with_deadline();
    cell.advance(61);
    assert!(cell.tasks.is_empty());
    let revoked: Vec<_> = cell.revoked.iter().map(|(on, _)| on.clone()).collect();
    assert_eq!(revoked, [node("a")]);
}

#[test]
fn a_deadline_passes_while_the_job_is_paused_too() {
    let mut cell = with_deadline();
    cell.pause("base", crate::dispatch::Pause::Pause);
    cell.advance(61);
    assert_eq!(
        cell.record("base").status.outcome,
        Some(Outcome::DeadlineExceeded)
    );
}

#[test]
fn a_job_that_ended_in_time_does_not_end_again() {
    let mut cell = with_deadline();
    cell.succeed_all();
    cell.advance(120);
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
    let completed = cell
        .kinds("base")
        .iter()
        .filter(|kind| **kind == Completed)
        .count();
    assert_eq!(completed, 1);
}

#[test]
fn a_finished_job_is_forgotten_after_its_ttl() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| {
        spec.completion_policy.ttl_seconds_after_finished = Some(300);
    });
    cell.succeed_all();
    cell.advance(299);
    assert_eq!(cell.records.len(), 1);
    cell.advance(2);
    assert!(cell.records.is_empty());
    assert_eq!(cell.kinds("base").last(), Some(&Deleted));
}

#[test]
fn a_job_that_runs_again_before_its_ttl_is_kept() {
    let mut cell = Cell::of_nodes(&["a"]);
    let ttl = |spec: &mut crate::domain::job::JobSpec| {
        spec.completion_policy.ttl_seconds_after_finished = Some(300);
    };
    cell.submit("base", ttl);
    cell.succeed_all();
    cell.advance(200);
    cell.submit("base", ttl);
    cell.advance(200);
    cell.succeed_all();
    cell.advance(299);
    assert_eq!(cell.records.len(), 1, "it counts from the last end");
    cell.advance(2);
    assert!(cell.records.is_empty());
}

#[test]
fn without_a_ttl_a_finished_job_is_kept() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.succeed_all();
    cell.advance(100_000);
    assert_eq!(cell.records.len(), 1);
}

#[test]
fn a_job_gives_up_once_more_nodes_failed_than_allowed() {
    for (allowed, failures) in [
        (Amount::Count(0), 1),
        (Amount::Count(2), 3),
        (Amount::Percent(10), 1),
        (Amount::Percent(20), 2),
        (Amount::Percent(0), 1),
    ] {
        let mut cell = Cell::of_nodes(&NODES);
        cell.submit("base", |spec| {
            spec.failure_policy = Some(FailurePolicy {
                max_failed: allowed,
            });
            spec.parallelism = Amount::Count(4);
        });
        for on in &NODES[..failures - 1] {
            cell.fail("base", on, "app:1", FailureKind::ImageNotFound);
        }
        assert!(!cell.record("base").status.phase.is_finished(), "{allowed}");
        cell.fail(
            "base",
            NODES[failures - 1],
            "app:1",
            FailureKind::ImageNotFound,
        );
        let status = cell.record("base").status;
        assert_eq!(status.outcome, Some(Outcome::Failed), "{allowed}");
        assert_eq!(status.counts.failed as usize, failures);
        assert_eq!(status.counts.cancelled as usize, NODES.len() - failures);
        assert!(cell.tasks.is_empty());
        assert_eq!(cell.revoked.len(), (NODES.len() - failures).min(3));
    }
}

#[test]
fn nodes_that_are_given_up_count_for_the_failure_policy() {
    for (allowed, outcome) in [(0, Outcome::Failed), (1, Outcome::PartiallyFailed)] {
        let mut cell = Cell::of_nodes(&NODES);
        cell.submit("base", |spec| {
            spec.failure_policy = Some(FailurePolicy {
                max_failed: Amount::Count(allowed),
            });
        });
        for on in &NODES[1..] {
            cell.succeed("base", on, "app:1");
        }
        cell.leave(NODES[0]);
        cell.advance(200);
        assert_eq!(cell.record("base").status.outcome, Some(outcome));
    }
}

#[test]
fn a_node_with_two_failed_images_has_failed_once() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| {
        spec.images = ["x:1", "y:1"].map(image).into();
        spec.failure_policy = Some(FailurePolicy {
            max_failed: Amount::Count(1),
        });
    });
    cell.fail("base", "a", "x:1", FailureKind::ImageNotFound);
    cell.fail("base", "a", "y:1", FailureKind::ImageNotFound);
    assert!(!cell.record("base").status.phase.is_finished());
}
