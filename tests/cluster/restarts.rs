//! Everything is restarted under a fleet of a thousand nodes.

use std::time::{Duration, Instant};

use prewarm::domain::status::Outcome;
use prewarm::wire::event::NodeEventKind;
use serde_json::json;

use crate::fleet::{Fleet, ended_once, images};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::nats_cluster::{NatsCluster, SERVERS};
use crate::support::prewarm::Role;

/// Nodes of a fleet; a thousand are in `make bench`.
const NODES: u32 = 200;
/// How long a fleet may take to be at work again after its broker came back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_back_to_a_broker_that_restarted() {
    let mut server = NatsServer::start(NatsVersion::V2_15).await;
    let fleet = Fleet::new(server.client().await, server.url(), 1);
    let _dispatchers = [fleet.dispatcher("one"), fleet.dispatcher("two")];
    let _nodes = fleet.nodes("sim", NODES, "0");
    fleet.present(NODES as usize).await;

    server.kill();
    server.restart().await;
    let back = Instant::now();
    // Every node has to have a consumer again to take its part.
    fleet
        .submit("base", json!({"images": images(1), "parallelism": "100%"}))
        .await;
    let record = fleet.ended("base").await;
    let took = back.elapsed();
    println!("{NODES} nodes were at work {took:?} after their broker was back");
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(record.status.counts.succeeded, NODES);
    assert!(took <= BACK_WITHIN, "{took:?}");
    let left = fleet.told_of_nodes(NodeEventKind::Left).await;
    assert!(left.is_empty(), "{} nodes counted as gone", left.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_everything_loses_nothing() {
    roll(NODES).await;
}

async fn roll(nodes_in_all: u32) {
    const GROUPS: u32 = 4;
    const IMAGES: u32 = 4;
    let began = Instant::now();
    let mut cluster = NatsCluster::start(NatsVersion::V2_15).await;
    let fleet = Fleet::new(cluster.client().await, cluster.urls(), SERVERS);
    let mut dispatchers: Vec<Role> = (0..3).map(|_| fleet.dispatcher("a dispatcher")).collect();
    let nodes = |group: u32| fleet.nodes(&format!("sim-{group}"), nodes_in_all / GROUPS, "500ms");
    let mut workers: Vec<Role> = (0..GROUPS).map(nodes).collect();
    fleet.present(nodes_in_all as usize).await;
    let images = images(IMAGES as usize);
    fleet
        .submit("base", json!({"images": images, "parallelism": nodes_in_all / 25}))
        .await;
    fleet
        .job("base", "to be under way", |job| {
            job.status.counts.succeeded >= nodes_in_all / 25
        })
        .await;

    for (server, worker) in workers.iter_mut().enumerate() {
        // As many restarts as there are of each: what is there once more comes last.
        if let Some(dispatcher) = dispatchers.get_mut(server) {
            dispatcher.terminate().await;
            *dispatcher = fleet.dispatcher("a dispatcher that was restarted");
        }
        worker.terminate().await;
        *worker = nodes(u32::try_from(server).unwrap());
        if let Some(broker) = cluster.servers.get_mut(server) {
            broker.restart().await;
            cluster.in_sync().await;
        }
    }
    let so_far = fleet
        .job("base", "to be there", |_| true)
        .await
        .status
        .counts;
    assert!(
        so_far.succeeded < nodes_in_all * IMAGES,
        "the job ended before the restarts did"
    );
    fleet
        .submit("base", json!({"images": images, "parallelism": nodes_in_all * IMAGES}))
        .await;
    let record = fleet.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(
        record.status.counts.succeeded,
        nodes_in_all * IMAGES,
        "{record:?}"
    );
    ended_once(
        &fleet.told("base").await,
        (nodes_in_all * IMAGES) as usize,
    );
    println!(
        "ten restarts under {nodes_in_all} nodes took {:?}",
        began.elapsed()
    );
}
