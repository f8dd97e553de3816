//! Pulls that fail: which, why, after how many attempts.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::Outcome;
use prewarm::wire::event::{JobEventKind, PullState};
use serde_json::json;

use crate::cell::Cell;
use crate::node::{Setup, fated, name};

#[tokio::test]
async fn failed_nodes_are_named_with_their_reason() {
    // Kruise names the nodes and keeps the reasons elsewhere.
    let cell = Cell::start().await;
    let missing = Some(FailureKind::ImageNotFound);
    let full = Some(FailureKind::InsufficientDisk);
    let mut workers = vec![cell.node("fine").await];
    for (node, fate) in [("lost-1", missing), ("lost-2", missing), ("full", full)] {
        let runtime = fated(node, &[("app:1", &[fate])]).await;
        workers.push(cell.worker(Setup::new(node).runtime(runtime)).await);
    }
    cell.submit("job", json!({"images": ["app:1"]})).await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!(
        (job.status.nodes.succeeded, job.status.nodes.failed),
        (1, 3)
    );
    let groups = &job.status.failures;
    assert_eq!(groups.len(), 2, "{groups:?}");
    assert_eq!(
        (groups[0].kind, groups[0].pulls),
        (FailureKind::ImageNotFound, 2)
    );
    assert_eq!(groups[0].nodes, [name("lost-1"), name("lost-2")]);
    assert!(groups[0].message.contains("404"), "{}", groups[0].message);
    assert_eq!(groups[1].kind, FailureKind::InsufficientDisk);
    assert_eq!(groups[1].nodes, [name("full")]);
    let completed = cell
        .job_event(Some("job"), JobEventKind::Completed, 1)
        .await;
    assert_eq!(&completed.failures, groups);
}

#[tokio::test]
async fn an_image_that_is_not_there_is_not_asked_for_again() {
    // Kruise waits and tries again, whatever the registry says.
    let cell = Cell::start().await;
    let runtime = fated("node", &[("app:1", &[Some(FailureKind::ImageNotFound)])]).await;
    let _node = cell.worker(Setup::new("node").runtime(runtime)).await;
    let spec = json!({"images": ["app:1"], "pullPolicy": {"backoffLimit": 10}});
    cell.submit("job", spec).await;
    assert_eq!(
        cell.ended("job").await.status.outcome,
        Some(Outcome::Failed)
    );
    let told: Vec<(PullState, u32)> = cell
        .told(Some("job"))
        .await
        .iter()
        .map(|kept| (kept.body.state, kept.body.attempt))
        .collect();
    assert_eq!(told, [(PullState::Started, 1), (PullState::Failed, 1)]);
}

#[tokio::test]
async fn a_passing_failure_is_tried_once_more_than_the_backoff_limit() {
    let cell = Cell::start().await;
    let passing = Some(FailureKind::RegistryUnavailable);
    let fates: [(&str, &[_]); 2] = [
        ("gives-up:1", &[passing, passing]),
        ("recovers:1", &[passing, None]),
    ];
    let runtime = fated("node", &fates).await;
    let _node = cell.worker(Setup::new("node").runtime(runtime)).await;
    for (job, outcome) in [
        ("gives-up", Outcome::Failed),
        ("recovers", Outcome::Succeeded),
    ] {
        let spec = json!({"images": [format!("{job}:1")], "pullPolicy": {"backoffLimit": 1}});
        cell.submit(job, spec).await;
        assert_eq!(cell.ended(job).await.status.outcome, Some(outcome));
        let told = cell.told(Some(job)).await.into_iter().map(|kept| kept.body);
        let told: Vec<_> = told.collect();
        let states: Vec<(PullState, u32)> = told
            .iter()
            .map(|event| (event.state, event.attempt))
            .collect();
        let end = if outcome == Outcome::Failed {
            PullState::Failed
        } else {
            PullState::Succeeded
        };
        let expected = [
            (PullState::Started, 1),
            (PullState::Retrying, 1),
            (PullState::Started, 2),
            (end, 2),
        ];
        assert_eq!(states, expected);
        assert!(told[1].next_attempt_at.is_some() && told[1].failure.is_some());
    }
}

#[tokio::test]
async fn a_deadline_ends_the_job_with_what_is_unfinished_counted_as_failed() {
    let cell = Cell::start().await;
    let mut workers = vec![cell.node("fast").await];
    for node in ["slow-1", "slow-2", "slow-3"] {
        workers.push(cell.worker(Setup::new(node).latency("10m")).await);
    }
    let spec = json!({
        "images": ["app:1"], "parallelism": 2, "pullPolicy": {"timeoutSeconds": 1},
        "completionPolicy": {"activeDeadlineSeconds": 8},
    });
    cell.submit("job", spec).await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.outcome, Some(Outcome::DeadlineExceeded));
    let counts = job.status.counts;
    assert_eq!((counts.desired, counts.succeeded, counts.failed), (4, 1, 3));
    assert_eq!(counts.pending + counts.active, 0);
    cell.no_tasks("job").await;
    // The nodes let go too: they have room for the next job.
    let spec = json!({"images": ["app:2"], "pullPolicy": {"timeoutSeconds": 1, "backoffLimit": 0}});
    cell.submit("next", spec).await;
    let failures = cell.ended("next").await.status.failures;
    assert_eq!(
        (failures[0].kind, failures[0].pulls),
        (FailureKind::Timeout, 3)
    );
}
