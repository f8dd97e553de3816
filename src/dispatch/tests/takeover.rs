//! Another dispatcher takes over: it knows the same, finishes what was begun, and repeats no harm.

use super::cell::{Cell, image, job, node, submission};
use crate::dispatch::Request;
use crate::domain::failure::FailureKind;
use crate::domain::job::{Amount, CompletionType};
use crate::domain::status::{JobPhase, Outcome};
use crate::wire::event::JobEventKind::{
    Accepted, Cancelled, Completed, Deleted, RoundCompleted, Started,
};

#[test]
fn a_rebuilt_dispatcher_knows_the_same() {
    let mut cell = Cell::of_nodes(&["a", "b", "c", "d"]);
    cell.assert_rebuilds();
    cell.submit("base", |spec| {
        spec.images.push(image("side:1"));
        spec.parallelism = Amount::Count(3);
    });
    cell.assert_rebuilds();
    cell.succeed("base", "a", "app:1");
    cell.fail("base", "a", "side:1", FailureKind::Unauthorized);
    cell.assert_rebuilds();
    cell.leave("b");
    cell.assert_rebuilds();
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    cell.succeed_all();
    cell.assert_rebuilds();
    cell.join("b");
    cell.succeed_all();
    cell.assert_rebuilds();
    cell.advance(100_000);
    cell.assert_rebuilds();
}

#[test]
fn a_takeover_releases_nothing_twice_and_nothing_more() {
    let mut cell = Cell::of_nodes(&["a", "b", "c"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(2));
    let tasks = cell.tasks.clone();
    cell.take_over();
    assert_eq!(cell.tasks, tasks);
    cell.succeed_all();
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn the_timers_go_on_after_a_takeover() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("deadline", |spec| {
        spec.completion_policy.active_deadline_seconds = Some(600);
    });
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never;
        spec.completion_policy.repeat_seconds = Some(600);
    });
    cell.succeed("warm", "a", "app:1");
    cell.succeed("warm", "b", "app:1");
    cell.submit("ttl", |spec| {
        spec.completion_policy.ttl_seconds_after_finished = Some(600);
    });
    cell.succeed("ttl", "a", "app:1");
    cell.succeed("ttl", "b", "app:1");
    cell.take_over();
    cell.advance(700);
    let outcome = cell.record("deadline").status.outcome;
    assert_eq!(outcome, Some(Outcome::DeadlineExceeded));
    assert_eq!(cell.record("warm").status.round, 2);
    assert!(!cell.records.contains_key(&job("ttl")));
}

#[test]
fn nodes_get_their_whole_silence_after_a_takeover() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.now = cell.now.after(std::time::Duration::from_secs(60));
    cell.take_over();
    cell.advance(5);
    assert_eq!(
        cell.active("base").len(),
        1,
        "the dispatcher was deaf, not the node dumb"
    );
}

#[test]
fn a_node_that_left_meanwhile_is_noticed() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.take_over();
    cell.leave("a");
    assert_eq!(cell.active("base"), ["b/library/app"]);
}

#[test]
fn tasks_of_runs_that_are_over_are_withdrawn() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let tasks = cell.tasks.clone();
    cell.cancel("base");
    cell.tasks = tasks.clone();
    cell.take_over();
    assert!(cell.tasks.is_empty(), "of a finished job");
    cell.delete("base");
    cell.tasks = tasks.clone();
    cell.take_over();
    assert!(cell.tasks.is_empty(), "of a deleted job");
    cell.submit("base", |_| {});
    cell.tasks = tasks;
    cell.take_over();
    let (_, task) = cell.tasks.values().next().expect("a task");
    assert_eq!(
        task.run,
        cell.record("base").run(),
        "of an older job of the name"
    );
}

#[test]
fn tasks_of_nodes_that_are_gone_are_withdrawn() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    let tasks = cell.tasks.clone();
    cell.leave("a");
    cell.tasks = tasks;
    cell.take_over();
    assert!(cell.tasks.keys().all(|key| key.node == node("b")));
    cell.join("a");
    assert_eq!(cell.active("base").len(), 2);
}

#[test]
fn the_messages_of_a_round_that_ended_are_removed() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    let tasks = cell.tasks.clone();
    cell.succeed_all();
    cell.tasks = tasks;
    cell.take_over();
    assert!(cell.tasks.is_empty());
}

