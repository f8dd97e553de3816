//! Nodes that come, go, or change while a job is there.

use prewarm::domain::status::JobPhase;
use prewarm::wire::event::PullState;
use prewarm::wire::subject::JobVerb;
use serde_json::json;

use crate::cell::Cell;
use crate::node::Setup;

const NEVER: &str = "Never";

#[tokio::test]
async fn issue_1217_a_new_node_gets_the_images_of_never_jobs_at_once() {
    let cell = Cell::start().await;
    let _first = cell.node("node-1").await;
    let spec = json!({"images": ["app:1", "app:2"], "completionPolicy": {"type": NEVER}});
    cell.submit("base", spec).await;
    cell.job("base", "idle", |job| job.status.phase == JobPhase::Idle)
        .await;
    let _second = cell.node("node-2").await;
    let job = cell.succeeded("base", 4).await;
    assert_eq!((job.status.nodes.desired, job.status.round), (2, 1));
    assert_eq!(
        cell.nodes_that_told("base", PullState::Succeeded).await,
        ["node-1", "node-1", "node-2", "node-2"]
    );
}

#[tokio::test]
async fn a_new_node_joins_a_job_that_is_unfinished_and_not_one_that_has_ended() {
    let cell = Cell::start().await;
    cell.silent("slow", &[]).await;
    let _first = cell.node("node-1").await;
    let spec = json!({
        "images": ["app:1"], "pullPolicy": {"timeoutSeconds": 1}, "completionPolicy": {"activeDeadlineSeconds": 1},
    });
    cell.submit("ended", spec).await;
    assert_eq!(cell.ended("ended").await.status.counts.desired, 2);
    cell.submit("running", json!({"images": ["app:1"]})).await;
    let tasks = cell.released("running", 2).await;
    let _late = cell.node("node-2").await;
    let job = cell.succeeded("running", 2).await;
    assert_eq!(job.status.counts.desired, 3);
    let slow = tasks.iter().find(|task| task.node.as_str() == "slow");
    cell.tell_success(slow.unwrap()).await;
    assert_eq!(cell.ended("running").await.status.counts.succeeded, 3);
    assert_eq!(cell.record("ended").await.unwrap().status.counts.desired, 2);
}

#[tokio::test]
async fn an_empty_selector_takes_all_nodes_wave_after_wave() {
    // Kruise lists all nodes for `selector: {}` and then hears nothing of them: the job stalls after the first wave.
    let cell = Cell::start().await;
    let _nodes = (
        cell.node("node-1").await,
        cell.node("node-2").await,
        cell.labelled("node-3", &[("a", "b")]).await,
    );
    let manifest = "apiVersion: apps.kruise.io/v1alpha1\nkind: ImagePullJob\nmetadata: {name: job}\nspec: {image: 'app:1', selector: {}, parallelism: 1, completionPolicy: {type: Never}}\n";
    cell.apply(manifest).await;
    cell.succeeded("job", 3).await;
    let _late = cell.node("node-4").await;
    assert_eq!(cell.succeeded("job", 4).await.status.nodes.desired, 4);
}

#[tokio::test]
async fn a_relabelled_node_joins_and_leaves_jobs() {
    let cell = Cell::start().await;
    let job = |pool: &str| json!({"images": ["app:1"], "selector": {"matchLabels": {"pool": pool}}, "completionPolicy": {"type": NEVER}});
    cell.submit("blue", job("blue")).await;
    cell.submit("green", job("green")).await;
    let node = cell.labelled("node", &[("pool", "blue")]).await;
    cell.succeeded("blue", 1).await;
    node.stop().await;
    let _node = cell.labelled("node", &[("pool", "green")]).await;
    cell.succeeded("green", 1).await;
    cell.job("blue", "for no node", |job| job.status.counts.desired == 0)
        .await;
}

#[tokio::test]
async fn a_node_that_is_relabelled_in_the_middle_of_a_pull_gives_its_slot_back() {
    let cell = Cell::start().await;
    let old = [("pool", "blue")];
    let setup = Setup::new("node-1").labels(&old).latency("60s");
    let leaving = cell.worker(setup).await;
    let _other = cell.labelled("node-2", &old).await;
    let spec = json!({"images": ["app:1"], "parallelism": 1, "selector": {"matchLabels": {"pool": "blue"}}});
    cell.submit("job", spec).await;
    assert_eq!(
        cell.hears("job", PullState::Started).await.node.as_str(),
        "node-1"
    );
    // Its worker is replaced by one with another label, as a changed setting does it.
    leaving.kill().await;
    let _left = cell.labelled("node-1", &[("pool", "green")]).await;
    let job = cell.ended("job").await;
    assert_eq!(
        (job.status.counts.desired, job.status.counts.succeeded),
        (1, 1)
    );
    assert_eq!(
        cell.nodes_that_told("job", PullState::Succeeded).await,
        ["node-2"]
    );
}

#[tokio::test]
async fn a_deleted_never_job_leaves_new_nodes_alone() {
    let cell = Cell::start().await;
    let _first = cell.node("node-1").await;
    for job in ["deleted", "kept"] {
        let spec = json!({"images": [format!("{job}:1")], "completionPolicy": {"type": NEVER}});
        cell.submit(job, spec).await;
        cell.succeeded(job, 1).await;
    }
    cell.order(JobVerb::Delete, "deleted").await;
    cell.gone("deleted").await;
    let _second = cell.node("node-2").await;
    cell.succeeded("kept", 2).await;
    assert_eq!(
        cell.nodes_that_told("deleted", PullState::Succeeded).await,
        ["node-1"]
    );
}
