//! Edits of a running job's policies and nodes: they apply at once.

use super::cell::{Cell, node};
use crate::domain::failure::FailureKind;
use crate::domain::job::{Amount, FailurePolicy, JobSpec};
use crate::domain::selector::{NodeSelector, Operator, Requirement};
use crate::domain::status::Outcome;
use crate::wire::event::JobEventKind::Deleted;

fn max_failed(allowed: u32) -> impl Fn(&mut JobSpec) {
    move |spec| {
        spec.parallelism = Amount::Count(2);
        spec.failure_policy = Some(FailurePolicy {
            max_failed: Amount::Count(allowed),
        });
    }
}

#[test]
fn a_failure_policy_that_is_exceeded_already_ends_the_job_at_once() {
    let mut cell = Cell::of_nodes(&["a", "b", "c", "d"]);
    cell.submit("base", max_failed(2));
    cell.fail("base", "a", "app:1", FailureKind::ImageNotFound);
    cell.fail("base", "b", "app:1", FailureKind::ImageNotFound);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.submit("base", max_failed(1));
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::Failed));
    assert_eq!((status.counts.failed, status.counts.cancelled), (2, 2));
    assert!(cell.tasks.is_empty());
}

#[test]
fn a_failure_policy_that_allows_more_keeps_the_job_going() {
    let mut cell = Cell::of_nodes(&["a", "b", "c", "d"]);
    cell.submit("base", max_failed(0));
    cell.submit("base", max_failed(1));
    cell.fail("base", "a", "app:1", FailureKind::ImageNotFound);
    assert!(!cell.record("base").status.phase.is_finished());
    // Taken away, it allows any number.
    cell.submit("base", |_| {});
    cell.fail("base", "b", "app:1", FailureKind::ImageNotFound);
    cell.fail("base", "c", "app:1", FailureKind::ImageNotFound);
    assert!(!cell.record("base").status.phase.is_finished());
}

fn patience(seconds: u32) -> impl Fn(&mut JobSpec) {
    move |spec| spec.absent_after_seconds = seconds
}

#[test]
fn less_patience_with_absent_nodes_applies_at_once() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", patience(3_600));
    cell.leave("b");
    cell.succeed("base", "a", "app:1");
    cell.advance(100);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.submit("base", patience(50));
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!(status.failures[0].kind, FailureKind::NodeAbsent);
    assert!(status.failures[0].message.contains("more than 50 s"));
}

#[test]
fn more_patience_with_absent_nodes_applies_at_once() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", patience(60));
    cell.leave("b");
    cell.succeed("base", "a", "app:1");
    cell.advance(30);
    cell.submit("base", patience(300));
    cell.advance(200);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.advance(100);
    assert!(cell.record("base").status.phase.is_finished());
}

fn ttl(seconds: Option<u32>) -> impl Fn(&mut JobSpec) {
    move |spec| spec.completion_policy.ttl_seconds_after_finished = seconds
}

#[test]
fn an_edited_time_to_live_is_the_one_that_counts_when_the_job_has_ended() {
    for (before, after, kept) in [
        (None, Some(100), 100),
        (Some(1_000), Some(100), 100),
        (Some(100), Some(1_000), 1_000),
    ] {
        let mut cell = Cell::of_nodes(&["a"]);
        cell.submit("base", ttl(before));
        cell.submit("base", ttl(after));
        cell.succeed_all();
        cell.advance(kept - 1);
        assert_eq!(cell.records.len(), 1, "{before:?} to {after:?}");
        cell.advance(2);
        assert!(cell.records.is_empty(), "{before:?} to {after:?}");
        assert_eq!(cell.kinds("base").last(), Some(&Deleted));
    }
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", ttl(Some(100)));
    cell.submit("base", ttl(None));
    cell.succeed_all();
    cell.advance(100_000);
    assert_eq!(cell.records.len(), 1, "kept, as the edit says");
}

#[test]
fn an_edited_selector_takes_nodes_in_and_lets_others_go_at_once() {
    let mut cell = Cell::new();
    for (name, pool) in [("a", "x"), ("b", "y"), ("c", "y")] {
        cell.join_with(name, &[("pool", pool)], 3);
    }
    let pools = |operator, pools: &[&str]| {
        let requirement = Requirement {
            key: "pool".to_owned(),
            operator,
            values: pools.iter().map(|pool| (*pool).to_owned()).collect(),
        };
        move |spec: &mut JobSpec| {
            spec.selector = NodeSelector {
                match_expressions: vec![requirement],
                ..NodeSelector::default()
            };
        }
    };
    cell.submit("base", pools(Operator::In, &["x"]));
    assert_eq!(cell.active("base"), ["a/library/app"]);
    cell.succeed("base", "a", "app:1");
    // It ended; with other nodes it runs again.
    cell.submit("base", pools(Operator::In, &["x", "y"]));
    assert_eq!(cell.active("base").len(), 3);
    cell.submit("base", pools(Operator::NotIn, &["y"]));
    assert_eq!(cell.active("base"), ["a/library/app"]);
    assert_eq!(cell.tasks.len(), 1, "those of the others are withdrawn");
    let mut revoked: Vec<_> = cell.revoked.iter().map(|(on, _)| on.clone()).collect();
    revoked.sort();
    assert_eq!(revoked, [node("b"), node("c")]);
    assert_eq!(cell.counts("base").desired, 1);
    cell.assert_rebuilds();
}
