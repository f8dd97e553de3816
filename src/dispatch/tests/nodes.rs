//! Nodes that join late, leave, return, and change.

use std::time::Duration;

use super::cell::{Cell, image, node};
use crate::dispatch::Input;
use crate::dispatch::nodes::FORGOTTEN_AFTER;
use crate::domain::failure::FailureKind;
use crate::domain::job::{Amount, CompletionType};
use crate::domain::selector::NodeSelector;
use crate::domain::status::Outcome;
use crate::wire::event::NodeEventKind::{Joined, Left};
use crate::wire::record::NodePresence;
use crate::wire::worker::GONE_AFTER_SECONDS;

fn of_pool(pool: &str) -> NodeSelector {
    NodeSelector {
        match_labels: [("pool".to_owned(), pool.to_owned())].into(),
        ..NodeSelector::default()
    }
}

#[test]
fn a_node_that_registers_is_kept_and_told() {
    let mut cell = Cell::new();
    cell.join("a");
    assert_eq!(cell.nodes[&node("a")].presence, NodePresence::Present);
    assert_eq!(cell.node_events, [(node("a"), Joined)]);
    assert_eq!(cell.welcomed, [(node("a"), false, 1)]);
    cell.register("a", false);
    assert_eq!(cell.node_events.len(), 1, "once");
}

#[test]
fn a_node_that_joins_an_unfinished_job_gets_its_images_at_once() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.join("b");
    assert_eq!(cell.active("base"), ["a/library/app", "b/library/app"]);
    assert_eq!(cell.counts("base").desired, 2);
}

#[test]
fn a_node_that_joins_after_the_end_gets_nothing() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.succeed_all();
    cell.join("b");
    assert!(cell.tasks.is_empty());
    assert_eq!(cell.counts("base").desired, 1);
}

#[test]
fn a_node_that_joins_gets_the_images_of_never_jobs_at_any_time() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    cell.succeed_all();
    cell.advance(1_000);
    cell.join("b");
    assert_eq!(cell.active("warm"), ["b/library/app"]);
    cell.succeed_all();
    assert_eq!(cell.counts("warm").succeeded, 2);
    assert!(
        cell.tasks.is_empty(),
        "its message is removed although the round had ended"
    );
}

#[test]
fn only_matching_nodes_are_given_work() {
    let mut cell = Cell::new();
    cell.join_with("a", &[("pool", "x")], 3);
    cell.join_with("b", &[("pool", "y")], 3);
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    assert_eq!(cell.active("base"), ["a/library/app"]);
}

#[test]
fn a_node_that_leaves_gives_its_slots_back_at_once() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    assert_eq!(cell.active("base"), ["a/library/app"]);
    cell.leave("a");
    assert_eq!(cell.node_events.last(), Some(&(node("a"), Left)));
    assert_eq!(cell.nodes[&node("a")].presence, NodePresence::Absent);
    assert_eq!(cell.active("base"), ["b/library/app"]);
    assert!(
        cell.tasks.keys().all(|key| key.node == node("b")),
        "its tasks are withdrawn"
    );
}

#[test]
fn a_node_that_returns_is_given_its_tasks_again() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.leave("a");
    assert_eq!(cell.active("base"), ["b/library/app"]);
    cell.join("a");
    assert_eq!(cell.active("base").len(), 2);
    assert_eq!(cell.node_events.last(), Some(&(node("a"), Joined)));
}

#[test]
fn a_node_that_was_only_silent_is_back_with_its_next_heartbeat() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.leave("a");
    cell.heartbeat(&node("a"), Vec::new());
    assert_eq!(cell.nodes[&node("a")].presence, NodePresence::Present);
    assert_eq!(cell.active("base").len(), 2);
}

#[test]
fn a_node_that_waits_gets_nothing_new_and_goes_on_with_what_it_has() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    assert_eq!(cell.active("base").len(), 2);
    cell.hold("a", Some("cordoned"));
    assert_eq!(cell.active("base").len(), 2, "as pods on a cordoned node");
    cell.submit("more", |_| {});
    assert_eq!(cell.active("more"), ["b/library/app"]);
    cell.succeed("base", "a", "app:1");
    cell.succeed("base", "b", "app:1");
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
    cell.succeed("more", "b", "app:1");
    assert_eq!(cell.record("more").status.outcome, None, "it waits");
    cell.advance(600);
    assert_eq!(cell.record("more").status.outcome, None, "it is not absent");
    cell.hold("a", None);
    assert_eq!(cell.active("more"), ["a/library/app"]);
    cell.succeed("more", "a", "app:1");
    assert_eq!(cell.record("more").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn a_node_that_waits_is_given_up_when_it_is_gone_as_any_other() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.hold("a", Some("cordoned"));
    cell.submit("base", |_| {});
    cell.succeed("base", "b", "app:1");
    cell.leave("a");
    cell.advance(300);
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!(status.failures[0].kind, FailureKind::NodeAbsent);
}

