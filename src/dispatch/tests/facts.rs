//! What workers tell: which facts count, how failures are grouped, what is revoked.

use super::cell::{Cell, image, job, node};
use crate::domain::failure::FailureKind;
use crate::domain::name::NodeName;
use crate::wire::event::{MAX_NODES_PER_GROUP, PullState};
use crate::wire::task::Run;
use crate::wire::worker::PullId;

#[test]
fn the_first_terminal_fact_of_a_pull_is_the_truth() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    let second = cell.failure("base", "a", "app:1", FailureKind::ImageNotFound);
    cell.succeed("base", "a", "app:1");
    cell.tell_event(second);
    let counts = cell.counts("base");
    assert_eq!((counts.succeeded, counts.failed), (1, 0));
    assert_eq!(cell.record("base").status.bytes_registry, 100);
    cell.succeed("base", "a", "app:1");
    assert_eq!(
        cell.record("base").status.bytes_registry,
        100,
        "counted once"
    );
    cell.assert_rebuilds();
}

#[test]
fn facts_of_other_runs_jobs_nodes_and_images_are_ignored() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| spec.images.push(image("side:1")));
    let real = cell.success("base", "a", "app:1");
    let mut others = vec![real.clone(); 6];
    others[0].run.uid = "another".to_owned();
    others[1].run.generation = 2;
    others[2].run.round = 2;
    others[3].job = job("other");
    others[4].node = node("z");
    others[5].image = image("unknown:1");
    let before = cell.dispatcher.view();
    for other in others {
        cell.tell_event(other);
    }
    assert_eq!(cell.dispatcher.view(), before);
    cell.tell_event(real);
    assert_eq!(cell.counts("base").succeeded, 1);
}

#[test]
fn facts_that_are_not_the_end_change_no_count() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let before = cell.dispatcher.view();
    for state in [PullState::Started, PullState::Retrying] {
        let mut event = cell.success("base", "a", "app:1");
        event.state = state;
        cell.tell_event(event);
    }
    assert_eq!(cell.dispatcher.view(), before, "backing off keeps the slot");
}

#[test]
fn failures_are_grouped_by_kind_with_their_nodes_in_order() {
    let mut cell = Cell::of_nodes(&["c", "b", "a", "d"]);
    cell.submit("base", |spec| spec.images.push(image("side:1")));
    cell.fail("base", "c", "app:1", FailureKind::ImageNotFound);
    cell.fail("base", "a", "app:1", FailureKind::ImageNotFound);
    cell.fail("base", "a", "side:1", FailureKind::ImageNotFound);
    cell.fail("base", "b", "app:1", FailureKind::Timeout);
    let groups = cell.record("base").status.failures;
    let of = |kind| groups.iter().find(|group| group.kind == kind).unwrap();
    let not_found = of(FailureKind::ImageNotFound);
    assert_eq!(
        (not_found.pulls, &not_found.nodes[..]),
        (3, &[node("a"), node("c")][..])
    );
    assert_eq!(not_found.message, "ImageNotFound on c");
    assert_eq!(of(FailureKind::Timeout).nodes, [node("b")]);
    cell.assert_rebuilds();
}

#[test]
fn a_group_lists_so_many_nodes_and_counts_them_all() {
    let mut cell = Cell::new();
    let names: Vec<String> = (0..MAX_NODES_PER_GROUP + 10)
        .map(|n| format!("n{n:03}"))
        .collect();
    for name in &names {
        cell.join(name);
    }
    cell.submit("base", |spec| {
        spec.parallelism = crate::domain::job::Amount::Count(1_000);
    });
    for name in names.iter().skip(1) {
        cell.fail("base", name, "app:1", FailureKind::ImageNotFound);
    }
    let groups = cell.record("base").status.failures;
    assert_eq!(groups[0].pulls as usize, names.len() - 1);
    assert_eq!(groups[0].nodes.len(), MAX_NODES_PER_GROUP);
    cell.assert_rebuilds();
}

fn held(cell: &Cell, run: impl FnOnce(&mut Run)) -> Vec<PullId> {
    let mut pull = PullId {
        job: job("base"),
        run: cell.record("base").run(),
        image: image("app:1").token(),
    };
    run(&mut pull.run);
    vec![pull]
}

fn revoked_by_heartbeat(cell: &mut Cell, on: &NodeName, held: Vec<PullId>) -> usize {
    let before = cell.revoked.len();
    cell.heartbeat(on, held);
    cell.revoked.len() - before
}

#[test]
fn a_heartbeat_that_names_what_is_wanted_revokes_nothing() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    let same = held(&cell, |_| {});
    assert_eq!(revoked_by_heartbeat(&mut cell, &node("a"), same.clone()), 0);
    cell.succeed("base", "a", "app:1");
    assert_eq!(
        revoked_by_heartbeat(&mut cell, &node("a"), same),
        0,
        "it may be about to answer"
    );
}

#[test]
fn a_heartbeat_that_names_what_nobody_wants_revokes_it() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| {
        spec.parallelism = crate::domain::job::Amount::Count(1)
    });
    let other_round = held(&cell, |run| run.round = 7);
    let other_uid = held(&cell, |run| run.uid = "other".to_owned());
    let same = held(&cell, |_| {});
    assert_eq!(revoked_by_heartbeat(&mut cell, &node("a"), other_round), 1);
    assert_eq!(revoked_by_heartbeat(&mut cell, &node("a"), other_uid), 1);
    assert_eq!(
        revoked_by_heartbeat(&mut cell, &node("b"), same.clone()),
        1,
        "not released to it"
    );
    cell.cancel("base");
    assert_eq!(revoked_by_heartbeat(&mut cell, &node("a"), same.clone()), 1);
    cell.delete("base");
    assert_eq!(revoked_by_heartbeat(&mut cell, &node("a"), same), 1);
}
