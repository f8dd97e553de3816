//! What users ask: edits, another run, cancel, delete, pause, resume; each applied once.

use super::cell::{Cell, image, job, node, submission};
use crate::dispatch::{Pause, Request};
use crate::domain::job::{Amount, CompletionType};
use crate::domain::selector::NodeSelector;
use crate::domain::status::{JobPhase, Outcome};
use crate::wire::event::JobEventKind::{
    Accepted, Cancelled, Completed, Deleted, Paused, Rejected, Resumed, Started,
};
use crate::wire::event::Problem;

fn only(name: &str) -> NodeSelector {
    NodeSelector {
        names: vec![node(name)],
        ..NodeSelector::default()
    }
}

#[test]
fn parallelism_can_be_raised_and_lowered_while_the_job_runs() {
    let mut cell = Cell::of_nodes(&["a", "b", "c", "d"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    cell.submit("base", |spec| spec.parallelism = Amount::Count(3));
    assert_eq!(cell.active("base").len(), 3);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    assert_eq!(cell.active("base").len(), 3, "what is released stays");
    cell.succeed("base", "a", "app:1");
    cell.succeed("base", "b", "app:1");
    assert_eq!(cell.active("base").len(), 1, "nothing new until below");
    cell.succeed("base", "c", "app:1");
    assert_eq!(cell.active("base"), ["d/library/app"]);
    assert_eq!(cell.record("base").metadata.generation, 1);
}

#[test]
fn parallelism_zero_pauses_and_another_number_goes_on() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(0));
    cell.advance(3_600);
    assert!(cell.tasks.is_empty() && !cell.record("base").status.phase.is_finished());
    cell.submit("base", |_| {});
    assert_eq!(cell.active("base").len(), 1);
}

#[test]
fn a_changed_priority_moves_what_waits() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    let four = |spec: &mut crate::domain::job::JobSpec| {
        spec.images = ["p:1", "q:1", "r:1", "s:1"].map(image).into();
    };
    cell.submit("one", four);
    cell.submit("two", four);
    cell.submit("three", four);
    cell.submit("three", |spec| {
        four(spec);
        spec.priority = 1;
    });
    cell.succeed("one", "a", "p:1");
    assert_eq!(cell.active("three").len(), 1);
    assert_eq!(cell.active("two").len(), 0);
}

#[test]
fn a_changed_selector_applies_at_once() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.selector = only("a"));
    cell.submit("base", |spec| spec.selector = only("b"));
    assert_eq!(cell.active("base"), ["b/library/app"]);
    assert_eq!(cell.tasks.len(), 1, "the task of the other is withdrawn");
    assert_eq!(cell.revoked[0].0, node("a"));
    assert_eq!(cell.counts("base").desired, 1);
}

#[test]
fn a_shorter_deadline_applies_at_once() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.advance(60);
    cell.submit("base", |spec| {
        spec.completion_policy.active_deadline_seconds = Some(30);
    });
    let outcome = cell.record("base").status.outcome;
    assert_eq!(outcome, Some(Outcome::DeadlineExceeded));
}

#[test]
fn a_longer_deadline_applies_at_once() {
    let mut cell = Cell::of_nodes(&["a"]);
    let deadline = |seconds| {
        move |spec: &mut crate::domain::job::JobSpec| {
            spec.completion_policy.active_deadline_seconds = Some(seconds);
        }
    };
    cell.submit("base", deadline(30));
    cell.submit("base", deadline(120));
    cell.advance(100);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.advance(30);
    assert!(cell.record("base").status.phase.is_finished());
}

#[test]
fn a_changed_timeout_reaches_what_is_released_later() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    cell.submit("base", |spec| {
        spec.parallelism = Amount::Count(1);
        spec.pull_policy.timeout_seconds = 7;
    });
    cell.succeed("base", "a", "app:1");
    let task = cell.tasks.values().find(|(_, task)| task.node == node("b"));
    assert_eq!(task.unwrap().1.pull_policy.timeout_seconds, 7);
}

