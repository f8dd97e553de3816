//! What jobs put on nodes: digests, the same image twice, lists with images in common, and newer images under old tags.

use std::collections::BTreeSet;

use prewarm::domain::image::Digest;
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::status::Outcome;
use prewarm::wire::event::{PullState, TaskEvent};
use prewarm::wire::subject::JobVerb;
use serde_json::json;

use crate::cell::Cell;
use crate::guarded::open_to;
use crate::node::Setup;
use crate::read::Kept;
use crate::support::images::generated;
use crate::support::registry::Registry;

#[tokio::test]
async fn issue_2534_digest_references_are_pulled_by_their_digest() {
    // Kruise puts the digest into the place of the tag, and every such pull fails.
    let cell = Cell::start().await;
    let ear = cell.listen().await;
    let _node = cell.node("node").await;
    let digest = Digest::of(b"an image");
    for (job, image) in [
        ("by-digest", format!("registry.invalid/app@{digest}")),
        ("by-both", format!("registry.invalid/app:1@{digest}")),
    ] {
        let manifest = format!(
            "apiVersion: apps.kruise.io/v1beta1\nkind: ImagePullJob\nmetadata: {{name: {job}}}\nspec: {{image: '{image}'}}\n"
        );
        cell.apply(&manifest).await;
        let ended = cell.ended(job).await;
        assert_eq!(ended.status.counts.succeeded, 1);
        assert_eq!(ended.status.images[0].digest.as_ref(), Some(&digest));
        let task = &ear.hears_tasks(job, 1).await[0];
        assert_eq!(
            (task.image.to_string(), &task.digest),
            (image, &Some(digest.clone()))
        );
        let told = cell.hears(job, PullState::Succeeded).await;
        assert_eq!(told.result.unwrap().digest, digest);
    }
}

#[tokio::test]
async fn issue_1517_two_jobs_on_one_image_both_finish_and_share_one_pull() {
    let cell = Cell::start().await;
    let _nodes = (
        cell.worker(Setup::new("node-1").latency("500ms")).await,
        cell.worker(Setup::new("node-2").latency("500ms")).await,
    );
    cell.submit("one", json!({"images": ["app:1"]})).await;
    cell.hears("one", PullState::Started).await;
    cell.submit("two", json!({"images": ["app:1"]})).await;
    for job in ["one", "two"] {
        assert_eq!(cell.ended(job).await.status.counts.succeeded, 2);
    }
    for node in ["node-1", "node-2"] {
        let told = cell.told(None).await.into_iter().map(|kept| kept.body);
        let ended = told.filter(|event| event.node.as_str() == node && event.state.is_terminal());
        let bytes: Vec<u64> = ended
            .map(|event| event.result.unwrap().bytes_registry)
            .collect();
        let transferred = bytes.iter().filter(|bytes| **bytes > 0).count();
        assert_eq!((bytes.len(), transferred), (2, 1), "{node}: {bytes:?}");
    }
}

#[tokio::test]
async fn a_job_that_is_deleted_in_the_middle_of_a_shared_pull_leaves_the_other_to_finish() {
    let cell = Cell::start().await;
    let _node = cell.worker(Setup::new("node").latency("8s")).await;
    for job in ["deleted", "kept"] {
        cell.submit(job, json!({"images": ["app:1"]})).await;
        cell.released(job, 1).await;
    }
    cell.hears("deleted", PullState::Started).await;
    cell.order(JobVerb::Delete, "deleted").await;
    assert_eq!(cell.ended("kept").await.status.counts.succeeded, 1);
    let told = cell.nodes_that_told("deleted", PullState::Succeeded).await;
    assert!(told.is_empty());
}

#[tokio::test]
async fn list_jobs_with_images_in_common_do_not_overwrite_each_other() {
    // Kruise keeps secrets and policies by repository, and the last writer wins.
    let cell = Cell::start().await;
    for node in ["node-1", "node-2"] {
        cell.silent(node, &[]).await;
    }
    let list = |images: [&str; 2], policy: &str, secret: &str, timeout: u32| {
        json!({
            "images": images, "imagePullPolicy": policy, "pullSecrets": [secret],
            "pullPolicy": {"timeoutSeconds": timeout, "backoffLimit": 0},
        })
    };
    cell.submit("one", list(["app:1", "app:2"], "Always", "first", 10))
        .await;
    cell.submit(
        "two",
        list(["app:2", "app:3"], "IfNotPresent", "second", 20),
    )
    .await;
    let one = cell.released("one", 4).await;
    let two = cell.released("two", 4).await;
    for (tasks, policy, secret, timeout) in [
        (&one, ImagePullPolicy::Always, "first", 10),
        (&two, ImagePullPolicy::IfNotPresent, "second", 20),
    ] {
        for task in tasks {
            assert_eq!(task.image_pull_policy, policy);
            assert_eq!(task.pull_secrets, [secret]);
            assert_eq!(task.pull_policy.timeout_seconds, timeout);
        }
    }
    // What is told of the one says nothing of the other.
    for task in &one {
        cell.tell_failure(task).await;
    }
    assert_eq!(cell.ended("one").await.status.counts.failed, 4);
    assert_eq!(cell.record("two").await.unwrap().status.counts.failed, 0);
    for task in &two {
        cell.tell_success(task).await;
    }
    assert_eq!(cell.ended("two").await.status.counts.succeeded, 4);
}

