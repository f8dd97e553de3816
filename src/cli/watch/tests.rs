use std::time::Duration;

use serde_json::json;

use super::state::{Input, State};
use super::view::{bars, news, standing};
use crate::cli::exit::Exit;
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::wire::event::Event;

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn at(seconds: u64) -> Timestamp {
    START.after(Duration::from_secs(seconds))
}

fn name() -> JobName {
    "base".parse().unwrap()
}

fn record(phase: &str, succeeded: u32, failed: u32, active: u32, bytes: u64) -> Input {
    let record = json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
        "metadata": {"name": "base", "uid": "u", "generation": 1, "createdAt": START, "requestSequence": 1},
        "spec": {"images": ["example.com/app:1"], "parallelism": 2},
        "status": {
            "phase": phase, "round": 1, "bytesRegistry": bytes, "startedAt": START,
            "counts": {"desired": 10, "pending": 10 - succeeded - failed - active, "active": active,
                       "succeeded": succeeded, "failed": failed, "cancelled": 0},
            "nodes": {"desired": 10, "succeeded": succeeded, "failed": failed},
        },
    });
    Input::Record(serde_json::from_value(record).unwrap())
}

fn told(data: serde_json::Value) -> Input {
    let data = serde_json::from_value(data).unwrap();
    let event = Event::new(
        "job.x",
        String::new(),
        String::new(),
        String::new(),
        START,
        data,
    );
    Input::Job(name(), Box::new(event))
}

fn pull(node: &str) -> serde_json::Value {
    json!({"job": "base", "uid": "u", "generation": 1, "round": 1, "node": node, "image": "example.com/app:1", "attempt": 1})
}

fn with(mut base: serde_json::Value, more: serde_json::Value) -> serde_json::Value {
    let (Some(base_map), serde_json::Value::Object(more)) = (base.as_object_mut(), more) else {
        panic!("two objects");
    };
    base_map.extend(more);
    base
}

fn progress(node: &str, more: serde_json::Value) -> Input {
    Input::Progress(serde_json::from_value(with(pull(node), more)).unwrap())
}

fn task(node: &str, more: serde_json::Value) -> Input {
    Input::Task(serde_json::from_value(with(pull(node), more)).unwrap())
}

fn downloading(done_mib: u64, total_mib: u64) -> serde_json::Value {
    json!({"phase": "Downloading", "bytesDone": done_mib << 20, "bytesTotal": total_mib << 20})
}

#[test]
fn bars_show_the_job_and_its_pulls() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 4, 1, 2, 400 << 20));
    state.handle(at(0), progress("node-6", downloading(10, 100)));
    state.tick(at(0));
    let mut quick = downloading(50, 100);
    quick["bytesPerSecond"] = json!(20 << 20);
    quick["secondsLeft"] = json!(3);
    state.handle(at(2), progress("node-6", quick));
    let failed = json!({"state": "retrying", "failure": {"kind": "RateLimited", "message": "x"}, "nextAttemptAt": at(20)});
    state.handle(at(2), task("node-7", failed));
    state.tick(at(2));
    assert_eq!(
        bars(&state, at(10), 5),
        [
            "base  ████████░░░░░░░░  5/10 pulls, 1 failed, 450.0 MiB, 20.0 MiB/s, about 9s left, 2 active, 4/10 nodes",
            "  ██████░░░░░░  node-6  example.com/app:1  50.0 MiB of 100.0 MiB, 20.0 MiB/s, about 3s left",
            "  ░░░░░░░░░░░░  node-7  example.com/app:1  waiting after RateLimited",
        ]
    );
    assert_eq!(
        bars(&state, at(10), 1).len(),
        2,
        "only as many pulls as there is room for"
    );
}

#[test]
fn a_pull_that_fell_silent_is_no_longer_shown() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 0, 0, 2, 0));
    state.handle(at(0), progress("node-1", downloading(1, 2)));
    let failed = json!({"state": "retrying", "failure": {"kind": "Timeout", "message": "x"}, "nextAttemptAt": at(30)});
    state.handle(at(0), task("node-2", failed));
    state.tick(at(11));
    let shown: Vec<&str> = state.pulls.keys().map(|key| key.node.as_str()).collect();
    assert_eq!(
        shown,
        ["node-2"],
        "one that waits is not silent before its time"
    );
}

