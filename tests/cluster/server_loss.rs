//! One of three brokers dies for good.

use std::time::Duration;

use serde_json::json;

use crate::fleet::{Fleet, downloaded_once, each_pulled_once, first_ends, images, now};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::NatsCluster;

/// When what a worker had in its hands has ended: a pull takes half a second.
const IN_HAND: Duration = Duration::from_millis(1_500);

async fn workers_of_a_dead_server_go_on(version: NatsVersion) {
    const NODES: u32 = 45;
    const IMAGES: usize = 40;
    let mut cluster = NatsCluster::start(version).await;
    let fleet = Fleet::on(&cluster).await;
    let _dispatchers = [fleet.dispatcher("one"), fleet.dispatcher("two")];
    let nodes = fleet.nodes("sim", NODES, "500ms");
    fleet.present(45).await;
    let images = images(IMAGES);
    fleet
        .submit("base", json!({"images": images, "parallelism": NODES * 4}))
        .await;
    let tenth = NODES * 4;
    fleet
        .job("base", "to be a tenth done", |job| {
            job.status.counts.succeeded >= tenth
        })
        .await;

    let (server, mut led) = cluster.busiest("PREWARM_TASKS").await;
    // The others are those with which a dispatcher read the stream.
    led.retain(|name| name.starts_with("sim-"));
    assert!(led.len() >= 45 / 4, "{led:?}");
    cluster.servers[server].kill();
    let killed = now();
    fleet.ended("base").await;
    let told = fleet.told("base").await;
    let ends = first_ends(&told, killed.after(IN_HAND));
    let mut waits: Vec<Duration> = led
        .iter()
        .map(|node| IN_HAND + *ends.get(node).expect("a worker that went on"))
        .collect();
    waits.sort_unstable();
    // How long that took is in BENCHMARKS.md: the servers need up to nine seconds to choose new leaders, more on a busy machine.
    println!(
        "{version:?}: {} workers of the dead server ended their next pulls after {waits:?}",
        led.len()
    );
    each_pulled_once(&told, IMAGES * 45);
    downloaded_once(nodes, IMAGES * 45).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_a_dead_server_go_on_with_nats_2_10() {
    workers_of_a_dead_server_go_on(NatsVersion::V2_10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_a_dead_server_go_on_with_nats_2_15() {
    workers_of_a_dead_server_go_on(NatsVersion::V2_15).await;
}
