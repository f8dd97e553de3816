//! Images are pinned while their job lives, on real nodes, whatever was down when it was deleted.

use serde_json::json;

use super::cell::{Cell, LIMIT, Node, worker};
use crate::support::containerd::ContainerdVersion;
use crate::support::images::generated;
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

/// Waits until kubelet would see the image pinned, or not.
async fn shown(node: &Node, image: &str, pinned: bool) {
    let cri = node.containerd.cri().await;
    let what = format!("{image} on {} to be shown as pinned: {pinned}", node.name);
    eventually(&what, LIMIT, async || {
        let status = cri.image_status(image).await.unwrap();
        let is_pinned = status.map(|image| image.pinned);
        let log = || format!("{is_pinned:?}; worker:\n{}", node.worker.log());
        (is_pinned == Some(pinned)).then_some(()).ok_or_else(log)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_goes_with_its_job_also_from_a_node_that_was_away() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = generated(5, 2, 50_000).build();
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let address = cell.registry.addr();
    let stays = cell.node("stays", ContainerdVersion::V2_1, &address).await;
    let mut leaves = cell.node("leaves", ContainerdVersion::V1_7, &address).await;
    for job in ["one", "other"] {
        let spec = json!({"images": [pushed.by_tag], "pin": true});
        cell.publish(job, spec).await;
        cell.ended(job).await;
    }
    for node in [&stays, &leaves] {
        shown(node, &pushed.by_tag, true).await;
    }
    leaves.worker.kill9();
    assert_eq!(cell.run(&["delete", "one"]).await.code, 0);
    assert_eq!(cell.run(&["delete", "other"]).await.code, 0);
    shown(&stays, &pushed.by_tag, false).await;
    shown(&leaves, &pushed.by_tag, true).await;
    leaves.worker = worker(&cell.nats, "leaves", &leaves.containerd);
    shown(&leaves, &pushed.by_tag, false).await;
}
