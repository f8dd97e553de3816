//! A process that pulls is killed (SIGKILL) again and again, at points that a seed chooses: the next pull goes on from
//! what is there, and nothing is left over.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::Kind;

use super::elsewhere::{is_asked, process, pull_asked};
use super::node::{COLLECTION_LIMIT, Node, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::gate::Gate;
use support::images::generated;
use support::registry::Registry;
use support::wait::eventually;

/// Pulls that are killed on one generation of containerd: 102 in all.
const KILLS: u64 = 34;
/// Most kills of one image's pulls before one is let through.
const KILLS_OF_IMAGE: u64 = 4;
/// Most processes that are started for it.
const MAX_ROUNDS: u64 = 300;

/// Least of a layer that is written at once.
const PIECE: i64 = 1 << 20;
/// How long a pull may take to the middle of its layer.
const LIMIT: Duration = Duration::from_secs(60);

/// Not a test of its own: what [`start`] runs in another process.
#[tokio::test]
async fn the_process_that_is_killed() {
    if is_asked() {
        pull_asked().await;
    }
}

/// Pulls in a process of its own.
fn start(node: &Node, image: &str) -> Child {
    process("killed::the_process_that_is_killed", node, image)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// SplitMix64: a number below `below` for every seed.
fn chosen(seed: u64, below: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below.max(1)
}

/// Directories of snapshots on the disk, whatever containerd's records say.
fn snapshot_dirs(root: &Path) -> usize {
    let dir = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn ingest_dirs(root: &Path) -> usize {
    let dir = root.join("io.containerd.content.v1.content/ingest");
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// A pull that is killed while a part of a layer is there, so that the next has something to go on from on any machine.
async fn killed_in_mid_layer(node: &Node, registry: &Registry) {
    let image = generated(2000, 1, 8_000_000).build();
    registry.push("app", "held", &image).await;
    let gate = Gate::closed_after(image.size() / 2, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let held = format!("{}/app:held", gate.addr());
    let mut process = start(node, &held);
    // As much of the layer as comes at once, and not the configuration, nor the beginning of that.
    eventually("a part of the layer to be written", LIMIT, async || {
        let ingests = node.ingests().await;
        let written = ingests.iter().any(|(_, offset)| *offset >= PIECE);
        if written { Ok(()) } else { Err(ingests) }
    })
    .await;
    assert!(process.try_wait().unwrap().is_none(), "it was not held");
    process.kill().unwrap();
    process.wait().unwrap();
    gate.open();
    let report = node.pull(&request(&held)).await.unwrap();
    assert!(report.bytes_present >= PIECE.unsigned_abs(), "{report:?}");
    assert_eq!(
        report.bytes_registry + report.bytes_present,
        image.size() as u64
    );
}

async fn kill_and_go_on(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    // How long a pull takes here and now, the start of its process included.
    let mut span = u64::MAX;
    for number in 1000..1003 {
        let whole = generated(number, 3, 1_500_000).build();
        let whole = registry.push("whole", &number.to_string(), &whole).await;
        let started = Instant::now();
        assert!(start(&node, &whole.by_tag).wait().unwrap().success());
        span = span.min(u64::try_from(started.elapsed().as_micros()).unwrap());
    }

    let (mut killed, mut resumed, mut rounds) = (0, 0, 0);
    for number in 0.. {
        if killed >= KILLS {
            break;
        }
        let image = generated(number, 3, 1_500_000).build();
        let pushed = registry.push("app", &number.to_string(), &image).await;
        // Until a pull comes to its end by itself: then there is nothing left of it to be killed.
        for _ in 0..KILLS_OF_IMAGE {
            assert!(rounds < MAX_ROUNDS, "of {rounds}, {killed} were killed");
            let mut process = start(&node, &pushed.by_tag);
            // The point is one in time, because bytes are only a part of what a pull does.
            tokio::time::sleep(Duration::from_micros(chosen(rounds, span))).await;
            rounds += 1;
            let ended = process.try_wait().unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
            if ended.is_some() {
                break;
            }
            killed += 1;
        }
        let report = node.pull(&request(&pushed.by_tag)).await;
        let report = report.unwrap_or_else(|failure| panic!("image {number}: {failure}"));
        assert!(
            report.already_present
                || report.bytes_registry + report.bytes_present == image.size() as u64,
            "image {number}: {report:?}"
        );
        resumed += u64::from(!report.already_present && report.bytes_present > 0);
        let again = node.pull(&request(&pushed.by_tag)).await.unwrap();
        assert!(again.already_present, "image {number}");
    }
    println!("{version:?}: killed {killed} times, resumed {resumed} times");
    killed_in_mid_layer(&node, &registry).await;
    eventually("all traces to go", COLLECTION_LIMIT, async || {
        node.collect().await;
        node.is_clean().await?;
        let on_disk = (
            snapshot_dirs(&node.daemon.root()),
            ingest_dirs(&node.daemon.root()),
        );
        let expected = (node.snapshots(Kind::Committed).await.len(), 0);
        if on_disk == expected {
            Ok(())
        } else {
            Err(format!("{on_disk:?} on the disk, not {expected:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_pull_killed_at_any_point_is_taken_up_by_the_next_on_containerd_1_6() {
    kill_and_go_on(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn a_pull_killed_at_any_point_is_taken_up_by_the_next_on_containerd_1_7() {
    kill_and_go_on(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn a_pull_killed_at_any_point_is_taken_up_by_the_next_on_containerd_2_1() {
    kill_and_go_on(ContainerdVersion::V2_1).await;
}
