//! What comes of a push, once rules have made jobs of it.

use super::cell::{Cell, image, job, submission};
use crate::dispatch::{Pause, Request};
use crate::domain::status::{JobPhase, Outcome};
use crate::wire::event::JobEventKind::{Accepted, Completed, Paused, Rejected, Started};
use crate::wire::event::Problem;
use crate::wire::manifest::{Rejection, Submission};

fn pushed(name: &str, of: &str) -> Submission {
    match submission(name, |spec| spec.images = vec![image(of)]) {
        Request::Submit(submission) => *submission,
        other => panic!("{other:?}"),
    }
}

fn push(name: &str, of: &str) -> Request {
    Request::Push(vec![Ok(pushed(name, of))])
}

#[test]
fn a_push_makes_the_job_of_each_rule_and_says_which_rule_makes_none() {
    let mut cell = Cell::of_nodes(&["a"]);
    let problem = Problem {
        path: "metadata.name".to_owned(),
        message: "is wrong".to_owned(),
    };
    let rejection = Rejection {
        name: Some(job("none")),
        problems: vec![problem.clone()],
    };
    let made = vec![
        Ok(pushed("one", "p:1")),
        Err(rejection),
        Ok(pushed("two", "p:1")),
    ];
    let sequence = cell.request(Request::Push(made));
    assert_eq!(cell.acknowledged, [sequence]);
    for name in ["one", "two"] {
        assert_eq!(cell.kinds(name), [Accepted, Started]);
    }
    assert_eq!(cell.kinds("none"), [Rejected]);
    let (_, event) = cell
        .told
        .iter()
        .find(|(_, event)| event.event == Rejected)
        .expect("an event");
    assert_eq!(event.problems, [problem]);
    let mut ids: Vec<_> = cell.told.iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), cell.told.len(), "each fact has its own id");
}

#[test]
fn a_job_that_says_the_same_and_has_not_failed_is_left_alone() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.request(push("base", "p:1"));
    let before = cell.dispatcher.view();
    cell.request(push("base", "p:1"));
    assert_eq!(cell.dispatcher.view(), before, "it runs");
    cell.pause("base", Pause::Pause);
    cell.request(push("base", "p:1"));
    assert_eq!(cell.record("base").status.phase, JobPhase::Paused);
    cell.pause("base", Pause::Resume);
    cell.succeed_all();
    cell.request(push("base", "p:1"));
    let record = cell.record("base");
    assert_eq!(record.metadata.generation, 1, "it has succeeded");
    assert_eq!(record.status.outcome, Some(Outcome::Succeeded));
}

#[test]
fn a_job_that_failed_was_cancelled_or_says_something_else_runs_with_the_push() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.request(push("base", "p:1"));
    cell.cancel("base");
    cell.request(push("base", "p:1"));
    assert_eq!(cell.record("base").metadata.generation, 2);
    cell.succeed_all();
    cell.request(push("base", "p:2"));
    assert_eq!(cell.record("base").metadata.generation, 3);
    cell.request(push("base", "p:3"));
    assert_eq!(cell.record("base").metadata.generation, 4);
    assert_eq!(
        cell.kinds("base")
            .iter()
            .filter(|kind| **kind == Completed)
            .count(),
        1
    );
}

#[test]
fn of_two_pushes_for_a_job_the_younger_wins_in_whatever_order_they_come() {
    let mut cell = Cell::of_nodes(&["a"]);
    let older = cell.request(Request::Push(Vec::new()));
    cell.request(push("latest", "p:2"));
    cell.repeat(push("latest", "p:1"), older);
    assert_eq!(cell.record("latest").spec.images, [image("p:2")]);
    assert_eq!(cell.kinds("latest").last(), Some(&Rejected), "it is told");
    cell.repeat(push("latest", "p:2"), older);
    assert_eq!(cell.record("latest").metadata.generation, 1);
}

#[test]
fn a_push_that_waited_undoes_nothing_that_was_asked_meanwhile() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.request(push("base", "p:1"));
    let waited = cell.request(Request::Push(Vec::new()));
    cell.pause("base", Pause::Pause);
    cell.repeat(push("base", "p:2"), waited);
    assert_eq!(cell.record("base").status.phase, JobPhase::Paused);
    assert_eq!(cell.kinds("base"), [Accepted, Started, Paused, Rejected]);
}
