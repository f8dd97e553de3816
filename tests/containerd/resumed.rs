//! What one has begun, another goes on with: kubelet's own pulls and ours write a layer under the same reference.

use std::time::Duration;

use prewarm::domain::progress::PullProgress;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::faulty::{Fault, Faulty};
use super::node::{COLLECTION_LIMIT, Node, on_all, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Image, generated};
use support::wait::eventually;

/// How long a test waits for a pull to reach a point.
const LIMIT: Duration = Duration::from_secs(20);
const LAYER_BYTES: usize = 4_000_000;

/// A node, an image of one layer, and a registry that stops in the middle of the layer when it is first asked for it.
struct Scene {
    node: Node,
    image: Image,
    registry: Faulty,
}

impl Scene {
    async fn set(version: ContainerdVersion) -> Self {
        let image = generated(1, 1, LAYER_BYTES).build();
        let layer = &image.blobs[1];
        let registry = Faulty::serve(&image).await;
        let held = Fault::HoldAfter(layer.bytes.len() / 4 * 3);
        registry.break_next(&layer.digest, [held]);
        let node = Node::start(version).await;
        node.daemon.allow_registry(registry.addr());
        Self {
            node,
            image,
            registry,
        }
    }

    fn name(&self) -> String {
        self.registry.image()
    }

    /// Waits until a part of the layer is in the content store.
    async fn is_begun(&self) {
        eventually("a part of the layer to be written", LIMIT, async || {
            let ingests = self.node.ingests().await;
            let begun = ingests
                .iter()
                .any(|(name, offset)| name.contains("layer-") && *offset > 0);
            if begun { Ok(()) } else { Err(ingests) }
        })
        .await;
    }

    /// The ranges that the layer was asked for.
    fn ranges(&self) -> Vec<Option<String>> {
        self.registry.ranges(&self.image.blobs[1].digest)
    }

    /// It was asked for twice: for all of it, and for the rest of it.
    fn was_resumed(&self, version: ContainerdVersion) {
        let ranges = self.ranges();
        let [None, Some(rest)] = &ranges[..] else {
            panic!("{version:?}: {ranges:?}");
        };
        assert!(rest.starts_with("bytes=") && rest != "bytes=0-", "{rest}");
    }

    async fn nothing_is_left(&self) {
        eventually("the pulls' traces to go", COLLECTION_LIMIT, async || {
            self.node.is_clean().await
        })
        .await;
    }
}

async fn kubelet_after_us(version: ContainerdVersion) {
    let scene = Scene::set(version).await;
    let request = request(&scene.name());
    {
        let pulling = std::pin::pin!(scene.node.pull(&request));
        tokio::select! {
            outcome = pulling => panic!("the pull ended: {outcome:?}"),
            () = scene.is_begun() => {}
        }
    }
    let cri = scene.node.daemon.cri().await;
    cri.pull_image(&scene.name()).await.unwrap();
    scene.was_resumed(version);
}

#[tokio::test]
async fn kubelets_pull_goes_on_where_ours_stopped() {
    on_all(kubelet_after_us).await;
}

/// Only a containerd that dies leaves what a pull of its own has brought; one that is cancelled is cleaned up.
async fn we_after_kubelet(version: ContainerdVersion) {
    let mut scene = Scene::set(version).await;
    let cri = scene.node.daemon.cri().await;
    let name = scene.name();
    {
        let pulling = std::pin::pin!(cri.pull_image(&name));
        tokio::select! {
            outcome = pulling => panic!("the pull ended: {outcome:?}"),
            () = scene.is_begun() => {}
        }
    }
    scene.node.daemon.kill();
    scene.node.daemon.restart().await;
    let report = scene.node.pull(&request(&name)).await.unwrap();
    scene.was_resumed(version);
    assert!(report.bytes_present > 0, "{report:?}");
    assert!(
        report.bytes_registry < scene.image.size() as u64,
        "{report:?}"
    );
}

#[tokio::test]
async fn ours_goes_on_where_kubelets_pull_stopped() {
    on_all(we_after_kubelet).await;
}

async fn we_beside_kubelet(version: ContainerdVersion) {
    let scene = Scene::set(version).await;
    let cri = scene.node.daemon.cri().await;
    let (name, request) = (scene.name(), request(&scene.name()));
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let cancelled = CancellationToken::new();
    let ours = async {
        scene.is_begun().await;
        let runtime = &scene.node.runtime;
        let pulled = runtime.pull(&request, &progress, &cancelled).await;
        // Else the wait for its progress is all that is seen to fail.
        pulled.inspect_err(|failure| println!("{failure}"))
    };
    let opening = async {
        // What kubelet's pull has of the layer is progress of ours.
        let followed = seen.wait_for(|progress| progress.bytes_done > 100_000);
        tokio::time::timeout(LIMIT, followed)
            .await
            .expect("progress by another's bytes")
            .unwrap();
        scene.registry.let_go();
    };
    let (theirs, ours, ()) = tokio::join!(cri.pull_image(&name), ours, opening);
    theirs.unwrap();
    let report = ours.unwrap();
    assert_eq!(scene.ranges(), [None], "{version:?}");
    let layer = scene.image.blobs[1].bytes.len() as u64;
    assert!(report.bytes_registry < layer, "{report:?}");
    scene.nothing_is_left().await;
}

#[tokio::test]
async fn a_pull_that_kubelet_has_begun_is_followed() {
    on_all(we_beside_kubelet).await;
}
