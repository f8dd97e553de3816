//! Kruise's `test/e2e/apps/v1beta1/pullimages.go`, scenario by scenario. Its "fake" node has a label and nobody who
//! works on it.

use prewarm::domain::status::Outcome;
use prewarm::wire::event::{JobEventKind, PullState};
use prewarm::wire::subject::JobVerb;
use serde_json::json;

use crate::cell::{Cell, LIMIT};
use crate::guarded::{Guarded, encoded};
use crate::read::Ear;
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

/// An `ImagePullJob` with this specification, as YAML with its fields at the margin.
fn pull_job(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps.kruise.io/v1beta1\nkind: ImagePullJob\nmetadata:\n  name: {name}\nspec:\n  {}\n",
        spec.trim().replace('\n', "\n  ")
    )
}

/// No message may carry a password, in whatever form.
fn nobody_said(ear: &Ear, password: &str) {
    let heard = ear.heard();
    assert!(
        heard
            .iter()
            .any(|heard| heard.subject.starts_with("prewarm.task."))
    );
    for heard in heard {
        let all = format!("{} {} {}", heard.subject, heard.headers, heard.body);
        assert!(!all.contains(password), "{all}");
        assert!(!all.contains(&encoded(password)), "{all}");
    }
}

#[tokio::test]
async fn pullimages_117_with_a_secret_and_cleaned_after_its_ttl() {
    let guarded = Guarded::start("first-password").await;
    guarded.write_secret("team-registry", "first-password");
    let cell = Cell::that_asks(guarded.registry()).await;
    let ear = cell.listen().await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    cell.silent("fake", &[("fake", "true")]).await;
    let spec = format!(
        "image: {}
pullSecrets: [team-registry]
selector:
  matchExpressions: [{{key: fake, operator: DoesNotExist}}]
parallelism: 5
pullPolicy: {{timeoutSeconds: 50, backoffLimit: 2}}
completionPolicy: {{type: Always, activeDeadlineSeconds: 50, ttlSecondsAfterFinished: 1}}",
        guarded.image()
    );
    let job = cell.apply(&pull_job("with-secret", &spec)).await;
    assert_eq!(job.status.counts.desired, 2);
    let completed = cell
        .job_event(Some("with-secret"), JobEventKind::Completed, 1)
        .await;
    assert_eq!(completed.counts.unwrap().succeeded, 2);
    cell.gone("with-secret").await;
    cell.job_event(Some("with-secret"), JobEventKind::Deleted, 1)
        .await;
    let tasks = ear.hears_tasks("with-secret", 2).await;
    assert_eq!(tasks.len(), 2);
    for task in tasks {
        assert_eq!(task.pull_secrets, ["team-registry"]);
        // So the secret opened the registry.
        assert_eq!(task.digest, Some(guarded.digest()));
    }
    nobody_said(&ear, "first-password");
}

#[tokio::test]
async fn pullimages_204_with_a_secret_and_kept_without_a_ttl() {
    let guarded = Guarded::start("kept-password").await;
    guarded.write_secret("team-registry", "kept-password");
    let cell = Cell::that_asks(guarded.registry()).await;
    let ear = cell.listen().await;
    let _node = cell.node("node-1").await;
    let spec = format!(
        "image: {}\npullSecrets: [team-registry]\nparallelism: 1",
        guarded.image()
    );
    cell.apply(&pull_job("kept", &spec)).await;
    assert_eq!(cell.ended("kept").await.status.counts.succeeded, 1);
    cell.no_tasks("kept").await;
    // A whole life with a TTL passes meanwhile.
    let spec = format!("{spec}\ncompletionPolicy: {{ttlSecondsAfterFinished: 1}}");
    cell.apply(&pull_job("short", &spec)).await;
    cell.gone("short").await;
    let kept = cell.record("kept").await.unwrap();
    assert_eq!(kept.status.outcome, Some(Outcome::Succeeded));
    for job in ["kept", "short"] {
        let tasks = ear.hears_tasks(job, 1).await;
        // Without the secret, nobody could say what the tag means.
        assert_eq!(tasks[0].digest, Some(guarded.digest()), "{job}");
        assert_eq!(tasks[0].pull_secrets, ["team-registry"], "{job}");
    }
    nobody_said(&ear, "kept-password");
}

