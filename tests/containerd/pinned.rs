//! Pins on real containerd: kubelet sees them, and the last one that is taken back takes CRI's label along.

use containerd_client::services::v1::{Image, UpdateImageRequest, images_client::ImagesClient};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use std::time::Duration;

use prewarm::domain::pin::Pin;
use prewarm::image::PullRequest;

use super::node::{Node, moved_tag, on_all, pull, request};
use super::support;
use support::containerd::{ContainerdVersion, NAMESPACE};
use support::images::generated;
use support::registry::Registry;
use support::wait::eventually;

/// How long CRI may take to learn of a changed label.
const LIMIT: Duration = Duration::from_secs(20);
const PINNED: &str = "io.cri-containerd.pinned";

pub fn pin(uid: &str, generation: u32) -> Pin {
    Pin {
        uid: uid.to_owned(),
        image: "0123456789ab".to_owned(),
        generation,
    }
}

fn pinned(image: &str, uid: &str) -> PullRequest {
    let mut request = request(image);
    request.pin = Some(pin(uid, 1));
    request
}

/// Waits until kubelet would see the image pinned, or not. containerd 1.6 knows no pins, and shows none.
async fn shown(node: &Node, image: &str, pinned: bool) {
    let cri = node.daemon.cri().await;
    let pinned = pinned && node.daemon.version() != ContainerdVersion::V1_6;
    let what = format!("{image} to be shown as pinned: {pinned}");
    eventually(&what, LIMIT, async || {
        let status = cri.image_status(image).await.unwrap();
        let is_pinned = status.map(|image| image.pinned);
        (is_pinned == Some(pinned)).then_some(()).ok_or(is_pinned)
    })
    .await;
}

/// Whether every record has CRI's label, or none has.
async fn labelled(node: &Node) -> bool {
    let labels: Vec<bool> = (node.images().await.iter())
        .map(|image| image.labels.get(PINNED).map(String::as_str) == Some("pinned"))
        .collect();
    assert!(labels.windows(2).all(|two| two[0] == two[1]), "{labels:?}");
    labels[0]
}

/// Labels that begin so, of all records.
async fn own_labels(node: &Node) -> Vec<String> {
    let images = node.images().await.into_iter();
    let labels = images.flat_map(|image| image.labels.into_keys());
    labels
        .filter(|key| key.starts_with("dev.prewarm"))
        .collect()
}

async fn two_jobs_hold_one_image(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(1, 2, 20_000).build();
    let pushed = registry.push("app", "1", &image).await;
    assert_eq!(node.runtime.pins().await.unwrap(), []);

    let first = node.pull(&pinned(&pushed.by_tag, "a-1")).await.unwrap();
    assert!(!first.already_present);
    for name in [&pushed.by_tag, &pushed.by_digest, &pushed.config] {
        shown(&node, name, true).await;
    }
    let second = node.pull(&pinned(&pushed.by_tag, "b-1")).await.unwrap();
    assert!(second.already_present, "a pin is no reason to pull");
    // A worker that starts finds them on the image.
    let runtime = node.another_runtime();
    let mut found = runtime.pins().await.unwrap();
    found.sort();
    assert_eq!(found, [pin("a-1", 1), pin("b-1", 1)]);

    runtime
        .unpin(&[pin("a-1", 1), pin("c-1", 1)])
        .await
        .unwrap();
    assert!(labelled(&node).await);
    shown(&node, &pushed.by_tag, true).await;
    assert_eq!(runtime.pins().await.unwrap(), [pin("b-1", 1)]);

    // The job's next generation pins anew; a word about the one before comes late.
    let mut later = pinned(&pushed.by_tag, "b-1");
    later.pin = Some(pin("b-1", 2));
    assert!(pull(&runtime, &later).await.unwrap().already_present);
    runtime.unpin(&[pin("b-1", 1)]).await.unwrap();
    assert_eq!(runtime.pins().await.unwrap(), [pin("b-1", 2)]);
    assert!(labelled(&node).await);

    runtime.unpin(&[pin("b-1", 2)]).await.unwrap();
    for name in [&pushed.by_tag, &pushed.by_digest, &pushed.config] {
        shown(&node, name, false).await;
    }
    assert!(!labelled(&node).await);
    assert_eq!(own_labels(&node).await, Vec::<String>::new());
    let again = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert!(again.already_present, "it is as complete as before");
}

#[tokio::test]
async fn an_image_is_pinned_until_the_last_job_lets_go() {
    on_all(two_jobs_hold_one_image).await;
}

/// Pins a record as an operator would.
async fn pin_by_hand(node: &Node, name: &str) {
    let labels = [(PINNED.to_owned(), "pinned".to_owned())].into();
    let record = node.image(name).await.unwrap();
    let update = UpdateImageRequest {
        image: Some(Image { labels, ..record }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![format!("labels.{PINNED}")],
        }),
        source_date_epoch: None,
    };
    ImagesClient::new(node.daemon.channel().await)
        .update(with_namespace!(update, NAMESPACE))
        .await
        .unwrap();
}

async fn a_pin_of_somebody_else(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(2, 1, 20_000).build();
    let pushed = registry.push("app", "1", &image).await;
    node.pull(&request(&pushed.by_tag)).await.unwrap();
    pin_by_hand(&node, &pushed.by_tag).await;
    node.pull(&pinned(&pushed.by_tag, "a-1")).await.unwrap();
    assert!(labelled(&node).await);
    node.runtime.unpin(&[pin("a-1", 1)]).await.unwrap();
    assert_eq!(own_labels(&node).await, Vec::<String>::new());
    let record = node.image(&pushed.by_tag).await.unwrap();
    assert_eq!(record.labels[PINNED], "pinned");
    let other = node.image(&pushed.by_digest).await.unwrap();
    assert!(!other.labels.contains_key(PINNED));
    shown(&node, &pushed.by_tag, true).await;
}

#[tokio::test]
async fn a_pin_that_somebody_else_set_stays() {
    on_all(a_pin_of_somebody_else).await;
}

#[tokio::test]
async fn what_the_tag_meant_before_is_held_no_longer() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let first = moved_tag(&registry).await;
    let mut fixed = pinned(&first.by_tag, "a-1");
    fixed.digest = Some(first.digest.parse().unwrap());
    node.pull(&fixed).await.unwrap();
    shown(&node, &first.by_digest, true).await;

    let mut moved = pinned(&first.by_tag, "a-1");
    moved.policy = prewarm::domain::job::ImagePullPolicy::Always;
    let report = node.pull(&moved).await.unwrap();
    assert_ne!(report.digest.as_str(), first.digest);
    shown(&node, &first.by_digest, false).await;
    shown(&node, &first.by_tag, true).await;
    assert_eq!(node.runtime.pins().await.unwrap(), [pin("a-1", 1)]);
}
