//! A job from its submission to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cell::{Cell, image, job, node, submission};
use crate::dispatch::Request;
use crate::domain::failure::FailureKind;
use crate::domain::image::Digest;
use crate::domain::job::{ImagePullPolicy, JobSpec, PullPolicy, SandboxConfig};
use crate::domain::status::{Counts, JobPhase, NodeCounts, Outcome};
use crate::wire::event::JobEventKind::{Accepted, Completed, Started};
use crate::wire::task::PullTask;

#[test]
fn a_job_is_accepted_resolved_released_and_completed() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.resolves = false;
    let sequence = cell.submit("base", |_| {});
    assert_eq!(cell.acknowledged, [sequence]);
    assert_eq!(cell.record("base").status.phase, JobPhase::Resolving);
    assert_eq!(cell.kinds("base"), [Accepted]);
    assert!(cell.tasks.is_empty(), "nothing is released unresolved");

    cell.resolve();
    assert_eq!(cell.kinds("base"), [Accepted, Started]);
    assert_eq!(cell.record("base").status.phase, JobPhase::Running);
    assert_eq!(cell.active("base"), ["a/library/app", "b/library/app"]);

    cell.succeed("base", "a", "app:1");
    assert_eq!(cell.record("base").status.phase, JobPhase::Running);
    cell.succeed("base", "b", "app:1");
    let record = &cell.records[&job("base")];
    assert_eq!(record.status.phase, JobPhase::Completed);
    assert_eq!(record.status.outcome, Some(Outcome::Succeeded));
    assert_eq!(cell.kinds("base"), [Accepted, Started, Completed]);
    assert!(
        cell.tasks.is_empty(),
        "the tasks of a finished job are removed"
    );
}

/// Every field of a specification that a pull depends on, each with another value than its default.
fn with_everything(spec: &mut JobSpec) {
    spec.priority = 7;
    spec.image_pull_policy = ImagePullPolicy::Always;
    spec.platform = Some("linux/arm64".parse().unwrap());
    spec.pin = true;
    spec.unpack = false;
    spec.pull_secrets = vec!["team".to_owned()];
    spec.pull_policy = PullPolicy {
        timeout_seconds: 42,
        backoff_limit: 9,
    };
    spec.completion_policy.active_deadline_seconds = Some(60);
    spec.sandbox_config = SandboxConfig {
        labels: map("k", "v"),
        annotations: map("a", "w"),
    };
}

fn map(key: &str, value: &str) -> BTreeMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

#[test]
fn a_task_carries_what_the_worker_needs() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", with_everything);
    let (_, task) = cell.tasks.values().next().expect("a task");
    let record = cell.record("base");
    let started = record.status.started_at.unwrap();
    // Whole, so that a field that is added is not forgotten here.
    let expected = PullTask {
        job: job("base"),
        run: record.run(),
        node: node("a"),
        image: image("app:1"),
        digest: Some(Digest::of(image("app:1").to_string().as_bytes())),
        platform: Some("linux/arm64".parse().unwrap()),
        image_pull_policy: ImagePullPolicy::Always,
        pull_policy: record.spec.pull_policy,
        priority: 7,
        pull_secrets: vec!["team".to_owned()],
        pin: true,
        unpack: false,
        expires_at: Some(started.after(Duration::from_secs(60))),
        released_at: task.released_at,
        labels: map("k", "v"),
        annotations: map("a", "w"),
        traceparent: task.traceparent,
    };
    assert_eq!(*task, expected);
    assert!(task.released_at.is_some_and(|at| at >= started));
    assert_eq!(task.pull_policy.timeout_seconds, 42);
    assert_eq!(task.pull_policy.backoff_limit, 9);
}

#[test]
fn events_carry_the_labels_of_the_job_and_of_its_sandbox() {
    let mut cell = Cell::of_nodes(&["a"]);
    let Request::Submit(mut submitted) = submission("base", with_everything) else {
        unreachable!("a submission");
    };
    submitted
        .spec
        .sandbox_config
        .labels
        .extend(map("team", "nobody"));
    submitted.labels = map("team", "infra");
    cell.request(Request::Submit(submitted));
    cell.succeed("base", "a", "app:1");
    assert_eq!(cell.kinds("base"), [Accepted, Started, Completed]);
    for (id, event) in &cell.told {
        let mut labels = map("k", "v");
        labels.extend(map("team", "infra"));
        assert_eq!(event.labels, labels, "{id}");
        assert_eq!(event.annotations, map("a", "w"), "{id}");
    }
    // The record keeps apart what the user gave apart.
    assert_eq!(cell.record("base").metadata.labels, map("team", "infra"));
}