#[test]
fn a_result_from_a_node_that_seems_gone_counts() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.leave("a");
    cell.succeed("base", "a", "app:1");
    cell.succeed("base", "b", "app:1");
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn heartbeats_keep_a_node() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.advance(3_600);
    assert_eq!(cell.node_events, [(node("a"), Joined)]);
}

#[test]
fn nobody_is_gone_because_the_dispatcher_could_not_listen() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    let since = cell.now;
    cell.now = since.after(Duration::from_secs(10 * GONE_AFTER_SECONDS));
    cell.tell(Input::Stalled { since });
    assert_eq!(cell.active("base").len(), 2, "both may have spoken");
    cell.leave("a");
    assert_eq!(cell.node_events.last(), Some(&(node("a"), Left)));
    assert_eq!(cell.active("base"), ["b/library/app"]);
}

#[test]
fn a_job_gives_up_absent_nodes_after_its_patience() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.absent_after_seconds = 60);
    cell.leave("b");
    cell.succeed("base", "a", "app:1");
    cell.advance(55);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.advance(10);
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!((status.counts.succeeded, status.counts.failed), (1, 1));
    assert_eq!(status.failures[0].kind, FailureKind::NodeAbsent);
    assert_eq!(status.failures[0].nodes, [node("b")]);
}

#[test]
fn absent_nodes_do_not_end_a_job_while_others_work() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.absent_after_seconds = 60);
    cell.leave("b");
    cell.advance(600);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.join("b");
    cell.succeed_all();
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn patience_counts_from_when_the_last_node_left() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.absent_after_seconds = 60);
    cell.leave("a");
    cell.advance(50);
    cell.leave("b");
    cell.advance(50);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.advance(10);
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Failed));
}

#[test]
fn never_waits_for_nodes_and_for_absent_ones() {
    let mut cell = Cell::new();
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    cell.advance(600);
    assert!(!cell.record("warm").status.phase.is_finished());
    cell.join("a");
    cell.leave("a");
    cell.advance(600);
    assert!(!cell.record("warm").status.phase.is_finished());
    cell.join("a");
    assert_eq!(cell.active("warm"), ["a/library/app"]);
}

#[test]
fn a_node_relabelled_into_a_job_gets_its_images() {
    let mut cell = Cell::new();
    cell.join_with("a", &[("pool", "x")], 3);
    cell.join_with("b", &[("pool", "y")], 3);
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    cell.join_with("b", &[("pool", "x")], 3);
    assert_eq!(cell.active("base"), ["a/library/app", "b/library/app"]);
}

#[test]
fn a_node_relabelled_out_of_a_job_is_withdrawn_revoked_and_not_counted() {
    let mut cell = Cell::new();
    cell.join_with("a", &[("pool", "x")], 3);
    cell.join_with("b", &[("pool", "x")], 3);
    cell.submit("base", |spec| {
        spec.selector = of_pool("x");
        spec.parallelism = Amount::Count(1);
    });
    cell.join_with("a", &[("pool", "y")], 3);
    assert_eq!(cell.active("base"), ["b/library/app"], "its slot is free");
    assert_eq!(cell.counts("base").desired, 1);
    assert_eq!(cell.revoked.len(), 1);
    assert_eq!(cell.revoked[0].0, node("a"));
    assert_eq!(cell.tasks.len(), 1);
}

#[test]
fn a_node_relabelled_out_of_two_jobs_is_given_nothing_of_either() {
    let mut cell = Cell::new();
    cell.join_with("a", &[("pool", "x")], 1);
    for name in ["one", "two"] {
        cell.submit(name, |spec| {
            spec.selector = of_pool("x");
            spec.images = ["p:1", "q:1", "r:1"].map(image).into();
        });
    }
    let before = cell.releases();
    cell.join_with("a", &[("pool", "y")], 1);
    assert_eq!(cell.releases(), before);
}

#[test]
fn the_last_node_relabelled_out_ends_the_job() {
    let mut cell = Cell::new();
    cell.join_with("a", &[("pool", "x")], 3);
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    cell.join_with("a", &[("pool", "y")], 3);
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::Succeeded));
    assert_eq!(status.counts.desired, 0);
}

#[test]
fn a_node_relabelled_out_takes_its_failures_along() {
    let mut cell = Cell::new();
    for on in ["a", "b", "c"] {
        cell.join_with(on, &[("pool", "x")], 3);
    }
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    cell.fail("base", "a", "app:1", FailureKind::ImageNotFound);
    cell.succeed("base", "b", "app:1");
    cell.join_with("a", &[("pool", "y")], 3);
    cell.join_with("b", &[("pool", "y")], 3);
    let status = cell.record("base").status;
    assert_eq!(status.failures, []);
    assert_eq!((status.counts.failed, status.nodes.failed), (0, 0));
    cell.assert_rebuilds();
}

