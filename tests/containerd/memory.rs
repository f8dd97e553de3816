//! What pulls use of the memory, and what is left of it afterwards.

use super::elsewhere::{is_asked, process, pull_asked};
use super::node::Node;
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;
use support::registry::Registry;

/// Most resident memory of a process that pulls, in KiB; and of one that has pulled, without the pages of
/// its program, which a debug build has many of.
const MOST_PULLING: u64 = 400 << 10;
const MOST_IDLE: u64 = 25 << 10;

fn resident(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

/// Not a test of its own: what is measured, in another process.
#[tokio::test]
async fn the_process_that_is_measured() {
    if !is_asked() {
        return;
    }
    let started = std::time::Instant::now();
    pull_asked().await;
    println!(
        "measured {} {} {:?}",
        resident("VmHWM:"),
        resident("RssAnon:"),
        started.elapsed()
    );
}

#[tokio::test]
async fn a_large_pull_uses_no_more_memory_than_it_may() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(1, 12, 40_000_000).build();
    let pushed = registry.push("large", "1", &image).await;
    // As a worker sets it for itself.
    let (name, value) = prewarm::cli::heap::RETURN_LARGE;
    let test = "memory::the_process_that_is_measured";
    let output = process(test, &node, &pushed.by_tag)
        .env(name, value)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    println!("{printed}");
    let mut words = printed
        .lines()
        .find_map(|line| line.strip_prefix("measured "))
        .expect("a measurement")
        .split(' ')
        .map_while(|word| word.parse::<u64>().ok());
    let (pulling, idle) = (words.next().unwrap(), words.next().unwrap());
    assert!(pulling <= MOST_PULLING, "{pulling} KiB while it pulls");
    assert!(idle <= MOST_IDLE, "{idle} KiB when it has pulled");
}
