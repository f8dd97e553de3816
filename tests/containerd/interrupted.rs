//! Pulls that do not come to their end leave nothing behind that is wrong, and nothing that is lost.

use std::time::Duration;

use containerd_client::services::v1::CreateRequest;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use prewarm::domain::failure::FailureKind;
use prewarm::domain::progress::{PullPhase, PullProgress};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::faulty::{Fault, Faulty};
use super::node::{COLLECTION_LIMIT, Node, on_all, pull, request};
use super::support;
use support::containerd::{ContainerdVersion, NAMESPACE};
use support::gate::Gate;
use support::images::{Image, generated};
use support::registry::Registry;
use support::wait::eventually;

/// How long a test waits for a pull to reach a point.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a layer that is in the middle of its way when the gate closes.
const LAYER_BYTES: usize = 4_000_000;

async fn nothing_is_left(node: &Node) {
    eventually("the pull's traces to go", COLLECTION_LIMIT, async || {
        node.is_clean().await
    })
    .await;
    assert_eq!(node.images().await, []);
}

async fn cancel_while_downloading(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    registry
        .push("app", "1", &generated(1, 3, LAYER_BYTES).build())
        .await;
    let gate = Gate::closed_after(LAYER_BYTES, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let (progress, _) = watch::channel(PullProgress::default());
    let cancelled = CancellationToken::new();
    let request = request(&format!("{}/app:1", gate.addr()));
    let pulling = node.runtime.pull(&request, &progress, &cancelled);
    let cancelling = async {
        gate.holds(LIMIT).await;
        assert!(!node.leases().await.is_empty(), "nothing to leave behind");
        cancelled.cancel();
    };
    let (outcome, ()) = tokio::join!(pulling, cancelling);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Internal);
    nothing_is_left(&node).await;
    assert!(
        node.content().await.is_empty(),
        "the disk is not given back"
    );
}

#[tokio::test]
async fn a_pull_cancelled_while_downloading_leaves_nothing() {
    on_all(cancel_while_downloading).await;
}

async fn cancel_while_unpacking(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 3, 20_000_000).build())
        .await;
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let cancelled = CancellationToken::new();
    let request = request(&pushed.by_tag);
    let pulling = node.runtime.pull(&request, &progress, &cancelled);
    let cancelling = async {
        let unpacking = |seen: &PullProgress| seen.phase == PullPhase::Unpacking;
        seen.wait_for(unpacking).await.unwrap();
        cancelled.cancel();
    };
    let (outcome, ()) = tokio::join!(pulling, cancelling);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Internal);
    nothing_is_left(&node).await;
    assert!(
        node.content().await.is_empty(),
        "the disk is not given back"
    );
    // And nothing of it is in the way of the next.
    node.pull(&request).await.unwrap();
}

#[tokio::test]
async fn a_pull_cancelled_while_unpacking_leaves_nothing() {
    on_all(cancel_while_unpacking).await;
}

async fn resume(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    let image = generated(1, 1, LAYER_BYTES).build();
    registry.push("app", "1", &image).await;
    let gate = Gate::closed_after(image.size() / 4 * 3, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let request = request(&format!("{}/app:1", gate.addr()));
    {
        let pulling = std::pin::pin!(node.pull(&request));
        let on_its_way = eventually("a part of the layer to be written", LIMIT, async || {
            let ingests = node.ingests().await;
            let written = ingests.iter().any(|(_, offset)| *offset > 0);
            if written { Ok(()) } else { Err(ingests) }
        });
        tokio::select! {
            outcome = pulling => panic!("the pull ended: {outcome:?}"),
            () = on_its_way => {}
        }
    }
    gate.open();
    let (progress, _) = watch::channel(PullProgress::default());
    let (runtime, going_on) = (node.another_runtime(), CancellationToken::new());
    let report = runtime.pull(&request, &progress, &going_on).await.unwrap();
    let last = *progress.borrow();
    assert_eq!(
        (last.bytes_done, last.bytes_total),
        (image.size() as u64, image.size() as u64)
    );
    // What the dropped pull may still have written while this one began counts as fetched.
    assert!(
        last.fetched() >= report.bytes_registry,
        "{last:?} {report:?}"
    );
    assert!(
        last.bytes_present > 0 && last.fetched() < last.bytes_total,
        "{last:?}"
    );
    assert!(
        report.bytes_registry < image.size() as u64,
        "{} of {} bytes were fetched again",
        report.bytes_registry,
        image.size()
    );
    eventually("the pull's traces to go", COLLECTION_LIMIT, async || {
        node.is_clean().await
    })
    .await;
}

#[tokio::test]
async fn a_pull_that_was_dropped_is_resumed_by_the_next() {
    on_all(resume).await;
}

#[tokio::test]
async fn a_pull_that_succeeds_ends_the_leases_of_crashed_ones() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 1, 10_000).build())
        .await;
    let other = format!("sha256:{}", "0".repeat(64));
    let mut leases = LeasesClient::new(node.daemon.channel().await);
    for (id, target) in [("crashed", &pushed.digest), ("of-another", &other)] {
        let lease = CreateRequest {
            id: id.to_owned(),
            labels: [("dev.prewarm/target".to_owned(), target.clone())].into(),
        };
        leases
            .create(with_namespace!(lease, NAMESPACE))
            .await
            .unwrap();
    }
    node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert_eq!(node.leases().await, ["of-another"]);
}

