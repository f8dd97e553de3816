//! Jobs that are submitted again under the same name: while they run, after they ended, after they are gone.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::Outcome;
use prewarm::wire::event::{JobEventKind, PullState};
use prewarm::wire::subject::JobVerb;
use serde_json::json;

use crate::cell::{Cell, LIMIT, native};
use crate::node::{Setup, name, names};
use crate::support::wait::eventually;

#[tokio::test]
async fn issue_2221_an_edited_timeout_holds_for_what_is_released_later() {
    let cell = Cell::start().await;
    cell.silent("node-1", &[]).await;
    let _slow = cell.worker(Setup::new("node-2").latency("10m")).await;
    let job = |timeout: u32, retries: u32| {
        json!({
            "images": ["large:1"], "parallelism": 1,
            "pullPolicy": {"timeoutSeconds": timeout, "backoffLimit": retries},
        })
    };
    cell.submit("job", job(600, 3)).await;
    let tasks = cell.released("job", 1).await;
    cell.submit("job", job(1, 0)).await;
    cell.tell_success(&tasks[0]).await;
    let job = cell.ended("job").await;
    assert_eq!(tasks[0].pull_policy.timeout_seconds, 600);
    let failure = &job.status.failures[0];
    assert_eq!(
        (failure.kind, &failure.nodes[..]),
        (FailureKind::Timeout, &[name("node-2")][..])
    );
    assert!(failure.message.contains("(1 s)"), "{}", failure.message);
    assert_eq!(job.metadata.generation, 1);
}

#[tokio::test]
async fn issue_1386_an_edit_after_completion_runs_again() {
    let cell = Cell::start().await;
    let _node = cell.node("node").await;
    let job = |image: &str| json!({"images": [image]});
    let first = cell.submit("job", job("app:1")).await;
    cell.ended("job").await;
    cell.submit("job", job("app:2")).await;
    cell.job("job", "ended again", |job| {
        job.metadata.generation == 2 && job.status.outcome == Some(Outcome::Succeeded)
    })
    .await;
    // openkruise/kruise#1419: the way back is an edit like any other.
    cell.submit("job", job("app:1")).await;
    let third = cell
        .job("job", "ended a third time", |job| {
            job.metadata.generation == 3 && job.status.outcome == Some(Outcome::Succeeded)
        })
        .await;
    assert_eq!(third.metadata.uid, first.metadata.uid);
    let told = cell.told(Some("job")).await.into_iter();
    let ended = told.filter(|kept| kept.body.state == PullState::Succeeded);
    let present: Vec<bool> = ended
        .map(|kept| kept.body.result.unwrap().already_present)
        .collect();
    assert_eq!(present, [false, false, true]);
    // It is told after the record is written.
    cell.job_event(Some("job"), JobEventKind::Completed, 3)
        .await;
    assert_eq!(
        cell.job_events(Some("job"), JobEventKind::Completed)
            .await
            .len(),
        3
    );
}

#[tokio::test]
async fn an_edited_image_in_the_middle_of_a_pull_stops_it_and_leaves_nothing_behind() {
    let cell = Cell::start().await;
    let _node = cell
        .worker(Setup::new("node").latency("10m").capacity(1))
        .await;
    cell.submit("job", json!({"images": ["app:1"]})).await;
    cell.hears("job", PullState::Started).await;
    cell.submit("job", json!({"images": ["app:2"]})).await;
    // With one slot the new image can only start when the old one has let go.
    eventually("a pull of the new image", LIMIT, async || {
        let told = cell.told(Some("job")).await;
        told.iter().any(|kept| kept.body.image.tag() == Some("2"))
    })
    .await;
    let tasks = cell.released("job", 1).await;
    assert_eq!(
        (tasks[0].image.tag(), tasks[0].run.generation),
        (Some("2"), 2)
    );
}

#[tokio::test]
async fn an_edited_selector_moves_the_job_at_once() {
    let cell = Cell::start().await;
    for node in ["a", "b", "c"] {
        cell.silent(node, &[]).await;
    }
    let job = |names: &[&str]| json!({"images": ["app:1"], "selector": {"names": names}});
    cell.submit("job", job(&["a", "b"])).await;
    let tasks = cell.released("job", 2).await;
    cell.submit("job", job(&["b", "c"])).await;
    let job_now = cell
        .job("job", "for b and c", |job| job.status.counts.active == 2)
        .await;
    assert_eq!(job_now.status.counts.desired, 2);
    let now = cell.released("job", 2).await;
    assert_eq!(names(&now), ["b", "c"]);
    for task in [&tasks[1], &now[1]] {
        cell.tell_success(task).await;
    }
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 2);
}

#[tokio::test]
async fn edited_pull_secrets_reach_what_is_released_later() {
    // Kruise's webhook refuses the edit.
    let cell = Cell::start().await;
    for node in ["a", "b"] {
        cell.silent(node, &[]).await;
    }
    let job =
        |secret: &str| json!({"images": ["app:1"], "parallelism": 1, "pullSecrets": [secret]});
    cell.submit("job", job("old")).await;
    let tasks = cell.released("job", 1).await;
    cell.submit("job", job("new")).await;
    cell.tell_success(&tasks[0]).await;
    let tasks = cell.released("job", 2).await;
    assert_eq!(tasks[0].pull_secrets, ["old"]);
    assert_eq!(tasks[1].pull_secrets, ["new"]);
}

