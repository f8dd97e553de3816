//! Pulls that cannot be: the right kind, and a message that helps.

use prewarm::domain::failure::{Failure, FailureKind};
use prewarm::image::containerd::Containerd;
use prewarm::image::size::{ByteSize, DiskReserve};

use super::node::{Node, pull, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Format, Image, generated};
use support::registry::Registry;

fn says(failure: &Failure, kind: FailureKind, words: &[&str]) {
    assert_eq!(failure.kind, kind, "{failure}");
    for words in words {
        assert!(
            failure.message.contains(words),
            "{words:?} is not in: {failure}"
        );
    }
}

#[tokio::test]
async fn without_containerd() {
    let registry = Registry::start().await;
    let mut node = Node::start(ContainerdVersion::V2_1).await;
    let pushed = registry
        .push("app", "1", &generated(1, 1, 1000).build())
        .await;
    node.daemon.kill();
    let socket = node.daemon.socket();
    let request = request(&pushed.by_tag);
    let failure = node.pull(&request).await.unwrap_err();
    let words = [
        socket.to_str().unwrap(),
        "Connection refused",
        "is it running",
    ];
    says(&failure, FailureKind::RuntimeUnavailable, &words);
    std::fs::remove_file(&socket).unwrap();
    let failure = node.pull(&request).await.unwrap_err();
    says(
        &failure,
        FailureKind::RuntimeUnavailable,
        &["No such file", "containerd-address"],
    );
    let failure = node.runtime.probe().await.unwrap_err();
    says(&failure, FailureKind::RuntimeUnavailable, &["No such file"]);
    // And it is there again without a new connection being asked for.
    node.daemon.allow_registry(&registry.addr());
    node.daemon.restart().await;
    node.pull(&request).await.unwrap();
}

#[tokio::test]
async fn without_the_registry_or_the_image() {
    let mut registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    registry
        .push("app", "1", &generated(1, 1, 1000).build())
        .await;
    for (name, words) in [
        ("app:2", "app/manifests/2"),
        ("absent:1", "absent/manifests/1"),
    ] {
        let image = format!("{}/{name}", registry.addr());
        let failure = node.pull(&request(&image)).await.unwrap_err();
        says(
            &failure,
            FailureKind::ImageNotFound,
            &[words, "MANIFEST_UNKNOWN", "check the name"],
        );
    }
    registry.kill();
    let failure = node
        .pull(&request(&format!("{}/app:1", registry.addr())))
        .await
        .unwrap_err();
    let words = [&registry.addr(), "cannot connect", "Connection refused"];
    says(&failure, FailureKind::RegistryUnavailable, &words);
    assert_eq!(node.is_clean().await, Ok(()));
    assert_eq!(node.images().await, []);
}

#[tokio::test]
async fn for_another_platform_or_of_another_kind() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let mut recipe = generated(1, 1, 1000);
    "linux/s390x".clone_into(&mut recipe.platform);
    let index = Image::index(Format::Oci, &[recipe.build()]);
    let artifact = Image::artifact("application/x.thing", "text/plain", b"x");
    let by_index = registry.push("index", "1", &index).await;
    let alone = registry.push("alone", "1", &recipe.build()).await;
    let artifact = registry.push("artifact", "1", &artifact).await;
    for pushed in [by_index, alone] {
        let failure = node.pull(&request(&pushed.by_tag)).await.unwrap_err();
        says(&failure, FailureKind::NoMatchingPlatform, &["linux/s390x"]);
        let mut theirs = request(&pushed.by_tag);
        theirs.platform = Some("linux/s390x".parse().unwrap());
        node.pull(&theirs).await.unwrap();
    }
    let failure = node.pull(&request(&artifact.by_tag)).await.unwrap_err();
    says(
        &failure,
        FailureKind::InvalidReference,
        &["artifact", "unpack: false"],
    );
}

#[tokio::test]
async fn without_room_on_the_disk() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 1, 1000).build())
        .await;
    for reserve in [
        DiskReserve::Percent(100),
        DiskReserve::Bytes(ByteSize(1 << 60)),
    ] {
        let mut settings = settings(&node.daemon);
        settings.min_free_disk = reserve;
        let runtime = Containerd::connect(settings).unwrap();
        let failure = pull(&runtime, &request(&pushed.by_tag)).await.unwrap_err();
        says(&failure, FailureKind::InsufficientDisk, &["min-free-disk"]);
    }
    assert_eq!(node.leases().await, Vec::<String>::new());
    // What is there needs no room.
    node.pull(&request(&pushed.by_tag)).await.unwrap();
    let mut settings = settings(&node.daemon);
    settings.min_free_disk = DiskReserve::Percent(100);
    let full = Containerd::connect(settings).unwrap();
    assert!(
        pull(&full, &request(&pushed.by_tag))
            .await
            .unwrap()
            .already_present
    );
}

#[tokio::test]
async fn without_the_snapshotter() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_6).await;
    node.daemon.allow_registry(&registry.addr());
    let pushed = registry
        .push("app", "1", &generated(1, 1, 1000).build())
        .await;
    let mut settings = settings(&node.daemon);
    "stargz".clone_into(&mut settings.snapshotter);
    let runtime = Containerd::connect(settings).unwrap();
    for failure in [
        runtime.probe().await.unwrap_err(),
        pull(&runtime, &request(&pushed.by_tag)).await.unwrap_err(),
    ] {
        says(
            &failure,
            FailureKind::RuntimeUnavailable,
            &["stargz", "overlayfs"],
        );
    }
    assert_eq!(node.images().await, []);
}
