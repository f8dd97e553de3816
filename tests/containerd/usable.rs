//! What a pull leaves is what CRI, and so kubelet, starts containers from.

use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::progress::{PullPhase, PullProgress};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use prewarm::domain::failure::FailureKind;
use prewarm::image::Engine;
use prewarm::image::containerd::Containerd;

use super::node::{Node, moved_tag, on_all, pull, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Compression, Format, Image, Pushed, Recipe, busybox, generated};
use support::parts;
use support::registry::Registry;
use support::run_container::run_container;

fn real_busybox() -> Recipe {
    busybox(&parts::program("busybox", "busybox"))
}

/// What kubelet needs of an image: CRI lists it by every name, a container runs from it, and `PullImage` with the policy
/// Always fetches no blob.
async fn is_usable(node: &Node, registry: &Registry, pushed: &Pushed, bytes: u64) {
    let cri = node.daemon.cri().await;
    let listed = cri.list_images().await.unwrap();
    let listed = listed
        .iter()
        .find(|listed| listed.repo_tags.contains(&pushed.by_tag))
        .unwrap_or_else(|| panic!("CRI does not list {}: {listed:#?}", pushed.by_tag));
    assert_eq!(listed.repo_digests, std::slice::from_ref(&pushed.by_digest));
    assert_eq!(listed.id, pushed.config);
    assert!(listed.size >= bytes, "size {}", listed.size);
    assert!(!listed.pinned);
    for name in [&pushed.by_tag, &pushed.by_digest, &pushed.config] {
        let status = cri.image_status(name).await.unwrap();
        assert!(status.is_some(), "CRI does not find {name}");
    }
    let printed = run_container(&node.daemon, &pushed.by_tag, &["/bin/echo", "warm"]).await;
    assert_eq!(printed, "warm\n");

    let mark = registry.mark().await;
    cri.pull_image(&pushed.by_tag).await.unwrap();
    let requests = registry.requests_since(mark).await;
    assert!(
        !requests.iter().any(support::registry::Request::gets_blob),
        "CRI fetched blobs again: {requests:#?}"
    );
}

