//! A disk that fills up in the middle of a pull gets all of its space back.

use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::image::containerd::Containerd;

use super::node::{COLLECTION_LIMIT, Node, on_all, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::gate::Gate;
use support::images::generated;
use support::registry::Registry;
use support::wait::eventually;

/// The disk of containerd's root, in MiB, and what the image takes of it compressed and unpacked, about.
const DISK_MIB: u32 = 64;
const LAYER_BYTES: usize = 4_000_000;
const LIMIT: Duration = Duration::from_secs(20);

fn used(root: &std::path::Path) -> u64 {
    let stat = rustix::fs::statvfs(root).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

async fn fill_up(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let daemon = support::containerd::Containerd::start_on_small_disk(version, DISK_MIB).await;
    let runtime = Containerd::connect(settings(&daemon)).unwrap();
    let node = Node { daemon, runtime };
    let image = generated(1, 3, LAYER_BYTES).build();
    registry.push("app", "1", &image).await;
    let gate = Gate::closed_after(image.size() / 2, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let request = request(&format!("{}/app:1", gate.addr()));
    let root = node.daemon.root();
    let before = used(&root);
    let ballast = root.join("ballast");
    let filling = async {
        gate.holds(LIMIT).await;
        let file = std::fs::File::create(&ballast).unwrap();
        let block = vec![0; 1 << 16];
        while std::io::Write::write_all(&mut &file, &block).is_ok() {}
        gate.open();
    };
    let (outcome, ()) = tokio::join!(node.pull(&request), filling);
    let failure = outcome.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    assert!(failure.kind.is_permanent());
    assert_eq!(node.images().await, []);
    std::fs::remove_file(&ballast).unwrap();
    // containerd's own database keeps the pages it grew by.
    let database = 1 << 20;
    eventually("the space to come back", COLLECTION_LIMIT, async || {
        node.is_clean().await?;
        let left = used(&root).saturating_sub(before);
        if left > database {
            return Err(format!("{left} bytes are left"));
        }
        Ok(())
    })
    .await;
    assert!(node.content().await.is_empty());
    node.pull(&request).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fills_up_in_mid_pull_gets_all_its_space_back() {
    on_all(fill_up).await;
}
