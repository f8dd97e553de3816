//! What is to stay free of the disk does so where CRI is all there is: the runtime writes, and somebody watches.

use std::path::Path;
use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::image::Engine;
use prewarm::image::containerd::{Containerd, ContainerdConfig};
use prewarm::image::size::{ByteSize, DiskReserve};

use super::node::{COLLECTION_LIMIT, Node, on_all, pull, request, settings, settings_at};
use super::reserve::bomb;
use super::support;
use support::containerd::ContainerdVersion;
use support::cri_only::CriOnly;
use support::images::{Layer, Recipe, generated};
use support::registry::Registry;
use support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(60);
/// What containerd's own files may have grown by, in bytes.
const SLACK: u64 = 4 << 20;
/// Bytes of the layers of ordinary images; compressed they are about half of it.
const LAYER_BYTES: usize = 20_000_000;

fn free(root: &Path) -> u64 {
    let stat = rustix::fs::statvfs(root).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// A node with a small disk, of which so much is to stay free, both in MiB; its runtime shows prewarm CRI alone.
async fn small_disk(version: ContainerdVersion, disk: u32, reserve: u64) -> (Node, CriOnly) {
    let daemon = support::containerd::Containerd::start_on_small_disk(version, disk).await;
    let socket = daemon.scratch().join("cri.sock");
    let front = CriOnly::before(daemon.channel().await, &socket);
    let config = ContainerdConfig {
        min_free_disk: DiskReserve::Bytes(ByteSize(reserve << 20)),
        ..settings_at(front.socket(), daemon.certs_dir())
    };
    let runtime = Containerd::connect(config).unwrap();
    (Node { daemon, runtime }, front)
}

/// A layer that looks small and is not.
async fn a_bomb(version: ContainerdVersion) {
    let (node, front) = small_disk(version, 384, 256).await;
    let registry = Registry::start().await;
    node.daemon.allow_registry(&registry.addr());
    // containerd takes its time for so many files, and who watches has it, too.
    let bomb = Recipe::new(vec![bomb(448, 1)]).build();
    assert!(bomb.size() < 8 << 20, "{} bytes", bomb.size());
    let bomb = registry.push("bomb", "1", &bomb).await;
    let root = node.daemon.root();
    let before = free(&root);
    let pulled = within(LIMIT, "a bomb", node.pull(&request(&bomb.by_tag))).await;
    let failure = pulled.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    assert!(failure.message.contains("min-free-disk"), "{failure}");
    assert_eq!(front.pulls(), 1, "nothing says beforehand how large it is");
    eventually(
        "the space to come back",
        COLLECTION_LIMIT,
        async || match before.saturating_sub(free(&root)) {
            ..=SLACK => Ok(()),
            taken => Err(format!("{taken} bytes are taken")),
        },
    )
    .await;
    assert_eq!(node.images().await, []);
    let small = generated(1, 1, 100_000).build();
    let small = registry.push("small", "1", &small).await;
    let report = node.pull(&request(&small.by_tag)).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Cri));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_that_a_runtime_unpacks_by_itself_is_ended() {
    on_all(a_bomb).await;
}

/// Of the disk is left for images what the first takes two and a half times.
async fn what_does_not_fit(version: ContainerdVersion) {
    let (node, front) = small_disk(version, 192, 117).await;
    let registry = Registry::start().await;
    node.daemon.allow_registry(&registry.addr());
    let layer = |number| Layer::generated(7, number, LAYER_BYTES);
    let push = async |name: &str, layers: Vec<Layer>| {
        let image = Recipe::new(layers).build();
        registry.push(name, "1", &image).await.by_tag
    };
    let base = push("base", vec![layer(1)]).await;
    let other = push("other", vec![layer(2), layer(3), layer(4)]).await;
    let on_base = push("on-base", vec![layer(1), layer(2)]).await;
    node.pull(&request(&base)).await.unwrap();
    let failure = node.pull(&request(&other)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    assert!(failure.message.contains("needs about"), "{failure}");
    assert_eq!(front.pulls(), 1, "it was not begun");
    // Its two layers would not fit; the runtime has one of them.
    node.pull(&request(&on_base)).await.unwrap();
    assert_eq!(front.pulls(), 2);
    // What is there is there, however little is free.
    let ballast = node.daemon.root().join("ballast");
    std::fs::write(&ballast, vec![0; 30_000_000]).unwrap();
    assert!(node.pull(&request(&base)).await.unwrap().already_present);
    let small = push("small", vec![Layer::generated(8, 1, 1_000)]).await;
    let failure = node.pull(&request(&small)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    assert_eq!(front.pulls(), 2, "the reserve was used up before");
    let direct = Containerd::connect(settings(&node.daemon)).unwrap();
    pull(&direct, &request(&small)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_not_begun_through_cri_either() {
    on_all(what_does_not_fit).await;
}