fn one_layer() -> Image {
    generated(1, 1, LAYER_BYTES).build()
}

async fn faulty_node(image: &Image) -> (Faulty, Node) {
    let faulty = Faulty::serve(image).await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(faulty.addr());
    (faulty, node)
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let image = one_layer();
    let (faulty, node) = faulty_node(&image).await;
    let layer = &image.blobs[1].digest;
    let cut = Fault::CutAfter(800_000);
    faulty.break_next(layer, [cut, cut]);
    let report = node.pull(&request(&faulty.image())).await.unwrap();
    assert_eq!(
        report.bytes_registry,
        image.size() as u64,
        "bytes came twice"
    );
    let ranges = faulty.ranges(layer);
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(ranges[2].is_some());
}

#[tokio::test]
async fn a_registry_without_ranges_costs_the_bytes_again_and_nothing_else() {
    let image = one_layer();
    let (faulty, node) = faulty_node(&image).await;
    let layer = &image.blobs[1].digest;
    faulty.break_next(layer, [Fault::CutAfter(1_200_000), Fault::NoRange]);
    node.pull(&request(&faulty.image())).await.unwrap();
    assert_eq!(faulty.ranges(layer).len(), 2);
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_given_up() {
    let image = one_layer();
    let (faulty, node) = faulty_node(&image).await;
    faulty.break_next(&image.blobs[1].digest, [Fault::CutAfter(0); 10]);
    let failure = node.pull(&request(&faulty.image())).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(faulty.ranges(&image.blobs[1].digest).len() < 5);
}

#[tokio::test]
async fn a_corrupt_blob_is_never_named_and_never_stored() {
    let image = one_layer();
    for at in [0, 1] {
        let (faulty, node) = faulty_node(&image).await;
        let digest = &image.blobs[at].digest;
        faulty.break_next(digest, [Fault::Corrupt; 3]);
        let failure = node.pull(&request(&faulty.image())).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::DigestMismatch, "{failure}");
        assert!(failure.message.contains(digest.as_str()), "{failure}");
        assert_eq!(node.images().await, []);
        assert!(!node.content().await.contains_key(digest));
        assert_eq!(
            node.ingests().await,
            [],
            "the next attempt would go on from corrupt bytes"
        );
    }
}

#[tokio::test]
async fn a_corrupt_manifest_is_never_named() {
    let image = one_layer();
    let (faulty, node) = faulty_node(&image).await;
    let mut by_digest = request(&faulty.image());
    by_digest.digest = Some(image.digest().parse().unwrap());
    faulty.break_next(image.digest(), [Fault::Corrupt; 3]);
    let failure = node.pull(&by_digest).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::DigestMismatch, "{failure}");
    assert_eq!(node.images().await, []);
}