#[tokio::test]
async fn many_jobs_on_the_same_nodes_all_complete() {
    // openkruise/kruise#1517, #2483: many jobs wrote to one object for each node, and some were never finished.
    let cell = Cell::start().await;
    let mut workers = vec![];
    for n in 1..=5 {
        workers.push(cell.node(&format!("node-{n}")).await);
    }
    let jobs: Vec<String> = (1..=30).map(|n| format!("job-{n}")).collect();
    for (n, job) in jobs.iter().enumerate() {
        let images = [
            "common:1".to_owned(),
            format!("own:{n}"),
            format!("app:{}", n % 4),
        ];
        cell.submit(job, json!({"images": images, "parallelism": 2}))
            .await;
    }
    for job in &jobs {
        assert_eq!(cell.ended(job).await.status.counts.succeeded, 15, "{job}");
    }
    let told = cell.told(None).await.into_iter();
    let ended = told.filter(|kept| kept.body.state.is_terminal());
    let pulls: Vec<_> = ended
        .map(|kept| (kept.body.job, kept.body.node, kept.body.image.token()))
        .collect();
    let different: BTreeSet<_> = pulls.iter().collect();
    assert_eq!((pulls.len(), different.len()), (450, 450));
}

#[tokio::test]
async fn issue_1814_always_refreshes_a_moved_tag_and_if_not_present_does_not() {
    let registry = Registry::start().await;
    let (access, _settings) = open_to(&registry);
    let cell = Cell::that_asks(access).await;
    let _node = cell.node("node").await;
    let old = registry
        .push("app", "1", &generated(1, 1, 100).build())
        .await;
    let pulled = async |job: &str, policy: &str| {
        let manifest = format!(
            "apiVersion: apps.kruise.io/v1alpha1\nkind: ImagePullJob\nmetadata: {{name: {job}}}\nspec: {{image: '{}', imagePullPolicy: {policy}}}\n",
            old.by_tag
        );
        cell.apply(&manifest).await;
        cell.ended(job).await;
        let result = cell.hears(job, PullState::Succeeded).await.result.unwrap();
        (result.digest.to_string(), result.already_present)
    };
    assert_eq!(pulled("first", "Always").await, (old.digest.clone(), false));
    assert_eq!(pulled("again", "Always").await, (old.digest.clone(), true));
    let new = registry
        .push("app", "1", &generated(2, 1, 100).build())
        .await;
    assert_ne!(old.digest, new.digest);
    assert_eq!(
        pulled("lazy", "IfNotPresent").await,
        (old.digest.clone(), true)
    );
    assert_eq!(pulled("fresh", "Always").await, (new.digest.clone(), false));
}

#[tokio::test]
async fn a_tag_that_moves_in_the_middle_of_a_job_is_one_image_on_all_nodes() {
    let registry = Registry::start().await;
    let (access, _settings) = open_to(&registry);
    let cell = Cell::that_asks(access).await;
    let _first = cell.node("node-1").await;
    cell.silent("slow", &[]).await;
    let old = registry
        .push("app", "1", &generated(1, 1, 100).build())
        .await;
    cell.submit("job", json!({"images": [old.by_tag]})).await;
    cell.succeeded("job", 1).await;
    registry
        .push("app", "1", &generated(2, 1, 100).build())
        .await;
    let _second = cell.node("node-2").await;
    cell.succeeded("job", 2).await;
    for kept in cell.tasks("job").await {
        assert_eq!(kept.body.digest.unwrap().to_string(), old.digest);
    }
}

/// There, a runtime that said "already exists" had failed.
#[tokio::test]
async fn issue_547_an_image_that_is_there_already_is_a_success() {
    let cell = Cell::start().await;
    let _node = cell.node("node").await;
    for (job, present) in [("first", false), ("second", true), ("third", true)] {
        cell.submit(job, json!({"images": ["app:1"]})).await;
        let ended = cell.ended(job).await;
        assert_eq!(ended.status.outcome, Some(Outcome::Succeeded), "{job}");
        assert_eq!(ended.status.failures, [], "{job}");
        let told = cell.hears(job, PullState::Succeeded).await;
        let result = told.result.unwrap();
        assert_eq!(result.already_present, present, "{job}");
        assert_eq!(result.bytes_registry == 0, present, "{job}");
        assert_eq!(told.attempt, 1, "{job}");
    }
}

/// There, the second image was pulled five minutes after the first: an expectation of its cache had to time out.
#[tokio::test]
async fn issue_1528_a_second_image_follows_the_first_at_once() {
    let cell = Cell::start().await;
    let _node = cell.node("node").await;
    let spec = json!({"images": ["app:1", "app:2"], "parallelism": 1});
    cell.submit("list", spec).await;
    cell.ended("list").await;
    let told = cell.told(Some("list")).await;
    let at = |tag: &str, state: PullState| {
        let of = |kept: &&Kept<TaskEvent>| {
            kept.body.image.tag() == Some(tag) && kept.body.state == state
        };
        told.iter().find(of).unwrap().at
    };
    let pause = at("2", PullState::Started) - at("1", PullState::Succeeded);
    assert!(pause < 10_000_000_000, "{pause} ns");
}
