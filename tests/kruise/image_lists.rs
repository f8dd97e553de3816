//! Kruise's `test/e2e/apps/imagelistpulljobs.go`, and what `cloneset.go` expects of the jobs that a rollout makes.
//! Where Kruise has a job for each image of the list, here one job has them all.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::{JobPhase, Outcome};
use prewarm::wire::event::{JobEventKind, PullState};
use prewarm::wire::subject::JobVerb;

use crate::cell::Cell;
use crate::node::names;
use crate::support::nats::NatsVersion;

fn list_job(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps.kruise.io/v1beta1\nkind: ImageListPullJob\nmetadata:\n  name: {name}\nspec:\n  {}\n",
        spec.trim().replace('\n', "\n  ")
    )
}

#[tokio::test]
async fn imagelistpulljobs_98_two_images_always_cleaned_after_the_ttl() {
    let cell = Cell::start().await;
    let ear = cell.listen().await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    let spec = "images: [nginx:1.9.1, busybox:1.32]
parallelism: 5
imagePullPolicy: Always
completionPolicy: {type: Always, activeDeadlineSeconds: 50, ttlSecondsAfterFinished: 1}";
    let job = cell.apply(&list_job("two", spec)).await;
    assert_eq!(
        (job.status.counts.desired, job.status.nodes.desired),
        (4, 2)
    );
    let completed = cell
        .job_event(Some("two"), JobEventKind::Completed, 1)
        .await;
    assert_eq!(completed.counts.unwrap().succeeded, 4);
    assert_eq!(completed.outcome, Some(Outcome::Succeeded));
    cell.gone("two").await;
    let mut images: Vec<String> = ear
        .tasks("two")
        .iter()
        .map(|task| task.image.to_string())
        .collect();
    images.sort();
    images.dedup();
    assert_eq!(
        images,
        [
            "docker.io/library/busybox:1.32",
            "docker.io/library/nginx:1.9.1"
        ]
    );
}

#[tokio::test]
async fn imagelistpulljobs_158_one_node_then_deleted_with_all_that_belongs_to_it() {
    let cell = Cell::start().await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    let spec = "images: [nginx:1.9.1, busybox:1.32]\nselector: {names: [node-1]}\nparallelism: 5";
    cell.apply(&list_job("one", spec)).await;
    let counts = cell.ended("one").await.status.counts;
    assert_eq!((counts.desired, counts.succeeded), (2, 2));
    assert_eq!(
        cell.nodes_that_told("one", PullState::Succeeded).await,
        ["node-1", "node-1"]
    );
    cell.order(JobVerb::Delete, "one").await;
    cell.gone("one").await;
}

/// A list job on a node that works and one that has not been there for an hour.
async fn with_a_fake_node(version: NatsVersion, completion: &str) -> (Cell, crate::node::Worker) {
    let mut cell = Cell::broker(version).await;
    cell.gone_for_an_hour("fake", &[]).await;
    cell.dispatch(|_| {}).await;
    let node = cell.node("node-1").await;
    let spec = format!(
        "images: [nginx:1.9.1, busybox:1.32]\nparallelism: 5\ncompletionPolicy: {{type: {completion}}}"
    );
    cell.apply(&list_job("with-fake", &spec)).await;
    (cell, node)
}

async fn always_ends_with_the_fake_node_failed(version: NatsVersion) {
    let (cell, _node) = with_a_fake_node(version, "Always").await;
    let job = cell.ended("with-fake").await;
    assert_eq!(job.status.outcome, Some(Outcome::PartiallyFailed));
    let counts = job.status.counts;
    assert_eq!((counts.desired, counts.succeeded, counts.failed), (4, 2, 2));
    assert_eq!(
        (job.status.nodes.succeeded, job.status.nodes.failed),
        (1, 1)
    );
    let [group] = &job.status.failures[..] else {
        panic!("{:?}", job.status.failures)
    };
    assert_eq!((group.kind, group.pulls), (FailureKind::NodeAbsent, 2));
    assert_eq!(group.nodes, [crate::node::name("fake")]);
}

#[tokio::test]
async fn imagelistpulljobs_214_always_ends_with_the_fake_node_failed() {
    always_ends_with_the_fake_node_failed(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn imagelistpulljobs_214_always_ends_with_the_fake_node_failed_on_2_10() {
    always_ends_with_the_fake_node_failed(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn imagelistpulljobs_262_never_is_done_but_for_the_fake_node_and_goes_on() {
    let (cell, _node) = with_a_fake_node(NatsVersion::V2_15, "Never").await;
    let round = cell
        .job_event(Some("with-fake"), JobEventKind::RoundCompleted, 1)
        .await;
    assert_eq!(round.counts.unwrap().succeeded, 2);
    let job = cell
        .job("with-fake", "idle", |job| {
            job.status.phase == JobPhase::Idle
        })
        .await;
    assert_eq!(
        (job.status.nodes.desired, job.status.nodes.succeeded),
        (2, 1)
    );
    assert_eq!(
        (job.status.completed_at, job.status.counts.pending),
        (None, 2)
    );
    let message = job.status.message;
    assert!(message.contains("2 wait for absent nodes"), "{message}");
}

#[tokio::test]
async fn cloneset_1792_an_image_update_is_one_job_with_the_new_image() {
    // A rollout tool asks for the next image on the nodes of its workload; then it asks for another one.
    let cell = Cell::start().await;
    for node in ["node-1", "node-2", "node-3"] {
        cell.silent(node, &[]).await;
    }
    let job = |image: &str| {
        format!(
            "apiVersion: apps.kruise.io/v1alpha1
kind: ImagePullJob
metadata: {{name: clone-predownload, labels: {{app: shop}}}}
spec:
  image: {image}
  selector: {{names: [node-1, node-2, node-3]}}
  parallelism: 2
  pullPolicy: {{timeoutSeconds: 300, backoffLimit: 1}}
  completionPolicy: {{type: Always, ttlSecondsAfterFinished: 600}}
"
        )
    };
    cell.apply(&job("shop:1.9.1")).await;
    let tasks = cell.released("clone-predownload", 2).await;
    assert_eq!(names(&tasks), ["node-1", "node-2"]);
    let record = cell.apply(&job("shop:1.9.2")).await;
    assert_eq!(record.metadata.labels["app"], "shop");
    assert_eq!(record.spec.images[0].tag(), Some("1.9.2"));
    cell.job("clone-predownload", "with two out again", |job| {
        job.metadata.generation == 2 && job.status.counts.active == 2
    })
    .await;
    for task in cell.released("clone-predownload", 2).await {
        assert_eq!((task.image.tag(), task.run.generation), (Some("1.9.2"), 2));
    }
    assert_eq!(cell.job_events(None, JobEventKind::Accepted).await.len(), 2);
}