async fn pulled_image_is_usable(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let mut node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = real_busybox().build();
    let pushed = registry.push("team/busybox", "1.35", &image).await;

    let report = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert_eq!(report.digest.as_str(), pushed.digest);
    assert!(!report.already_present);
    let bytes = image.size() as u64;
    assert_eq!(report.bytes_registry, bytes);
    is_usable(&node, &registry, &pushed, bytes).await;

    node.daemon.restart().await;
    is_usable(&node, &registry, &pushed, bytes).await;
    // Nor did a collection after the restart take anything.
    node.collect().await;
    is_usable(&node, &registry, &pushed, bytes).await;

    let mark = registry.mark().await;
    let again = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert!(again.already_present);
    assert_eq!(again.digest.as_str(), pushed.digest);
    assert_eq!(again.bytes_present, bytes);
    assert_eq!(
        registry.requests_since(mark).await,
        [],
        "a warm image costs requests"
    );
    assert_eq!(node.leases().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_pulled_image_is_usable_on_containerd_1_6() {
    pulled_image_is_usable(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn a_pulled_image_is_usable_on_containerd_1_7() {
    pulled_image_is_usable(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn a_pulled_image_is_usable_on_containerd_2_1() {
    pulled_image_is_usable(ContainerdVersion::V2_1).await;
}

/// Everything containerd has of an image, in words that do not depend on when it was pulled.
async fn traces(node: &Node) -> String {
    let images = node.images().await;
    let mut lines: Vec<String> = images
        .into_iter()
        .map(|image| {
            let mut labels: Vec<_> = image.labels.into_iter().collect();
            labels.sort();
            let target = image.target.unwrap();
            format!(
                "{} {} {} {} {labels:?}",
                image.name, target.media_type, target.digest, target.size
            )
        })
        .collect();
    lines.sort();
    for (digest, labels) in node.content().await {
        lines.push(format!("{digest} {labels:?}"));
    }
    let mut snapshots = node
        .snapshots(containerd_client::services::v1::snapshots::Kind::Committed)
        .await;
    snapshots.sort();
    lines.extend(snapshots);
    lines.join("\n")
}

async fn leaves_what_cri_leaves(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let mut other = real_busybox();
    "linux/s390x".clone_into(&mut other.platform);
    let index = Image::index(Format::Docker, &[other.build(), real_busybox().build()]);
    let mut plain = generated(3, 3, 100_000);
    plain.format = Format::Docker;
    plain.layers[1].compression = Compression::None;
    for (name, image) in [("index", index), ("plain", plain.build())] {
        let pushed = registry.push(name, "1", &image).await;
        let (ours, cri) = (Node::start(version).await, Node::start(version).await);
        for node in [&ours, &cri] {
            node.daemon.allow_registry(&registry.addr());
        }
        ours.pull(&request(&pushed.by_tag)).await.unwrap();
        cri.daemon
            .cri()
            .await
            .pull_image(&pushed.by_tag)
            .await
            .unwrap();
        assert_eq!(
            traces(&ours).await,
            traces(&cri).await,
            "{name} on {version:?}"
        );
    }
}

#[tokio::test]
async fn records_labels_and_snapshots_are_those_cri_leaves() {
    on_all(leaves_what_cri_leaves).await;
}

#[tokio::test]
async fn a_digest_is_pulled_and_gets_no_tag() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 2, 10_000).build())
        .await;
    node.pull(&request(&pushed.by_digest)).await.unwrap();
    let cri = node.daemon.cri().await;
    assert!(cri.image_status(&pushed.by_digest).await.unwrap().is_some());
    assert!(cri.image_status(&pushed.by_tag).await.unwrap().is_none());
    assert!(
        node.pull(&request(&pushed.by_digest))
            .await
            .unwrap()
            .already_present
    );
}

#[tokio::test]
async fn always_asks_the_registry_and_pulls_what_moved() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let first = registry
        .push("app", "1", &generated(1, 1, 10_000).build())
        .await;
    let mut always = request(&first.by_tag);
    always.policy = ImagePullPolicy::Always;
    assert!(!node.pull(&always).await.unwrap().already_present);
    assert!(node.pull(&always).await.unwrap().already_present);

    let moved = registry
        .push("app", "1", &generated(2, 1, 10_000).build())
        .await;
    let stale = node.pull(&request(&first.by_tag)).await.unwrap();
    assert!(
        stale.already_present,
        "IfNotPresent takes what has the name"
    );
    let report = node.pull(&always).await.unwrap();
    assert_eq!(report.digest.as_str(), moved.digest);
    assert!(!report.already_present);
    let named = node.image(&first.by_tag).await.unwrap();
    assert_eq!(named.target.unwrap().digest, moved.digest);
}

#[tokio::test]
async fn the_digest_of_the_job_wins_over_what_the_tag_means_now() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let first = moved_tag(&registry).await;
    let mut fixed = request(&first.by_tag);
    fixed.digest = Some(first.digest.parse().unwrap());
    assert_eq!(
        node.pull(&fixed).await.unwrap().digest.as_str(),
        first.digest
    );
    let named = node.image(&first.by_tag).await.unwrap();
    assert_eq!(named.target.unwrap().digest, first.digest);
}

#[tokio::test]
async fn a_pin_and_labels_are_seen_by_cri_and_a_later_pull_adds_them() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 1, 10_000).build())
        .await;
    node.pull(&request(&pushed.by_tag)).await.unwrap();
    let mut pinned = request(&pushed.by_tag);
    pinned.pin = Some(super::pinned::pin("a-1", 1));
    pinned
        .labels
        .insert("dev.example/team".to_owned(), "infra".to_owned());
    let mark = registry.mark().await;
    assert!(!node.pull(&pinned).await.unwrap().already_present);
    assert_eq!(
        registry.requests_since(mark).await,
        [],
        "a pin costs requests"
    );
    assert!(node.pull(&pinned).await.unwrap().already_present);
    let cri = node.daemon.cri().await;
    support::wait::eventually(
        "CRI to see the pin",
        super::node::COLLECTION_LIMIT,
        async || {
            cri.image_status(&pushed.by_tag)
                .await
                .unwrap()
                .unwrap()
                .pinned
        },
    )
    .await;
    let record = node.image(&pushed.by_digest).await.unwrap();
    assert_eq!(record.labels["dev.example/team"], "infra");
    // Without a pin asked for, the one that is there stays.
    assert!(
        node.pull(&request(&pushed.by_tag))
            .await
            .unwrap()
            .already_present
    );
    assert!(
        cri.image_status(&pushed.by_tag)
            .await
            .unwrap()
            .unwrap()
            .pinned
    );
}

