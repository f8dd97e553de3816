//! A job's trace: it is kept in the record, goes with every task, and is another one for another run.

use super::cell::{Cell, image, submission};
use crate::dispatch::Request;
use crate::domain::job::{Amount, CompletionType, JobSpec};
use crate::domain::trace::{TraceContext, TraceOrigin};

const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTHER: &str = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00";

fn context(text: &str) -> TraceContext {
    text.parse().unwrap()
}

fn traced(name: &str, trace: &str, change: impl FnOnce(&mut JobSpec)) -> Request {
    let Request::Submit(mut submission) = submission(name, change) else {
        panic!("no submission");
    };
    submission.trace = Some(TraceOrigin::from(context(trace)));
    Request::Submit(submission)
}

/// The contexts of the tasks that are out.
fn contexts(cell: &Cell) -> Vec<Option<TraceContext>> {
    let tasks = cell.tasks.values();
    tasks.map(|(_, task)| task.traceparent).collect()
}

#[test]
fn a_task_that_is_released_later_by_another_dispatcher_belongs_to_the_trace() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.request(traced("base", ONE, |spec| {
        spec.parallelism = Amount::Count(1)
    }));
    assert_eq!(contexts(&cell), [Some(context(ONE))]);
    cell.take_over();
    cell.succeed("base", "a", "app:1");
    assert_eq!(contexts(&cell).last(), Some(&Some(context(ONE))));
    cell.succeed_all();
    let trace = cell.record("base").metadata.trace.unwrap();
    assert_eq!(trace.origin, context(ONE).into());
    assert_eq!(trace.since, cell.record("base").metadata.created_at);
}

#[test]
fn another_run_belongs_to_the_trace_of_who_asked_for_it() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.request(traced("base", ONE, |_| {}));
    // What the job may do is edited, not what it does.
    cell.request(traced("base", OTHER, |spec| spec.priority = 7));
    assert_eq!(contexts(&cell), [Some(context(ONE))]);
    cell.request(traced("base", OTHER, |spec| {
        spec.images = vec![image("app:2")]
    }));
    assert_eq!(contexts(&cell), [Some(context(OTHER))]);
    cell.succeed_all();
    cell.submit("base", |_| {});
    assert_eq!(contexts(&cell), [None]);
}

#[test]
fn a_later_round_is_a_trace_of_its_own_that_every_dispatcher_finds() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.request(traced("warm", ONE, |spec| {
        spec.completion_policy.kind = CompletionType::Never;
        spec.completion_policy.repeat_seconds = Some(600);
    }));
    cell.succeed_all();
    cell.advance(700);
    let second = contexts(&cell)[0].unwrap();
    assert_ne!(second.trace_id, context(ONE).trace_id);
    let record = cell.record("warm");
    let trace = record.metadata.trace.unwrap();
    assert_eq!(trace.origin.parent_id, None);
    assert_eq!(second, record.run().span(&trace.origin));
    cell.take_over();
    assert_eq!(contexts(&cell), [Some(second)]);
    cell.assert_rebuilds();
}