#[test]
fn news_are_batched_and_told_once() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 0, 0, 2, 0));
    state.handle(at(0), told(json!({"event": "started"})));
    for node in 1..=7 {
        state.handle(
            at(1),
            task(&format!("node-{node}"), json!({"state": "succeeded"})),
        );
    }
    let failure =
        json!({"state": "failed", "failure": {"kind": "ImageNotFound", "message": "no such tag"}});
    state.handle(at(1), task("node-8", failure));
    let job = state.jobs.get_mut(&name()).unwrap();
    assert_eq!(
        news(&name(), job),
        [
            "base: started: 10 pulls on 10 nodes, at most 2 at once",
            "base: 7 pulls succeeded on node-1, node-2, node-3, node-4, node-5 and 2 more",
            "base: 1 pull failed on node-8: ImageNotFound: no such tag",
        ]
    );
    assert_eq!(news(&name(), job), Vec::<String>::new());
}

#[test]
fn a_standing_is_given_until_the_end() {
    let mut state = State::default();
    assert_eq!(standing(&state, &name(), at(0)), None);
    state.handle(at(0), record("Paused", 5, 0, 0, 1 << 20));
    assert_eq!(
        standing(&state, &name(), at(3)).unwrap(),
        "base: 5/10 pulls, paused, 1.0 MiB, 5/10 nodes"
    );
    state.handle(at(4), record("Completed", 10, 0, 0, 1 << 20));
    assert_eq!(standing(&state, &name(), at(4)), None);
}

#[test]
fn time_left_is_not_guessed_from_nothing() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 0, 0, 1, 0));
    assert_eq!(state.time_left(&name(), at(10)), None);
    state.handle(at(10), record("Running", 5, 0, 1, 0));
    assert_eq!(
        state.time_left(&name(), at(10)),
        Some(Duration::from_secs(10))
    );
    state.handle(at(10), record("Running", 10, 0, 0, 0));
    assert_eq!(state.time_left(&name(), at(10)), None);
}

#[test]
fn the_end_comes_by_event_or_by_record_and_a_rerun_takes_it_back() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 9, 0, 1, 0));
    let run = json!({"uid": "u", "generation": 1, "round": 1});
    let completed = with(json!({"event": "completed", "outcome": "Succeeded"}), run);
    state.handle(at(1), told(completed));
    assert_eq!(
        state.jobs[&name()].ending.as_ref().unwrap().exit(),
        Exit::Done
    );
    // The record of the same run, written before the end, does not take it back.
    state.handle(at(1), record("Running", 9, 0, 1, 0));
    assert!(state.jobs[&name()].ending.is_some());
    state.handle(at(2), told(json!({"event": "started"})));
    assert!(state.jobs[&name()].ending.is_none());
}

#[test]
fn what_was_there_before_is_neither_traffic_nor_rate() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 0, 0, 1, 0));
    state.tick(at(0));
    let mut resumed = downloading(81, 100);
    resumed["bytesPresent"] = json!(80 << 20);
    state.handle(at(1), progress("node-1", resumed));
    state.tick(at(1));
    assert_eq!(state.bytes(&name()), 1 << 20);
    assert_eq!(state.rate(&name()), Some(1 << 20));
}

#[test]
fn unpacking_has_a_bar_of_its_own() {
    let mut state = State::default();
    state.handle(at(0), record("Running", 0, 0, 1, 0));
    let unpacking = json!({"phase": "Unpacking", "bytesDone": 100, "bytesTotal": 100, "unpackDone": 50, "unpackTotal": 99});
    state.handle(at(0), progress("node-1", unpacking));
    assert_eq!(
        bars(&state, at(0), 5)[1],
        "  ██████░░░░░░  node-1  example.com/app:1  unpacked 50 B of 99 B"
    );
}