async fn corrupted_by_a_mirror(fault: Fault) {
    // More than waits to be unpacked, so that what cannot be is noticed before all of it has come.
    let image = generated(1, 1, 24_000_000).build();
    let mirror = Faulty::serve(&image).await;
    let (upstream, node) = faulty_node(&image).await;
    node.daemon.registry_hosts(
        upstream.addr(),
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            upstream.addr(),
            mirror.addr()
        ),
    );
    let layer = &image.blobs[1];
    mirror.break_next(&layer.digest, [fault; 3]);
    mirror.break_next(image.config_digest(), [Fault::Status(503); 3]);
    let report = node.pull(&request(&upstream.image())).await.unwrap();
    assert_eq!(mirror.ranges(&layer.digest).len(), 1);
    assert_eq!(upstream.ranges(&layer.digest), [None]);
    assert_eq!(report.bytes_registry, image.size() as u64);
    assert_eq!(
        report.bytes_mirror,
        layer.bytes.len() as u64,
        "what was thrown away came as well"
    );
}

#[tokio::test]
async fn what_a_mirror_corrupts_comes_from_the_registry() {
    for fault in [Fault::Corrupt, Fault::CorruptFirst] {
        corrupted_by_a_mirror(fault).await;
    }
}

#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_never_named() {
    let mut image = one_layer();
    let other = generated(2, 1, 1000).build();
    // The configuration of another image, so that the layer is not what it says.
    image.blobs[0] = other.blobs[0].clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.target.bytes).unwrap();
    manifest["config"]["digest"] = other.blobs[0].digest.clone().into();
    manifest["config"]["size"] = other.blobs[0].bytes.len().into();
    image.target.bytes = serde_json::to_vec(&manifest).unwrap().into();
    image.target.digest = prewarm::domain::image::Digest::of(&image.target.bytes).to_string();
    let (faulty, node) = faulty_node(&image).await;
    let failure = node.pull(&request(&faulty.image())).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::DigestMismatch, "{failure}");
    assert_eq!(node.images().await, []);
    let active = containerd_client::services::v1::snapshots::Kind::Active;
    assert_eq!(node.snapshots(active).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_registry_that_dies_fails_the_attempt_and_the_next_one_resumes() {
    let mut registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    let image = generated(1, 1, 20 * LAYER_BYTES).build();
    let pushed = registry.push("app", "1", &image).await;
    let gate = Gate::closed_after(image.size() / 2, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let request = request(&pushed.by_tag.replace(&registry.addr(), &gate.addr()));
    let dying = async {
        gate.holds(LIMIT).await;
        registry.kill();
        gate.cut();
    };
    let (outcome, ()) = tokio::join!(node.pull(&request), dying);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::RegistryUnavailable);
    registry.restart().await;
    let report = node.pull(&request).await.unwrap();
    assert!(
        report.bytes_registry < image.size() as u64,
        "nothing was resumed"
    );
}

#[tokio::test]
async fn a_containerd_that_dies_fails_the_attempt_and_the_next_one_succeeds() {
    let registry = Registry::start().await;
    let mut node = Node::start(ContainerdVersion::V2_1).await;
    let image = generated(1, 2, LAYER_BYTES).build();
    registry.push("app", "1", &image).await;
    let gate = Gate::closed_after(image.size() / 2, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let request = request(&format!("{}/app:1", gate.addr()));
    let runtime = node.runtime.clone();
    let pulling = pull(&runtime, &request);
    let dying = async {
        gate.holds(LIMIT).await;
        node.daemon.kill();
        gate.open();
    };
    let (outcome, ()) = tokio::join!(pulling, dying);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::RuntimeUnavailable);
    node.daemon.restart().await;
    node.pull(&request).await.unwrap();
    eventually("the pulls' traces to go", COLLECTION_LIMIT, async || {
        node.is_clean().await
    })
    .await;
}

/// A few bytes each time are no progress, or a pull would go on for as long as its task may.
#[tokio::test]
async fn a_registry_that_breaks_after_every_few_bytes_is_given_up() {
    let image = generated(1, 1, 1_000_000).build();
    let registry = Faulty::serve(&image).await;
    let layer = image.blobs.iter().max_by_key(|blob| blob.bytes.len());
    let layer = &layer.unwrap().digest;
    registry.break_next(layer, [Fault::CutAfter(2_000); 100]);
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(registry.addr());
    let request = request(&registry.image());
    let failure = node.pull(&request).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
    let asked = registry.ranges(layer).len();
    assert!(asked < 6, "it was asked {asked} times");
}