#[test]
fn a_pull_that_ended_stays_ended_when_its_node_leaves_the_job_and_returns() {
    let mut cell = Cell::new();
    for on in ["a", "b", "c"] {
        cell.join_with(on, &[("pool", "x")], 3);
    }
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    cell.succeed("base", "a", "app:1");
    cell.fail("base", "b", "app:1", FailureKind::ImageNotFound);
    for pool in ["y", "x"] {
        cell.join_with("a", &[("pool", pool)], 3);
        cell.join_with("b", &[("pool", pool)], 3);
        cell.assert_rebuilds();
    }
    assert_eq!(cell.active("base"), ["c/library/app"]);
    let status = cell.record("base").status;
    assert_eq!((status.counts.succeeded, status.counts.failed), (1, 1));
    assert_eq!(status.failures[0].nodes, [node("b")]);
    assert_eq!(status.bytes_registry, 100);
}

#[test]
fn a_result_told_while_the_node_was_out_of_the_job_counts_when_it_is_back() {
    let mut cell = Cell::new();
    for on in ["a", "b"] {
        cell.join_with(on, &[("pool", "x")], 3);
    }
    cell.submit("base", |spec| spec.selector = of_pool("x"));
    let result = cell.success("base", "a", "app:1");
    cell.join_with("a", &[("pool", "y")], 3);
    cell.tell_event(result);
    cell.join_with("a", &[("pool", "x")], 3);
    assert_eq!(cell.active("base"), ["b/library/app"]);
    assert_eq!(cell.counts("base").succeeded, 1);
    cell.assert_rebuilds();
}

#[test]
fn a_node_gone_for_a_day_is_forgotten() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    cell.succeed("warm", "a", "app:1");
    cell.leave("b");
    assert_eq!(cell.counts("warm").desired, 2);
    cell.advance(FORGOTTEN_AFTER.as_secs() + 60);
    assert!(!cell.nodes.contains_key(&node("b")));
    assert_eq!(cell.counts("warm").desired, 1);
    cell.join("b");
    assert_eq!(cell.counts("warm").desired, 2);
}

#[test]
fn a_node_that_a_job_counts_on_is_not_forgotten_before_the_job_has_ended() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| {
        spec.images = ["x:1", "y:1"].map(image).into()
    });
    cell.succeed("base", "a", "x:1");
    cell.succeed("base", "a", "y:1");
    cell.fail("base", "b", "x:1", FailureKind::ImageNotFound);
    cell.pause("base", crate::dispatch::Pause::Pause);
    cell.leave("b");
    cell.advance(3 * FORGOTTEN_AFTER.as_secs());
    let counts = cell.counts("base");
    assert_eq!((counts.desired, counts.failed), (4, 1));
    cell.pause("base", crate::dispatch::Pause::Resume);
    cell.advance(1_000);
    let status = cell.record("base").status;
    assert_eq!(status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!((status.counts.failed, status.nodes.failed), (2, 1));
    cell.advance(4_000);
    assert!(!cell.nodes.contains_key(&node("b")));
}

#[test]
fn a_consumer_made_anew_begins_at_the_oldest_unfinished_pull() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| {
        spec.images = ["x:1", "y:1", "z:1"].map(image).into();
    });
    cell.succeed("base", "a", "x:1");
    cell.register("a", true);
    assert_eq!(cell.welcomed.last(), Some(&(node("a"), true, 2)));
    cell.succeed("base", "a", "y:1");
    cell.succeed("base", "a", "z:1");
    cell.register("a", true);
    assert_eq!(cell.welcomed.last(), Some(&(node("a"), true, 4)));
}

#[test]
fn a_consumer_made_anew_skips_nothing_that_is_on_its_way_to_the_broker() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("first", |_| {});
    cell.succeed("first", "a", "app:1");
    cell.confirms = false;
    cell.submit("base", |_| {});
    cell.register("a", true);
    let (stored, _) = cell.tasks.values().next().expect("a task");
    let (_, _, start) = cell.welcomed.last().expect("a consumer");
    assert!(
        start <= stored,
        "starts at {start}, the task is at {stored}"
    );
    cell.confirm_releases();
    cell.register("a", true);
    assert_eq!(
        cell.welcomed.last(),
        Some(&(
            node("a"),
            true,
            *cell
                .tasks
                .values()
                .next()
                .map(|(stored, _)| stored)
                .unwrap()
        ))
    );
}

#[test]
fn a_capacity_out_of_bounds_is_brought_into_them() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 0);
    cell.join_with("b", &[], 1_000_000);
    assert_eq!(cell.nodes[&node("a")].facts.capacity, 1);
    assert_eq!(cell.nodes[&node("b")].facts.capacity, 64);
}

#[test]
fn an_unknown_node_that_only_beats_is_nobody() {
    let mut cell = Cell::new();
    cell.heartbeat(&node("ghost"), Vec::new());
    assert!(cell.nodes.is_empty() && cell.node_events.is_empty());
}
