//! What is to stay free of the disk does so, whatever a layer turns out to be once it is unpacked.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::image::containerd::{Containerd, ContainerdConfig};
use prewarm::image::size::{ByteSize, DiskReserve};

use super::node::{COLLECTION_LIMIT, Node, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Entry, Layer, Recipe, generated};
use support::registry::Registry;
use support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(30);
/// What may go beyond it: the piece under way, and containerd's own files.
const SLACK: u64 = 4 << 20;
/// What the least file takes of the disk, in bytes.
const PAGE: u32 = 4096;

/// A disk, what is to stay free of it, and a layer's size once it is unpacked, in MiB.
struct Sizes {
    disk: u32,
    reserve: u32,
    layer: u32,
    /// Of each of its files, in bytes.
    file: u32,
}

/// A layer that looks small and is not: so many MiB on the disk, in files of so many bytes.
pub(super) fn bomb(size: u32, file: u32) -> Layer {
    let files = (u64::from(size) << 20) / u64::from(file.next_multiple_of(PAGE));
    let entry = |number| Entry::file(format!("{number}"), 0o644, vec![b'a'; file as usize]);
    Layer::of(&(0..files).map(entry).collect::<Vec<_>>())
}

fn free(root: &Path) -> u64 {
    let stat = rustix::fs::statvfs(root).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// The least that was free while something was done.
fn least_free<T>(root: &Path, work: impl Future<Output = T>) -> (T, u64) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut least = free(root);
            while !ended.load(Ordering::Relaxed) {
                least = least.min(free(root));
                std::thread::yield_now();
            }
            least
        });
        let done = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work));
        ended.store(true, Ordering::Relaxed);
        (done, watcher.join().unwrap())
    })
}

/// Pulls a layer that looks small and is not, and says how little was free meanwhile.
async fn pull_bomb(snapshotter: &str, sizes: &Sizes) -> u64 {
    let version = ContainerdVersion::V2_1;
    let daemon = support::containerd::Containerd::start_on_small_disk(version, sizes.disk).await;
    let config = ContainerdConfig {
        snapshotter: snapshotter.to_owned(),
        min_free_disk: DiskReserve::Bytes(ByteSize(u64::from(sizes.reserve) << 20)),
        ..settings(&daemon)
    };
    let runtime = Containerd::connect(config).unwrap();
    let node = Node { daemon, runtime };
    let registry = Registry::start().await;
    node.daemon.allow_registry(&registry.addr());
    let bomb = Recipe::new(vec![bomb(sizes.layer, sizes.file)]).build();
    assert!(bomb.size() < 8 << 20, "{} bytes", bomb.size());
    let pushed = registry.push("bomb", "1", &bomb).await;
    let root = node.daemon.root();
    let before = free(&root);
    let request_bomb = request(&pushed.by_tag);
    let pulled = within(LIMIT, "a bomb", node.pull(&request_bomb));
    let (pulled, least) = least_free(&root, pulled);
    let failure = pulled.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    assert!(failure.message.contains("min-free-disk"), "{failure}");
    assert_eq!(node.images().await, []);
    eventually("the space to come back", COLLECTION_LIMIT, async || {
        node.is_clean().await?;
        match before.saturating_sub(free(&root)) {
            ..=SLACK => Ok(()),
            taken => Err(format!("{taken} bytes are taken")),
        }
    })
    .await;
    assert!(node.content().await.is_empty());
    let small = generated(1, 1, 100_000).build();
    let small = registry.push("small", "1", &small).await;
    node.pull(&request(&small.by_tag)).await.unwrap();
    least
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_ends_before_it_takes_what_is_to_stay_free() {
    let sizes = Sizes {
        disk: 64,
        reserve: 32,
        layer: 128,
        file: 128 << 20,
    };
    let least = pull_bomb("overlayfs", &sizes).await;
    let reserve = u64::from(sizes.reserve) << 20;
    assert!(least >= reserve - SLACK, "{least} bytes were left");
}

/// containerd is stopped by whoever watches the disk, so that a part of the reserve may go meanwhile. It takes its time for
/// so many files.
#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_that_containerd_unpacks_is_ended_too() {
    let sizes = Sizes {
        disk: 384,
        reserve: 256,
        layer: 448,
        file: 1,
    };
    let least = pull_bomb("native", &sizes).await;
    assert!(least > 0, "the disk was full");
}