#[test]
fn other_images_are_a_new_generation_and_the_old_tasks_go() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.succeed("base", "a", "app:1");
    cell.submit("base", |spec| spec.images = vec![image("new:2")]);
    let record = cell.record("base");
    assert_eq!((record.metadata.generation, record.status.round), (2, 1));
    assert_eq!(cell.active("base"), ["a/library/new", "b/library/new"]);
    assert_eq!(cell.tasks.len(), 2);
    let revoked: Vec<_> = cell
        .revoked
        .iter()
        .map(|(on, pull)| (on.clone(), pull.run.generation))
        .collect();
    assert_eq!(revoked, [(node("b"), 1)], "what runs is stopped");
    assert_eq!(record.status.counts.succeeded, 0);
    cell.succeed_all();
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn an_edit_while_tags_are_resolved_asks_again() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.resolves = false;
    cell.submit("base", |_| {});
    cell.submit("base", |spec| spec.images = vec![image("new:2")]);
    cell.resolve();
    assert_eq!(cell.active("base"), ["a/library/new"]);
    cell.resolve();
    assert_eq!(
        cell.active("base"),
        ["a/library/new"],
        "the old answer is ignored"
    );
}

#[test]
fn a_finished_job_submitted_again_runs_again() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.succeed_all();
    let uid = cell.record("base").metadata.uid;
    cell.submit("base", |_| {});
    let record = cell.record("base");
    assert_eq!((record.metadata.uid, record.metadata.generation), (uid, 2));
    assert_eq!(cell.active("base"), ["a/library/app"]);
    cell.succeed_all();
    let kinds = [Accepted, Started, Completed, Accepted, Started, Completed];
    assert_eq!(cell.kinds("base"), kinds);
    let mut ids: Vec<_> = cell.told.iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), kinds.len(), "each fact has its own id");
}

#[test]
fn an_event_of_the_run_before_does_not_count_in_the_next() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    let late = cell.success("base", "a", "app:1");
    cell.cancel("base");
    cell.submit("base", |_| {});
    cell.tell_event(late);
    assert_eq!(cell.counts("base").succeeded, 0);
    assert_eq!(cell.active("base").len(), 1);
}

#[test]
fn cancel_withdraws_revokes_and_ends() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    cell.cancel("base");
    let status = cell.record("base").status;
    assert_eq!(status.phase, JobPhase::Cancelled);
    assert_eq!(status.outcome, Some(Outcome::Cancelled));
    assert_eq!(status.counts.cancelled, 2);
    assert!(cell.tasks.is_empty());
    assert_eq!(cell.revoked.len(), 1);
    assert_eq!(cell.kinds("base"), [Accepted, Started, Cancelled]);
}

#[test]
fn cancel_lets_other_jobs_have_the_slots() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    cell.submit("one", |spec| {
        spec.images = ["p:1", "q:1", "r:1", "s:1"].map(image).into();
    });
    cell.submit("two", |_| {});
    assert_eq!(cell.active("two").len(), 0);
    cell.cancel("one");
    assert_eq!(cell.active("two").len(), 1);
}

#[test]
fn cancel_of_a_finished_or_unknown_job_is_rejected() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.succeed_all();
    cell.cancel("base");
    cell.cancel("other");
    assert_eq!(cell.kinds("base").last(), Some(&Rejected));
    assert_eq!(cell.kinds("other"), [Rejected]);
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn delete_ends_and_forgets() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.delete("base");
    assert_eq!(cell.kinds("base"), [Accepted, Started, Cancelled, Deleted]);
    assert!(cell.records.is_empty() && cell.tasks.is_empty());
    assert_eq!(cell.revoked.len(), 1);
    cell.submit("base", |_| {});
    assert_eq!(cell.active("base").len(), 1, "the name is free");
}

#[test]
fn pause_releases_nothing_more_and_resume_goes_on() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    cell.pause("base", Pause::Pause);
    assert_eq!(cell.record("base").status.phase, JobPhase::Paused);
    assert_eq!(cell.active("base"), ["a/library/app"], "what runs goes on");
    cell.succeed("base", "a", "app:1");
    assert!(cell.active("base").is_empty());
    cell.pause("base", Pause::Resume);
    assert_eq!(cell.active("base"), ["b/library/app"]);
    assert_eq!(cell.kinds("base"), [Accepted, Started, Paused, Resumed]);
}

#[test]
fn a_paused_job_does_not_give_up_absent_nodes() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.leave("a");
    cell.pause("base", Pause::Pause);
    cell.advance(3_600);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.pause("base", Pause::Resume);
    assert!(cell.record("base").status.phase.is_finished());
}

#[test]
fn parallelism_zero_does_not_give_up_absent_nodes() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(0));
    cell.leave("a");
    cell.advance(3_600);
    assert!(!cell.record("base").status.phase.is_finished());
    cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    assert!(cell.record("base").status.phase.is_finished());
}

