//! What goes wrong, and how it is told.

use serde_json::json;

use super::cell::Cell;
use crate::support::containerd::ContainerdVersion;
use crate::support::images::generated;
use crate::support::nats::NatsVersion;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_exist_fails_at_once_and_says_so() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let _node = cell
        .node("node", ContainerdVersion::V1_7, &cell.registry.addr())
        .await;
    let image = format!("{}/team/nothing:1", cell.registry.addr());
    let output = cell
        .run(&["run", &image, "--name", "missing", "--wait"])
        .await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("ImageNotFound"), "{output:?}");
    let described = cell.run(&["describe", "job", "missing"]).await;
    assert!(
        described.stdout.contains("ImageNotFound") && described.stdout.contains("node"),
        "{described:?}"
    );
    let record = cell.record("missing").await.unwrap();
    assert_eq!(record.status.failures.len(), 1);
    assert!(
        record.status.failures[0].message.contains("team/nothing"),
        "{record:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_is_tried_again_and_then_named() {
    let mut cell = Cell::start(NatsVersion::V2_15).await;
    let _node = cell
        .node("node", ContainerdVersion::V1_7, &cell.registry.addr())
        .await;
    cell.registry.kill();
    let image = format!("{}/team/app:1", cell.registry.addr());
    cell.publish(
        "down",
        json!({"images": [image], "pullPolicy": {"backoffLimit": 1}}),
    )
    .await;
    let record = cell.ended("down").await;
    assert_eq!(
        record.status.failures[0].kind.as_str(),
        "RegistryUnavailable",
        "{record:?}"
    );
    assert!(
        record.status.failures[0]
            .message
            .contains(&cell.registry.addr()),
        "{record:?}"
    );
    let events = cell.run(&["events", "--job", "down", "-o", "json"]).await;
    assert!(
        events.stdout.contains("dev.prewarm.task.retrying"),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_comes_back_is_found_again() {
    let mut cell = Cell::start(NatsVersion::V2_15).await;
    let pushed = cell
        .registry
        .push("team/app", "1", &generated(5, 1, 10_000).build())
        .await;
    let mut node = cell
        .node("node", ContainerdVersion::V1_7, &cell.registry.addr())
        .await;
    cell.registry.kill();
    // More tries than docker-registry takes seconds to come back.
    let policy = json!({"backoffLimit": 20});
    cell.publish(
        "back",
        json!({"images": [pushed.by_tag], "pullPolicy": policy}),
    )
    .await;
    node.worker
        .logs("RegistryUnavailable", super::cell::LIMIT)
        .await;
    cell.registry.restart().await;
    let record = cell.ended("back").await;
    assert_eq!(record.status.counts.succeeded, 1, "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_no_node_completes_and_says_so() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    cell.publish(
        "nowhere",
        json!({"images": ["r.invalid/a:1"], "selector": {"names": ["nobody"]}}),
    )
    .await;
    let record = cell.ended("nowhere").await;
    assert_eq!(record.status.counts.desired, 0);
    assert!(
        record.status.message.contains("no node matches"),
        "{record:?}"
    );
}