#[test]
fn every_image_goes_to_every_node_and_both_are_counted() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.images.push(image("side:1")));
    cell.succeed("base", "a", "app:1");
    cell.succeed("base", "a", "side:1");
    cell.fail("base", "b", "app:1", FailureKind::ImageNotFound);
    let status = cell.record("base").status;
    let counts = Counts {
        desired: 4,
        active: 1,
        succeeded: 2,
        failed: 1,
        ..Counts::default()
    };
    assert_eq!(status.counts, counts);
    let nodes = NodeCounts {
        desired: 2,
        succeeded: 1,
        failed: 1,
    };
    assert_eq!(status.nodes, nodes);
}

#[test]
fn the_outcome_says_whether_all_some_or_none_succeeded() {
    let cases = [
        ([true, true], Outcome::Succeeded),
        ([true, false], Outcome::PartiallyFailed),
        ([false, false], Outcome::Failed),
    ];
    for (results, expected) in cases {
        let mut cell = Cell::of_nodes(&["a", "b"]);
        cell.submit("base", |_| {});
        for (on, succeeds) in ["a", "b"].into_iter().zip(results) {
            if succeeds {
                cell.succeed("base", on, "app:1");
            } else {
                cell.fail("base", on, "app:1", FailureKind::Unauthorized);
            }
        }
        assert_eq!(
            cell.record("base").status.outcome,
            Some(expected),
            "{results:?}"
        );
    }
}

#[test]
fn the_completed_event_tells_counts_bytes_duration_and_failures() {
    let mut cell = Cell::of_nodes(&["a", "b", "c"]);
    cell.submit("base", |_| {});
    cell.advance(10);
    cell.succeed("base", "a", "app:1");
    cell.fail("base", "c", "app:1", FailureKind::ImageNotFound);
    cell.fail("base", "b", "app:1", FailureKind::ImageNotFound);
    let (_, event) = cell.told.last().expect("an event");
    assert_eq!(event.event, Completed);
    assert_eq!(event.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!(
        (event.bytes_registry, event.bytes_elsewhere),
        (Some(100), Some(10))
    );
    assert_eq!(event.duration_millis, Some(10_000));
    let [group] = &event.failures[..] else {
        panic!("one group expected: {:?}", event.failures);
    };
    assert_eq!((group.kind, group.pulls), (FailureKind::ImageNotFound, 2));
    let nodes: Vec<_> = group.nodes.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["b", "c"], "in order of name");
    assert_eq!(group.message, "ImageNotFound on c");
}

#[test]
fn a_job_for_no_node_completes_at_once_and_says_so() {
    let mut cell = Cell::new();
    cell.submit("base", |_| {});
    let record = cell.record("base");
    assert_eq!(record.status.outcome, Some(Outcome::Succeeded));
    assert_eq!(record.status.counts, Counts::default());
    assert!(
        record.status.message.contains("no node matches"),
        "{}",
        record.status.message
    );
    assert_eq!(cell.kinds("base"), [Accepted, Started, Completed]);
}

#[test]
fn a_registry_that_cannot_be_asked_leaves_it_to_the_nodes_and_the_status_says_so() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.resolves = false;
    cell.submit("base", |_| {});
    let (name, run, images) = cell.unresolved.pop().expect("a question");
    let unresolved = |image| crate::wire::record::ResolvedImage {
        image,
        digest: None,
        problem: Some("no route to host".to_owned()),
    };
    let images = images.into_iter().map(unresolved).collect();
    cell.tell(crate::dispatch::Input::Resolved {
        job: name,
        run,
        images,
    });
    let (_, task) = cell.tasks.values().next().expect("a task");
    assert_eq!(task.digest, None);
    let status = cell.record("base").status;
    assert!(
        status.message.contains("resolved by each node"),
        "{}",
        status.message
    );
    assert_eq!(
        status.images[0].problem.as_deref(),
        Some("no route to host")
    );
}

#[test]
fn the_record_of_a_running_job_lags_by_a_second_at_most() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |_| {});
    cell.succeed("base", "a", "app:1");
    assert_eq!(cell.records[&job("base")].status.counts.succeeded, 0);
    cell.advance(1);
    assert_eq!(cell.records[&job("base")].status.counts.succeeded, 1);
}

#[test]
fn idle_jobs_write_nothing() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("base", |_| {});
    cell.advance(5);
    let before = cell.writes;
    cell.advance(600);
    assert_eq!(cell.writes, before);
}
