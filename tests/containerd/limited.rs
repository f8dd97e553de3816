//! The limit on bytes a second holds for all pulls of a worker together.

use std::time::Instant;

use prewarm::image::containerd::Containerd;
use prewarm::image::size::{Bandwidth, ByteSize};

use super::node::{Node, pull, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;
use support::registry::Registry;

/// Bytes a second.
const RATE: u64 = 3_000_000;
/// Bytes of each layer, before they are compressed to about half.
const LAYER_BYTES: usize = 4_000_000;
/// What may come at once before the limit holds, as time at the rate.
const BURST: f64 = 0.25;

#[tokio::test]
async fn two_pulls_at_once_share_the_bandwidth_limit() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let one = generated(1, 2, LAYER_BYTES).build();
    let other = generated(2, 2, LAYER_BYTES).build();
    let one = registry.push("one", "1", &one).await;
    let other = registry.push("other", "1", &other).await;
    let mut settings = settings(&node.daemon);
    settings.limits.bandwidth = Some(Bandwidth(ByteSize(RATE)));
    let limited = Containerd::connect(settings).unwrap();
    let (one, other) = (request(&one.by_tag), request(&other.by_tag));
    let started = Instant::now();
    let (one, other) = tokio::join!(pull(&limited, &one), pull(&limited, &other));
    let took = started.elapsed();
    let bytes = one.unwrap().bytes_registry + other.unwrap().bytes_registry;
    let at_the_rate = bytes as f64 / RATE as f64;
    assert!(at_the_rate > 2.0, "{bytes} bytes are too few to measure by");
    assert!(
        took.as_secs_f64() > at_the_rate - BURST,
        "{bytes} bytes came in {took:?}, faster than {RATE} a second"
    );
    println!("{bytes} bytes in {took:?} at a limit of {RATE} a second");
}