#[tokio::test]
async fn issue_2213_a_list_lives_until_its_last_image_has_its_turn_and_is_deleted_once() {
    // In Kruise the child of an image that was quick is deleted by its TTL and made anew while others run.
    let cell = Cell::start().await;
    let _quick = cell.node("quick").await;
    let _slow = cell.worker(Setup::new("slow").latency("2s")).await;
    let ear = cell.listen().await;
    let spec = json!({
        "images": ["app:1", "app:2"], "completionPolicy": {"ttlSecondsAfterFinished": 1},
    });
    cell.submit("list", spec).await;
    cell.gone("list").await;
    assert_eq!(ear.hears_tasks("list", 4).await.len(), 4);
    let ended = cell.nodes_that_told("list", PullState::Succeeded).await;
    assert_eq!(ended, ["quick", "quick", "slow", "slow"]);
    // It is the last that is told, after the record went.
    cell.job_event(Some("list"), JobEventKind::Deleted, 1).await;
    for (kind, times) in [
        (JobEventKind::Accepted, 1),
        (JobEventKind::Completed, 1),
        (JobEventKind::Deleted, 1),
    ] {
        assert_eq!(
            cell.job_events(Some("list"), kind).await.len(),
            times,
            "{kind:?}"
        );
    }
}

#[tokio::test]
async fn issue_2213_a_job_that_was_deleted_by_its_ttl_can_be_made_anew() {
    let cell = Cell::start().await;
    let _node = cell.node("node").await;
    let spec = json!({"images": ["app:1"], "completionPolicy": {"ttlSecondsAfterFinished": 0}});
    let mut uids = vec![];
    for run in 1..=3 {
        // It may be gone before anyone has read that it was accepted.
        let manifest = native("job", spec.clone());
        cell.publish(JobVerb::Submit, &manifest).await;
        let deleted = cell
            .job_event(Some("job"), JobEventKind::Deleted, run)
            .await;
        assert_eq!(deleted.outcome, Some(Outcome::Succeeded));
        uids.push(deleted.run.unwrap().uid);
        cell.gone("job").await;
    }
    uids.dedup();
    assert_eq!(uids.len(), 3);
}

#[tokio::test]
async fn a_job_that_is_deleted_and_made_anew_in_the_middle_of_a_pull_runs() {
    let cell = Cell::start().await;
    let _node = cell.worker(Setup::new("node").latency("1s")).await;
    let first = cell.submit("job", json!({"images": ["app:1"]})).await;
    cell.hears("job", PullState::Started).await;
    cell.order(JobVerb::Delete, "job").await;
    let second = cell.submit("job", json!({"images": ["app:1"]})).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    let job = cell.ended("job").await;
    assert_eq!(job.metadata.uid, second.metadata.uid);
    assert_eq!(job.status.counts.succeeded, 1);
}

#[tokio::test]
async fn a_cancelled_job_counts_what_was_done_and_can_be_run_again() {
    let cell = Cell::start().await;
    let _quick = cell.node("quick").await;
    let slow = cell.worker(Setup::new("slow").latency("10m")).await;
    let spec = json!({"images": ["app:1"]});
    cell.submit("job", spec.clone()).await;
    cell.succeeded("job", 1).await;
    cell.order(JobVerb::Cancel, "job").await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.outcome, Some(Outcome::Cancelled));
    assert_eq!(
        (job.status.counts.succeeded, job.status.counts.cancelled),
        (1, 1)
    );
    cell.no_tasks("job").await;
    slow.stop().await;
    let _slow = cell.node("slow").await;
    cell.submit("job", spec).await;
    assert_eq!(cell.succeeded("job", 2).await.metadata.generation, 2);
}

#[tokio::test]
async fn issue_2221_an_edited_timeout_of_a_never_job_reaches_nodes_that_join_later() {
    let cell = Cell::start().await;
    cell.silent("early", &[]).await;
    let job = |timeout: u32| {
        json!({
            "images": ["large:1"], "pullPolicy": {"timeoutSeconds": timeout},
            "completionPolicy": {"type": "Never"},
        })
    };
    cell.submit("job", job(60)).await;
    let tasks = cell.released("job", 1).await;
    cell.tell_failure(&tasks[0]).await;
    cell.no_tasks("job").await;
    let edited = cell.submit("job", job(3_600)).await;
    assert_eq!(edited.metadata.generation, 1, "what is warm stays so");
    cell.silent("late", &[]).await;
    // The round of the other has ended, and its task is gone.
    let late = cell.released("job", 1).await;
    assert_eq!(names(&late), ["late"]);
    assert_eq!(late[0].pull_policy.timeout_seconds, 3_600);
}
