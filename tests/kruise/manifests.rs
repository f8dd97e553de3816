//! Kruise's manifests as its users write them: the three of the article that introduced ImagePullJob in March 2021 (its
//! fields, our wording), and each kind in each version.

use prewarm::domain::job::{Amount, CompletionType, ImagePullPolicy};
use prewarm::domain::status::JobPhase;
use prewarm::wire::event::{JobEventKind, PullState};

use crate::cell::Cell;
use crate::node::Worker;
use crate::support::nats::NatsVersion;

async fn base_image_stays_warm_on_nodes_that_join_late(version: NatsVersion) {
    let cell = Cell::on(version).await;
    // Nobody is there yet: the job waits.
    let job = cell.apply(include_str!("manifests/base-image.yaml")).await;
    assert_eq!(job.spec.parallelism, Amount::Count(10));
    assert_eq!(job.spec.completion_policy.kind, CompletionType::Never);
    assert_eq!(job.spec.pull_policy.timeout_seconds, 300);
    assert_eq!(job.spec.pull_policy.backoff_limit, 3);
    let mut nodes = vec![];
    for n in 1..=12 {
        nodes.push(cell.node(&format!("node-{n}")).await);
    }
    cell.succeeded("base-image-job", 12).await;
    cell.job("base-image-job", "idle", |job| {
        job.status.phase == JobPhase::Idle
    })
    .await;
    nodes.push(cell.node("late-1").await);
    nodes.push(cell.node("late-2").await);
    let job = cell.succeeded("base-image-job", 14).await;
    assert_eq!(
        (job.status.nodes.desired, job.status.nodes.succeeded),
        (14, 14)
    );
    assert_eq!((job.status.outcome, job.status.completed_at), (None, None));
}

#[tokio::test]
async fn article_base_image_stays_warm_on_nodes_that_join_late() {
    base_image_stays_warm_on_nodes_that_join_late(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn article_base_image_stays_warm_on_nodes_that_join_late_on_2_10() {
    base_image_stays_warm_on_nodes_that_join_late(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn article_sidecar_is_pulled_once_everywhere_by_nodes_that_join_in_time() {
    let cell = Cell::start().await;
    cell.silent("slow", &[]).await;
    let mut nodes: Vec<Worker> = vec![];
    for n in 1..=3 {
        nodes.push(cell.node(&format!("node-{n}")).await);
    }
    let job = cell.apply(include_str!("manifests/sidecar.yaml")).await;
    assert_eq!(job.spec.parallelism, Amount::Count(20));
    assert_eq!(
        job.spec.completion_policy.active_deadline_seconds,
        Some(1_800)
    );
    assert_eq!(
        job.spec.completion_policy.ttl_seconds_after_finished,
        Some(300)
    );
    let tasks = cell.released("sidecar-job", 4).await;
    nodes.push(cell.node("late").await);
    cell.succeeded("sidecar-job", 4).await;
    let slow = tasks
        .iter()
        .find(|task| task.node.as_str() == "slow")
        .unwrap();
    let started = cell.record("sidecar-job").await.unwrap().status.started_at;
    let expires = started
        .unwrap()
        .after(std::time::Duration::from_secs(1_800));
    assert_eq!(slow.expires_at, Some(expires));
    cell.tell_success(slow).await;
    let job = cell.ended("sidecar-job").await;
    assert_eq!(
        (job.status.counts.desired, job.status.counts.succeeded),
        (5, 5)
    );
    // Afterwards it is too late.
    nodes.push(cell.node("too-late").await);
    let nodes = cell
        .nodes_that_told("sidecar-job", PullState::Started)
        .await;
    assert_eq!(nodes, ["late", "node-1", "node-2", "node-3"]);
}

#[tokio::test]
async fn article_resource_pool_is_warm_on_its_nodes_and_on_no_other() {
    let cell = Cell::start().await;
    let pool = [("resource-pool", "serverless"), ("zone", "a")];
    let mut nodes = vec![
        cell.labelled("pool-1", &pool).await,
        cell.labelled("other-1", &[("resource-pool", "batch")])
            .await,
        cell.node("other-2").await,
    ];
    cell.apply(include_str!("manifests/resource-pool.yaml"))
        .await;
    cell.succeeded("serverless-job", 1).await;
    nodes.push(cell.node("late-other").await);
    nodes.push(cell.labelled("late-pool", &pool).await);
    let job = cell.succeeded("serverless-job", 2).await;
    assert_eq!(job.status.counts.desired, 2);
    let nodes = cell
        .nodes_that_told("serverless-job", PullState::Succeeded)
        .await;
    assert_eq!(nodes, ["late-pool", "pool-1"]);
}

#[tokio::test]
async fn every_kind_in_every_version_runs_unchanged() {
    let cell = Cell::start().await;
    let ear = cell.listen().await;
    let _nodes = (
        cell.labelled("node-1", &[("pool", "warm")]).await,
        cell.labelled("node-2", &[("pool", "hot"), ("virtual", "yes")])
            .await,
        cell.node("node-3").await,
    );
    for (manifest, job, pulls, kind) in [
        (
            include_str!("manifests/image-pull-job-v1alpha1.yaml"),
            "one-image-alpha",
            2,
            JobEventKind::Completed,
        ),
        (
            include_str!("manifests/image-pull-job-v1beta1.yaml"),
            "one-image-beta",
            1,
            JobEventKind::RoundCompleted,
        ),
        (
            include_str!("manifests/image-list-pull-job-v1alpha1.yaml"),
            "shop.many-images-alpha",
            2,
            JobEventKind::Completed,
        ),
        (
            include_str!("manifests/image-list-pull-job-v1beta1.yaml"),
            "many-images-beta",
            9,
            JobEventKind::RoundCompleted,
        ),
    ] {
        cell.apply(manifest).await;
        let done = cell.job_event(Some(job), kind, 1).await;
        let counts = done.counts.unwrap();
        assert_eq!((counts.desired, counts.succeeded), (pulls, pulls), "{job}");
    }
    let task = &ear.hears_tasks("one-image-alpha", 1).await[0];
    assert_eq!(task.pull_secrets, ["team-registry"]);
    assert_eq!(task.image_pull_policy, ImagePullPolicy::Always);
    // What `sandboxConfig` says goes onto the image and into the events.
    assert_eq!(task.labels["app"], "web");
    let told = cell.hears("one-image-alpha", PullState::Succeeded).await;
    assert_eq!(told.labels["app"], "web");
    assert_eq!(
        told.annotations["io.kubernetes.image.metrics.tags"],
        "cluster=a"
    );
}