#[tokio::test]
async fn pullimages_286_never_with_a_secret_that_is_updated() {
    let guarded = Guarded::start("first-password").await;
    guarded.write_secret("team-registry", "first-password");
    let cell = Cell::that_asks(guarded.registry()).await;
    let ear = cell.listen().await;
    let _node = cell.node("node-1").await;
    let spec = json!({
        "images": [guarded.image()], "pullSecrets": ["team-registry"], "imagePullPolicy": "Always",
        "completionPolicy": {"type": "Never", "repeatSeconds": 1},
    });
    cell.submit("never", spec).await;
    let means = async |digest| {
        let what = format!("resolved to {digest} and pulled");
        cell.job("never", &what, |job| {
            let resolved = job
                .status
                .images
                .first()
                .and_then(|image| image.digest.as_ref());
            resolved == Some(&digest) && job.status.counts.succeeded == 1
        })
        .await
    };
    means(guarded.digest()).await;
    guarded.change("second-password");
    guarded.write_secret("team-registry", "second-password");
    let job = means(guarded.digest()).await;
    assert!(job.status.round > 1);
    assert_eq!(job.status.completed_at, None);
    cell.order(JobVerb::Delete, "never").await;
    cell.gone("never").await;
    nobody_said(&ear, "first-password");
    nobody_said(&ear, "second-password");
}

#[tokio::test]
async fn pullimages_390_always_on_all_nodes_with_a_dockercfg_secret() {
    let guarded = Guarded::start("old-password").await;
    guarded.write_old_secret("old-form", "old-password");
    let cell = Cell::that_asks(guarded.registry()).await;
    let ear = cell.listen().await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    let spec = format!(
        "image: {}
pullSecrets: [old-form]
parallelism: 5
completionPolicy: {{type: Always, activeDeadlineSeconds: 600, ttlSecondsAfterFinished: 1}}",
        guarded.image()
    );
    cell.apply(&pull_job("all", &spec)).await;
    let completed = cell
        .job_event(Some("all"), JobEventKind::Completed, 1)
        .await;
    assert_eq!(completed.counts.unwrap().succeeded, 2);
    cell.gone("all").await;
    let tasks = ear.hears_tasks("all", 1).await;
    assert_eq!(tasks[0].digest, Some(guarded.digest()));
    nobody_said(&ear, "old-password");
}

async fn always_on_one_node_by_name(version: NatsVersion) {
    let cell = Cell::on(version).await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    let spec = "image: nginx:1.9.1\nselector: {names: [node-2]}\nparallelism: 1";
    cell.apply(&pull_job("one", spec)).await;
    let counts = cell.ended("one").await.status.counts;
    assert_eq!((counts.desired, counts.succeeded), (1, 1));
    assert_eq!(
        cell.nodes_that_told("one", PullState::Succeeded).await,
        ["node-2"]
    );
    cell.order(JobVerb::Delete, "one").await;
    cell.gone("one").await;
}

#[tokio::test]
async fn pullimages_454_always_on_one_node_by_name() {
    always_on_one_node_by_name(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn pullimages_454_always_on_one_node_by_name_on_2_10() {
    always_on_one_node_by_name(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn pullimages_500_never_on_all_nodes_does_not_wait_for_the_fake_one() {
    let cell = Cell::start().await;
    cell.silent("fake", &[("fake", "true")]).await;
    let _nodes = (cell.node("node-1").await, cell.node("node-2").await);
    let spec = "image: nginx:1.9.1\nparallelism: 2\ncompletionPolicy: {type: Never}";
    cell.apply(&pull_job("never", spec)).await;
    let job = cell.succeeded("never", 2).await;
    assert_eq!(
        (job.status.counts.desired, job.status.counts.active),
        (3, 1)
    );
    assert_eq!((job.status.completed_at, job.status.outcome), (None, None));
}

#[tokio::test]
async fn pullimages_542_two_jobs_with_the_same_image_on_the_same_node() {
    let cell = Cell::start().await;
    let _node = cell.node("node-1").await;
    let spec = "image: nginx:1.9.1\nselector: {names: [node-1]}\nparallelism: 1";
    cell.apply(&pull_job("first", spec)).await;
    cell.apply(&pull_job("second", spec)).await;
    for job in ["first", "second"] {
        let counts = cell.ended(job).await.status.counts;
        assert_eq!((counts.desired, counts.succeeded), (1, 1), "{job}");
    }
}

#[tokio::test]
async fn a_secret_that_nobody_has_does_not_keep_a_job_from_ending() {
    // openkruise/kruise#2381: such a job was unfinished for ever.
    let guarded = Guarded::start("a-password").await;
    let cell = Cell::that_asks(guarded.registry()).await;
    let _node = cell.node("node-1").await;
    let spec = format!("image: {}\npullSecrets: [missing]", guarded.image());
    cell.apply(&pull_job("locked-out", &spec)).await;
    let job = cell.ended("locked-out").await;
    let problem = job.status.images[0].problem.clone().unwrap_or_default();
    assert!(problem.contains("missing"), "{problem}");
    eventually("the node to have tried for itself", LIMIT, async || {
        !cell.told(Some("locked-out")).await.is_empty()
    })
    .await;
}
