//! The cases of Kruise's unit tests of `calculateStatus` (`imagepulljob_controller_test.go`), as far as they exist here.
//! The workers are played by the tests, so that every word is theirs.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::{Counts, JobPhase, Outcome};
use prewarm::wire::event::JobEventKind;
use prewarm::wire::record::JobRecord;
use prewarm::wire::subject::JobVerb;
use prewarm::wire::task::PullTask;
use serde_json::json;

use crate::cell::Cell;

/// A job whose pulls are all released to nodes that do nothing.
async fn released(nodes: &[&str]) -> (Cell, Vec<PullTask>) {
    let cell = Cell::start().await;
    for node in nodes {
        cell.silent(node, &[]).await;
    }
    cell.submit("job", json!({"images": ["nginx:1"], "parallelism": 10}))
        .await;
    let tasks = cell.released("job", nodes.len()).await;
    (cell, tasks)
}

/// Pending, active, succeeded, failed.
fn states(counts: Counts) -> [u32; 4] {
    [
        counts.pending,
        counts.active,
        counts.succeeded,
        counts.failed,
    ]
}

async fn with_states(cell: &Cell, states_wanted: [u32; 4]) -> JobRecord {
    let what = format!("in the states {states_wanted:?}");
    cell.job("job", &what, |job| {
        states(job.status.counts) == states_wanted
    })
    .await
}

#[tokio::test]
async fn calculate_status_all_succeeded_is_completed() {
    let (cell, tasks) = released(&["a", "b", "c"]).await;
    for task in &tasks {
        cell.tell_success(task).await;
    }
    let job = cell.ended("job").await;
    assert_eq!(states(job.status.counts), [0, 0, 3, 0]);
    assert_eq!(job.status.phase, JobPhase::Completed);
    assert_eq!(job.status.outcome, Some(Outcome::Succeeded));
    assert_eq!(job.status.message, "3 of 3 pulls done on 3 of 3 nodes");
    assert!(job.status.completed_at >= job.status.started_at);
}

#[tokio::test]
async fn calculate_status_one_succeeded_one_failed_one_active() {
    let (cell, tasks) = released(&["a", "b", "c"]).await;
    cell.tell_success(&tasks[0]).await;
    cell.tell_failure(&tasks[1]).await;
    let job = with_states(&cell, [0, 1, 1, 1]).await;
    assert_eq!(job.status.phase, JobPhase::Running);
    assert_eq!(job.status.completed_at, None);
    let message = &job.status.message;
    let said = "1 of 3 pulls done on 1 of 3 nodes, 1 failed";
    assert!(message.starts_with(said), "{message}");
    assert_eq!(job.status.failures[0].nodes, [tasks[1].node.clone()]);
}

#[tokio::test]
async fn calculate_status_words_of_another_image_run_or_job_leave_the_pull_active() {
    let (cell, tasks) = released(&["a", "b"]).await;
    let task = &tasks[0];
    let mut other_image = task.clone();
    other_image.image = "nginx:2".parse().unwrap();
    let mut old_version = task.clone();
    old_version.run.generation = 0;
    let mut other_owner = task.clone();
    other_owner.run.uid = "another".to_owned();
    for stale in [other_image, old_version, other_owner] {
        cell.tell_success(&stale).await;
    }
    // Words are taken in order: when this one counts, the others have been heard.
    cell.tell_success(&tasks[1]).await;
    with_states(&cell, [0, 1, 1, 0]).await;
    cell.tell_failure(task).await;
    let job = cell.ended("job").await;
    assert_eq!(states(job.status.counts), [0, 0, 1, 1]);
    assert_eq!(job.status.outcome, Some(Outcome::PartiallyFailed));
}

#[tokio::test]
async fn calculate_status_the_first_word_on_an_end_is_the_truth() {
    let (cell, tasks) = released(&["a", "b"]).await;
    cell.tell_failure(&tasks[0]).await;
    cell.tell_success(&tasks[0]).await;
    cell.tell_success(&tasks[1]).await;
    assert_eq!(states(cell.ended("job").await.status.counts), [0, 0, 1, 1]);
}

#[tokio::test]
async fn calculate_status_a_passed_deadline_fails_what_is_active_and_what_is_not_released() {
    let cell = Cell::start().await;
    for node in ["a", "b", "c"] {
        cell.silent(node, &[]).await;
    }
    let spec = json!({
        "images": ["nginx:1"], "parallelism": 2, "pullPolicy": {"timeoutSeconds": 1},
        "completionPolicy": {"activeDeadlineSeconds": 8},
    });
    cell.submit("job", spec).await;
    let tasks = cell.released("job", 2).await;
    cell.tell_success(&tasks[0]).await;
    cell.released("job", 3).await;
    let job = cell.ended("job").await;
    assert_eq!(states(job.status.counts), [0, 0, 1, 2]);
    assert_eq!(job.status.outcome, Some(Outcome::DeadlineExceeded));
    let [group] = &job.status.failures[..] else {
        panic!("{:?}", job.status.failures)
    };
    assert_eq!(
        (group.kind, group.pulls),
        (FailureKind::DeadlineExceeded, 2)
    );
    cell.no_tasks("job").await;
}

#[tokio::test]
async fn calculate_status_an_invalid_image_is_refused_with_its_path() {
    let cell = Cell::start().await;
    let manifest = "apiVersion: apps.kruise.io/v1alpha1\nkind: ImagePullJob\nmetadata: {name: bad}\nspec: {image: 'nginx:1:2'}\n";
    cell.publish(JobVerb::Submit, manifest).await;
    let rejected = cell.job_event(Some("bad"), JobEventKind::Rejected, 1).await;
    assert_eq!(rejected.problems[0].path, "spec.image");
    assert!(cell.record("bad").await.is_none());
}

#[tokio::test]
async fn calculate_status_no_node_at_all_is_completed_at_once_and_says_so() {
    let cell = Cell::start().await;
    cell.submit(
        "job",
        json!({"images": ["nginx:1"], "selector": {"matchLabels": {"a": "b"}}}),
    )
    .await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.counts, Counts::default());
    assert_eq!(job.status.outcome, Some(Outcome::Succeeded));
    assert!(
        job.status.message.contains("no node matches"),
        "{}",
        job.status.message
    );
}