async fn artifact_is_stored(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let artifact = Image::artifact("application/vnd.example.model", "text/plain", b"weights");
    let pushed = registry.push("model", "1", &artifact).await;
    let mut content_only = request(&pushed.by_tag);
    content_only.unpack = false;
    let report = node.pull(&content_only).await.unwrap();
    assert_eq!(report.bytes_registry, artifact.size() as u64);
    assert!(node.pull(&content_only).await.unwrap().already_present);
    let whole = [&artifact.target].into_iter().chain(&artifact.blobs);
    let mut digests: Vec<_> = whole.map(|blob| blob.digest.clone()).collect();
    digests.sort();
    node.collect().await;
    let kept: Vec<_> = node.content().await.into_keys().collect();
    assert_eq!(kept, digests, "what the names keep on {version:?}");
    for name in [&pushed.by_tag, &pushed.by_digest] {
        let record = node.image(name).await.expect(name);
        assert_eq!(record.target.unwrap().digest, pushed.digest);
    }
    assert_eq!(node.is_clean().await, Ok(()));
    let failure = node.pull(&request(&pushed.by_tag)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidReference);
    assert!(failure.message.contains("unpack: false"), "{failure}");
}

#[tokio::test]
async fn an_artifact_is_stored_without_unpacking() {
    on_all(artifact_is_stored).await;
}

#[tokio::test]
async fn a_synced_pull_leaves_what_any_other_leaves_for_each_snapshotter() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry.push("busybox", "1", &real_busybox().build()).await;
    for snapshotter in ["overlayfs", "native"] {
        let mut settings = settings(&node.daemon);
        snapshotter.clone_into(&mut settings.snapshotter);
        settings.limits.sync_filesystem = true;
        let runtime = Containerd::connect(settings).unwrap();
        let report = pull(&runtime, &request(&pushed.by_tag)).await.unwrap();
        assert!(!report.already_present, "{snapshotter}");
    }
    let printed = run_container(&node.daemon, &pushed.by_tag, &["/bin/echo", "x"]).await;
    assert_eq!(printed, "x\n");
}

#[tokio::test]
async fn content_without_unpacking_is_unpacked_by_a_later_pull_without_the_registry() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_6).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry.push("busybox", "1", &real_busybox().build()).await;
    let mut content_only = request(&pushed.by_tag);
    content_only.unpack = false;
    node.pull(&content_only).await.unwrap();
    let mark = registry.mark().await;
    let report = node.pull(&request(&pushed.by_tag)).await.unwrap();
    assert!(!report.already_present);
    assert_eq!(registry.requests_since(mark).await, []);
    let printed = run_container(&node.daemon, &pushed.by_tag, &["/bin/echo", "x"]).await;
    assert_eq!(printed, "x\n");
}

#[tokio::test]
async fn progress_comes_from_the_bytes_and_ends_with_all_of_them() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(1, 3, 2_000_000).build();
    let pushed = registry.push("app", "1", &image).await;
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let request = request(&pushed.by_tag);
    let watching = async {
        let partial = seen
            .wait_for(|seen| seen.bytes_done > 0 && seen.bytes_done < seen.bytes_total)
            .await
            .map(|seen| *seen);
        partial.unwrap()
    };
    let cancelled = CancellationToken::new();
    let pulling = node.runtime.pull(&request, &progress, &cancelled);
    let (report, partial) = tokio::join!(pulling, watching);
    report.unwrap();
    assert_eq!(partial.phase, PullPhase::Downloading);
    let last = *progress.borrow();
    let config = image.blobs[0].bytes.len();
    let layers = (image.size() - config) as u64;
    assert_eq!(
        last,
        PullProgress {
            phase: PullPhase::Committing,
            bytes_done: image.size() as u64,
            bytes_total: image.size() as u64,
            bytes_present: 0,
            unpack_done: layers,
            unpack_total: layers,
            unpack_present: 0,
        }
    );

    // By containerd itself for another snapshotter: everything is there, and nothing unpacked.
    let mut settings = settings(&node.daemon);
    "native".clone_into(&mut settings.snapshotter);
    let runtime = Containerd::connect(settings).unwrap();
    let (progress, _) = watch::channel(PullProgress::default());
    let report = runtime.pull(&request, &progress, &cancelled).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Containerd));
    let other = *progress.borrow();
    assert_eq!(other.bytes_present, image.size() as u64);
    assert_eq!(other.fetched(), 0);
    // Its own, and that of CRI.
    assert_eq!(other.unpack_total, 2 * layers);
    assert_eq!(
        (other.unpack_done, other.unpack_present),
        (2 * layers, layers)
    );
}

#[tokio::test]
async fn probe_says_what_there_is() {
    let node = Node::start(ContainerdVersion::V1_7).await;
    let info = node.runtime.probe().await.unwrap();
    assert_eq!(info.name, "containerd");
    assert!(info.version.starts_with("1.7."), "{}", info.version);
    assert_eq!(&*info.platform.os, "linux");
    assert!(info.disk_free > 0 && info.disk_free <= info.disk_total);
}
