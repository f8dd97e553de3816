//! Bytes of layers go straight into the files of containerd's content store, and not through containerd.

use super::node::{Node, on_all, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;
use support::registry::Registry;

/// Bytes of the layer, before it is compressed to about half.
const LAYER_BYTES: usize = 32_000_000;

/// Bytes that a process has had written so far (proc_pid_io(5)).
fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

async fn containerd_writes_no_layer(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let mut node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(1, 1, LAYER_BYTES).build();
    let pushed = registry.push("large", "1", &image).await;
    let pid = node.daemon.process().pid();
    let before = written(pid);
    let report = node.pull(&request(&pushed.by_tag)).await.unwrap();
    let through = written(pid) - before;
    let bytes = report.bytes_registry;
    assert!(bytes > 4_000_000, "{bytes} bytes are too few to tell by");
    assert!(
        through < bytes / 4,
        "{version:?} wrote {through} of {bytes} bytes itself"
    );
}

#[tokio::test]
async fn layers_do_not_go_through_containerd() {
    on_all(containerd_writes_no_layer).await;
}
