//! How many pulls of a job are out at once.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::JobPhase;
use serde_json::json;

use crate::cell::Cell;
use crate::node::{Setup, fated, names};
use crate::support::nats::NatsVersion;

/// Most pulls of a job that were released and unfinished at one time, by the broker's own clock. The job has to be
/// unfinished: then every task it released is still kept.
async fn most_at_once(cell: &Cell, job: &str) -> i32 {
    let tasks = cell.tasks(job).await.into_iter().map(|kept| (kept.at, 1));
    let told = cell.told(Some(job)).await.into_iter();
    let ended = told.filter(|kept| kept.body.state.is_terminal());
    let mut changes: Vec<(i128, i32)> = ended.map(|kept| (kept.at, -1)).chain(tasks).collect();
    changes.sort_unstable();
    let mut now = 0;
    let counts = changes.into_iter().map(|(_, change)| {
        now += change;
        now
    });
    counts.max().unwrap_or(0)
}

/// openkruise/kruise#1271 and #2208: the active pulls exceeded the limit. Here a node that does nothing holds two of
/// four slots for good, one node's pulls fail and back off, and the dispatcher is killed on the way.
async fn never_exceeded(version: NatsVersion) {
    let mut cell = Cell::on(version).await;
    cell.silent("stuck", &[]).await;
    let passing = Some(FailureKind::RegistryUnavailable);
    let flaky = fated("flaky", &[("app:1", &[passing, None]), ("app:2", &[None])]).await;
    let mut workers = vec![cell.worker(Setup::new("flaky").runtime(flaky)).await];
    for n in 1..=8 {
        let setup = Setup::new(&format!("node-{n}")).latency("20ms..90ms");
        workers.push(cell.worker(setup).await);
    }
    cell.submit(
        "base",
        json!({"images": ["app:1", "app:2"], "parallelism": 4}),
    )
    .await;
    cell.job("base", "on its way", |job| job.status.counts.succeeded > 0)
        .await;
    cell.kill_dispatcher().await;
    cell.dispatch(|_| {}).await;
    let job = cell.succeeded("base", 18).await;
    assert_eq!((job.status.counts.active, job.status.counts.failed), (2, 0));
    assert_eq!(most_at_once(&cell, "base").await, 4);
}

#[tokio::test]
async fn issue_1271_parallelism_is_never_exceeded() {
    never_exceeded(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn issue_1271_parallelism_is_never_exceeded_on_2_10() {
    never_exceeded(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn kruise_default_is_one_pull_at_a_time() {
    let cell = Cell::start().await;
    for node in ["a", "b"] {
        cell.silent(node, &[]).await;
    }
    let manifest = "apiVersion: apps.kruise.io/v1beta1\nkind: ImageListPullJob\nmetadata: {name: job}\nspec: {images: [app:1, app:2]}\n";
    cell.apply(manifest).await;
    for pull in 1..=4 {
        let tasks = cell.released("job", pull).await;
        assert_eq!(most_at_once(&cell, "job").await, 1);
        cell.tell_success(&tasks[pull - 1]).await;
    }
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 4);
}

#[tokio::test]
async fn parallelism_zero_pauses_and_a_number_goes_on() {
    let cell = Cell::start().await;
    for node in ["a", "b", "c", "d"] {
        cell.silent(node, &[]).await;
    }
    let edit = async |parallelism: u32| {
        let spec = json!({"images": ["app:1"], "parallelism": parallelism});
        cell.submit("job", spec).await
    };
    assert_eq!(edit(0).await.status.counts.pending, 4);
    edit(2).await;
    let tasks = cell.released("job", 2).await;
    edit(0).await;
    for task in &tasks {
        cell.tell_success(task).await;
    }
    // What is out may end; nothing follows it.
    let job = cell
        .job("job", "drained", |job| job.status.counts.active == 0)
        .await;
    assert_eq!(
        (job.status.counts.succeeded, job.status.counts.pending),
        (2, 2)
    );
    assert_eq!(cell.tasks("job").await.len(), 2);
    edit(1).await;
    let tasks = cell.released("job", 3).await;
    assert_eq!(names(&tasks), ["a", "b", "c"]);
    cell.tell_success(&tasks[2]).await;
    let tasks = cell.released("job", 4).await;
    cell.tell_success(&tasks[3]).await;
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 4);
}

#[tokio::test]
async fn parallelism_zero_gives_no_absent_node_up() {
    let mut cell = Cell::broker(NatsVersion::V2_15).await;
    cell.gone_for_an_hour("gone", &[]).await;
    cell.dispatch(|_| {}).await;
    let spec = json!({"images": ["app:1"], "parallelism": 0});
    cell.submit("job", spec).await;
    cell.job("job", "resolved", |job| {
        job.status.phase == JobPhase::Running || job.status.outcome.is_some()
    })
    .await;
    // A job that comes later and ends shows that this one had its chance to end.
    cell.submit("later", json!({"images": ["app:1"]})).await;
    assert_eq!(cell.ended("later").await.status.counts.failed, 1);
    let job = cell.record("job").await.unwrap();
    assert_eq!((job.status.outcome, job.status.counts.pending), (None, 1));
    cell.submit("job", json!({"images": ["app:1"], "parallelism": 1}))
        .await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.failures[0].kind, FailureKind::NodeAbsent);
}

#[tokio::test]
async fn a_changed_parallelism_holds_from_then_on() {
    let cell = Cell::start().await;
    let nodes = ["a", "b", "c", "d", "e", "f"];
    for node in nodes {
        cell.silent(node, &[]).await;
    }
    let edit = async |parallelism: serde_json::Value| {
        let spec = json!({"images": ["app:1"], "parallelism": parallelism});
        cell.submit("job", spec).await
    };
    edit(json!(1)).await;
    cell.released("job", 1).await;
    edit(json!("50%")).await;
    let tasks = cell.released("job", 3).await;
    // Lowered below what is out: nothing is taken back, and nothing follows until there is room.
    edit(json!(2)).await;
    for (task, (ended, kept)) in tasks.iter().zip([(1, 3), (2, 4)]) {
        cell.tell_success(task).await;
        let job = cell.succeeded("job", ended).await;
        assert_eq!(job.status.counts.active, 2);
        assert_eq!(cell.tasks("job").await.len(), kept);
    }
    assert_eq!(most_at_once(&cell, "job").await, 3);
}
