//! Images that are half there: a record alone is not believed, and only what is missing is brought.

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    DeleteContentRequest, DeleteImageRequest, content_client::ContentClient,
    images_client::ImagesClient,
};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;

use super::node::{Node, request};
use super::support;
use support::containerd::{ContainerdVersion, NAMESPACE};
use support::images::{Format, Image, busybox};
use support::parts;
use support::registry::Registry;
use support::run_container::run_container;

async fn delete_content(node: &Node, digest: &str) {
    let request = DeleteContentRequest {
        digest: digest.to_owned(),
    };
    let mut client = ContentClient::new(node.daemon.channel().await);
    client
        .delete(with_namespace!(request, NAMESPACE))
        .await
        .unwrap();
    node.collect().await;
}

async fn delete_snapshots(node: &Node) {
    let mut client = SnapshotsClient::new(node.daemon.channel().await);
    for key in node.snapshots(Kind::Committed).await {
        let request = RemoveSnapshotRequest {
            snapshotter: "overlayfs".to_owned(),
            key,
        };
        client
            .remove(with_namespace!(request, NAMESPACE))
            .await
            .unwrap();
    }
}

async fn delete_name(node: &Node, name: &str) {
    let request = DeleteImageRequest {
        name: name.to_owned(),
        sync: false,
        target: None,
    };
    let mut client = ImagesClient::new(node.daemon.channel().await);
    client
        .delete(with_namespace!(request, NAMESPACE))
        .await
        .unwrap();
}

#[tokio::test]
async fn whatever_is_missing_is_brought_and_the_rest_is_not() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let busybox = busybox(&parts::program("busybox", "busybox")).build();
    let image = Image::index(Format::Oci, std::slice::from_ref(&busybox));
    let pushed = registry.push("busybox", "1", &image).await;
    let request = request(&pushed.by_tag);
    node.pull(&request).await.unwrap();

    let pull_again = async |what: &str, fetched: usize| {
        let report = node.pull(&request).await.unwrap();
        assert!(
            !report.already_present,
            "without {what} it was taken for whole"
        );
        assert_eq!(report.bytes_registry, fetched as u64, "without {what}");
        assert!(
            node.pull(&request).await.unwrap().already_present,
            "{what} is not repaired"
        );
        let printed = run_container(&node.daemon, &pushed.by_tag, &["/bin/echo", "x"]).await;
        assert_eq!(printed, "x\n");
    };
    let (config, layer) = (&busybox.blobs[0], &busybox.blobs[1]);
    for blob in [config, layer] {
        delete_content(&node, &blob.digest).await;
        pull_again("a blob", blob.bytes.len()).await;
    }
    for manifest in [&image.target, &image.manifests[0]] {
        delete_content(&node, &manifest.digest).await;
        // What it kept went with it.
        pull_again("a manifest", busybox.size()).await;
    }
    let mark = registry.mark().await;
    delete_snapshots(&node).await;
    pull_again("snapshots", 0).await;
    for name in [&pushed.by_digest, &pushed.config] {
        delete_name(&node, name).await;
        pull_again("a name", 0).await;
    }
    let requests = registry.requests_since(mark).await;
    assert_eq!(
        requests,
        [],
        "what is on the node was asked of the registry"
    );
}

#[tokio::test]
async fn an_image_that_ctr_pulled_gets_the_names_that_pods_look_for() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = registry.push("busybox", "1", &image).await;
    node.daemon
        .ctr(&["images", "pull", "--plain-http", &pushed.by_tag])
        .await;
    let cri = node.daemon.cri().await;
    assert!(cri.image_status(&pushed.by_digest).await.unwrap().is_none());
    let mark = registry.mark().await;
    let report = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert!(!report.already_present);
    assert_eq!(registry.requests_since(mark).await, []);
    support::wait::eventually(
        "CRI to see the digest",
        super::node::COLLECTION_LIMIT,
        async || cri.image_status(&pushed.by_digest).await.unwrap(),
    )
    .await;
}