#[test]
fn events_told_while_nobody_led_count() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let event = cell.success("base", "a", "app:1");
    cell.events.push((1, event));
    cell.take_over();
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
    assert_eq!(cell.kinds("base"), [Accepted, Started, Completed]);
}

#[test]
fn a_job_whose_tags_were_being_resolved_asks_again() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.resolves = false;
    cell.submit("base", |_| {});
    cell.unresolved.clear();
    cell.take_over();
    assert_eq!(cell.record("base").status.phase, JobPhase::Resolving);
    cell.resolve();
    assert_eq!(cell.active("base").len(), 1);
}

#[test]
fn a_paused_job_stays_paused() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    cell.pause("base", crate::dispatch::Pause::Pause);
    cell.take_over();
    cell.succeed("base", "a", "app:1");
    assert!(cell.active("base").is_empty());
}

/// What is told when the dispatcher stopped right after it wrote the record that says so.
#[test]
fn events_that_were_not_told_are_told_after_a_takeover_once() {
    let run_to_end = |cell: &mut Cell| cell.succeed_all();
    let cancel = |cell: &mut Cell| {
        cell.cancel("base");
    };
    type Act = fn(&mut Cell);
    let cases: [(CompletionType, Act, _); 4] = [
        (CompletionType::Always, |_| {}, Started),
        (CompletionType::Always, run_to_end, Completed),
        (CompletionType::Always, cancel, Cancelled),
        (CompletionType::Never, run_to_end, RoundCompleted),
    ];
    for (kind, act, missing) in cases {
        let mut cell = Cell::of_nodes(&["a"]);
        cell.submit("base", |spec| spec.completion_policy.kind = kind);
        act(&mut cell);
        let at = cell
            .told
            .iter()
            .position(|(_, event)| event.event == missing);
        let (id, event) = cell.told.remove(at.expect("the event"));
        cell.take_over();
        let again = cell.told.iter().find(|(told, _)| *told == id);
        assert_eq!(
            again.map(|(_, event)| event.event),
            Some(event.event),
            "{missing:?}"
        );
        let told = cell.told.len();
        cell.take_over();
        assert_eq!(cell.told.len(), told, "{missing:?} is told again and again");
    }
}

#[test]
fn the_end_of_the_second_run_is_told_although_the_first_was() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.succeed_all();
    cell.submit("base", |_| {});
    cell.succeed_all();
    cell.told.pop();
    cell.take_over();
    let completed = cell
        .kinds("base")
        .iter()
        .filter(|kind| **kind == Completed)
        .count();
    assert_eq!(completed, 2);
}

#[test]
fn what_was_told_longer_ago_than_events_are_kept_is_not_told_again() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("done", |_| {});
    cell.succeed_all();
    cell.submit("warm", |spec| {
        spec.completion_policy.kind = CompletionType::Never
    });
    cell.advance(8 * 24 * 3_600);
    cell.told.clear();
    cell.take_over();
    assert_eq!(cell.kinds("done"), []);
    assert_eq!(cell.kinds("warm"), []);
}

#[test]
fn a_delete_cut_short_is_finished_when_its_request_comes_again() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let mut witness = Cell::of_nodes(&["a"]);
    witness.submit("base", |_| {});
    // The record says that it was cancelled, and nothing of what follows was done.
    witness.cancel("base");
    let mut cancelled = witness.records[&job("base")].clone();
    cancelled.metadata = cell.records[&job("base")].metadata.clone();
    cell.records.insert(job("base"), cancelled);
    cell.take_over();
    assert!(cell.tasks.is_empty());
    cell.repeat(Request::Delete(job("base")), 2);
    assert!(cell.records.is_empty());
    assert_eq!(cell.kinds("base"), [Accepted, Started, Cancelled, Deleted]);
}

#[test]
fn a_dispatcher_that_does_not_lead_does_nothing() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let mut standby = cell.rebuilt();
    let mut effects = Vec::new();
    let inputs = [
        crate::dispatch::Input::Request {
            request: submission("other", |_| {}),
            sequence: 9,
        },
        crate::dispatch::Input::Tick,
    ];
    for input in inputs {
        standby.handle(
            cell.now.after(std::time::Duration::from_secs(99)),
            input,
            &mut effects,
        );
    }
    assert_eq!(effects, []);
    assert_eq!(standby.next_deadline(), None);
}