#[test]
fn an_unreadable_request_is_rejected_with_every_problem() {
    let mut cell = Cell::new();
    let problem = |path: &str| Problem {
        path: path.to_owned(),
        message: "is wrong".to_owned(),
    };
    let problems = vec![problem("spec.images"), problem("spec.parallelism")];
    let sequence = cell.request(Request::Unreadable {
        name: Some(job("base")),
        problems: problems.clone(),
    });
    let (_, event) = cell.told.last().expect("an event");
    assert_eq!((event.event, &event.problems), (Rejected, &problems));
    assert_eq!(event.request_sequence, Some(sequence));
    assert_eq!(cell.acknowledged, [sequence]);
}

/// A request that comes again, before and after a takeover, tells the same facts under the same ids
/// at most, and changes nothing.
fn assert_idempotent(prepare: impl Fn(&mut Cell), request: impl Fn() -> Request) {
    for takes_over in [false, true] {
        let mut cell = Cell::of_nodes(&["a", "b"]);
        prepare(&mut cell);
        let sequence = cell.request(request());
        if takes_over {
            cell.take_over();
        }
        let (view, tasks, told) = (cell.dispatcher.view(), cell.tasks.clone(), cell.told.len());
        cell.repeat(request(), sequence);
        assert_eq!(cell.dispatcher.view(), view, "takes over: {takes_over}");
        assert_eq!(cell.tasks, tasks);
        let (before, again) = cell.told.split_at(told);
        for (id, event) in again {
            assert!(
                before.iter().any(|(told, _)| told == id),
                "{:?} is told as something new; takes over: {takes_over}",
                event.event
            );
        }
    }
}

#[test]
fn every_request_that_comes_again_changes_nothing() {
    let base = |cell: &mut Cell| {
        cell.submit("base", |spec| spec.parallelism = Amount::Count(1));
    };
    let finished = |cell: &mut Cell| {
        cell.submit("base", |_| {});
        cell.succeed_all();
    };
    let paused = |cell: &mut Cell| {
        cell.submit("base", |_| {});
        cell.pause("base", Pause::Pause);
    };
    let other = || submission("base", |spec| spec.images = vec![image("new:2")]);
    assert_idempotent(|_| {}, || submission("base", |_| {}));
    assert_idempotent(base, || submission("base", |_| {}));
    assert_idempotent(base, other);
    assert_idempotent(finished, || submission("base", |_| {}));
    let pushed = |of: &'static str| {
        move || match submission("base", |spec| spec.images = vec![image(of)]) {
            Request::Submit(one) => {
                let two = crate::wire::manifest::Submission {
                    name: job("other"),
                    ..(*one).clone()
                };
                Request::Push(vec![Ok(*one), Ok(two)])
            }
            other => other,
        }
    };
    for of in ["app:1", "new:2"] {
        assert_idempotent(|_| {}, pushed(of));
        assert_idempotent(base, pushed(of));
        assert_idempotent(finished, pushed(of));
    }
    assert_idempotent(base, || Request::Cancel(job("base")));
    assert_idempotent(finished, || Request::Cancel(job("base")));
    assert_idempotent(base, || Request::Delete(job("base")));
    assert_idempotent(finished, || Request::Delete(job("base")));
    assert_idempotent(base, || Request::Pause(job("base"), Pause::Pause));
    assert_idempotent(paused, || Request::Pause(job("base"), Pause::Resume));
}

#[test]
fn what_a_request_caused_is_told_again_when_the_dispatcher_stopped_before_it_was() {
    let requests: [(fn() -> Request, _); 3] = [
        (|| submission("base", |spec| spec.priority = 1), Accepted),
        (|| Request::Pause(job("base"), Pause::Pause), Paused),
        (|| Request::Pause(job("base"), Pause::Resume), Resumed),
    ];
    for (request, kind) in requests {
        let mut cell = Cell::of_nodes(&["a"]);
        cell.submit("base", |_| {});
        let sequence = cell.request(request());
        let (id, _) = cell.told.pop().expect("an event");
        cell.take_over();
        cell.repeat(request(), sequence);
        let again: Vec<_> = cell.told.iter().filter(|(told, _)| *told == id).collect();
        assert_eq!(again.len(), 1, "{kind:?}");
    }
}

#[test]
fn always_becomes_never_and_never_becomes_always() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    let never = |spec: &mut crate::domain::job::JobSpec| {
        spec.completion_policy.kind = CompletionType::Never;
    };
    cell.submit("base", |_| {});
    cell.submit("base", never);
    cell.succeed_all();
    assert_eq!(cell.record("base").status.phase, JobPhase::Idle);
    cell.submit("base", |_| {});
    assert_eq!(cell.record("base").status.outcome, Some(Outcome::Succeeded));
}
