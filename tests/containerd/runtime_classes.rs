//! Images are unpacked for every snapshotter that containers are started from.

use containerd_client::services::v1::snapshots::Kind;
use prewarm::image::Engine;
use prewarm::image::containerd::Containerd;

use super::node::{Node, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::busybox;
use support::parts;
use support::registry::Registry;

/// The default runtime class, and one with a snapshotter of its own.
fn class(version: ContainerdVersion) -> String {
    let plugin = match version {
        ContainerdVersion::V1_6 | ContainerdVersion::V1_7 => "io.containerd.grpc.v1.cri",
        ContainerdVersion::V2_1 => "io.containerd.cri.v1.runtime",
    };
    format!(
        r#"
[plugins."{plugin}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{plugin}".containerd.runtimes.copies]
runtime_type = "io.containerd.runc.v2"
snapshotter = "native"
"#
    )
}

async fn start(version: ContainerdVersion) -> Node {
    let daemon = support::containerd::Containerd::start_with_config(version, &class(version)).await;
    let runtime = Containerd::connect(settings(&daemon)).unwrap();
    Node { daemon, runtime }
}

async fn unpacked_for_both(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = registry.push("busybox", "1", &image).await;
    let report = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Native));
    assert_eq!(report.bytes_registry, image.size() as u64, "fetched once");
    let layers = node.snapshots(Kind::Committed).await;
    assert!(!layers.is_empty());
    node.collect().await;
    for snapshotter in ["overlayfs", "native"] {
        let mut kept = node.snapshots_of(snapshotter, Kind::Committed).await;
        let mut layers = layers.clone();
        kept.sort();
        layers.sort();
        assert_eq!(kept, layers, "{snapshotter} on {version:?}");
        let left = node.snapshots_of(snapshotter, Kind::Active).await;
        assert_eq!(left, Vec::<String>::new(), "{snapshotter} on {version:?}");
    }
    assert!(
        node.pull(&request(&pushed.by_tag))
            .await
            .unwrap()
            .already_present
    );

    // What the class lost is put there again, without the registry.
    node.daemon
        .ctr(&[
            "snapshots",
            "--snapshotter",
            "native",
            "remove",
            &layers[layers.len() - 1],
        ])
        .await;
    let mark = registry.mark().await;
    assert!(
        !node
            .pull(&request(&pushed.by_tag))
            .await
            .unwrap()
            .already_present
    );
    assert_eq!(registry.requests_since(mark).await, []);
    let again = node.snapshots_of("native", Kind::Committed).await;
    assert_eq!(again.len(), layers.len(), "{version:?}");
}

#[tokio::test]
async fn an_image_is_unpacked_for_the_snapshotter_of_each_runtime_class_on_containerd_1_7() {
    unpacked_for_both(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn an_image_is_unpacked_for_the_snapshotter_of_each_runtime_class_on_containerd_2_1() {
    unpacked_for_both(ContainerdVersion::V2_1).await;
}

/// What containerd is set up with is asked once for each of its starts.
#[tokio::test]
async fn a_class_that_comes_with_a_restart_of_containerd_is_noticed() {
    let registry = Registry::start().await;
    let mut node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = registry.push("busybox", "1", &image).await;
    let request = request(&pushed.by_tag);
    node.pull(&request).await.unwrap();
    assert!(node.pull(&request).await.unwrap().already_present);
    let of_class = node.snapshots_of("native", Kind::Committed).await;
    assert_eq!(of_class, Vec::<String>::new());
    let class = class(ContainerdVersion::V1_7);
    node.daemon.restart_with_config(&class).await;
    assert!(!node.pull(&request).await.unwrap().already_present);
    let of_class = node.snapshots_of("native", Kind::Committed).await;
    assert_eq!(of_class, node.snapshots(Kind::Committed).await);
}
