//! What pulls use of the memory, and what is left of it afterwards.

use std::process::Command;

use super::node::{Node, request, settings_at};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;
use support::registry::Registry;

const SOCKET: &str = "PREWARM_TEST_MEMORY_SOCKET";
const CERTS: &str = "PREWARM_TEST_MEMORY_CERTS";
const IMAGE: &str = "PREWARM_TEST_MEMORY_IMAGE";

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
    let (Ok(socket), Ok(certs), Ok(image)) = (
        std::env::var(SOCKET),
        std::env::var(CERTS),
        std::env::var(IMAGE),
    ) else {
        return;
    };
    let settings = settings_at(socket.into(), certs.into());
    let runtime = prewarm::image::containerd::Containerd::connect(settings).unwrap();
    let started = std::time::Instant::now();
    super::node::pull(&runtime, &request(&image)).await.unwrap();
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
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory::the_process_that_is_measured",
            "--nocapture",
        ])
        .env(SOCKET, node.daemon.socket())
        .env(CERTS, node.daemon.certs_dir())
        .env(IMAGE, &pushed.by_tag)
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
