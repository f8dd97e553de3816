//! Everything is restarted under a fleet: of two hundred nodes, or as many as `NODES` says.

use std::time::{Duration, Instant};

use prewarm::domain::status::Outcome;
use prewarm::wire::event::NodeEventKind;
use serde_json::json;

use crate::fleet::{Fleet, ended_once, images};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::nats_cluster::{NatsCluster, SERVERS};
use crate::support::prewarm::Role;

/// Nodes of a fleet, when nobody says how many.
const NODES: u32 = 200;
/// How long a fleet may take to be at work again after its broker came back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

fn in_fleet() -> u32 {
    std::env::var("NODES").map_or(NODES, |nodes| nodes.parse().expect("NODES as a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_back_to_a_broker_that_restarted() {
    let in_fleet = in_fleet();
    let mut server = NatsServer::start(NatsVersion::V2_15).await;
    let fleet = Fleet::new(server.client().await, server.url(), 1);
    let _dispatchers = [fleet.dispatcher("one"), fleet.dispatcher("two")];
    let _nodes = fleet.nodes("sim", in_fleet, "0");
    fleet.present(in_fleet as usize).await;

    server.kill();
    server.restart().await;
    let back = Instant::now();
    // Every node has to have a consumer again to take its part.
    fleet
        .submit("base", json!({"images": images(1), "parallelism": "100%"}))
        .await;
    let record = fleet.ended("base").await;
    let took = back.elapsed();
    println!("{in_fleet} nodes were at work {took:?} after their broker was back");
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(record.status.counts.succeeded, in_fleet);
    assert!(took <= BACK_WITHIN, "{took:?}");
    let left = fleet.told_of_nodes(NodeEventKind::Left).await;
    assert!(left.is_empty(), "{} nodes counted as gone", left.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_everything_loses_nothing() {
    const GROUPS: u32 = 4;
    const IMAGES: u32 = 4;
    let in_fleet = in_fleet();
    let began = Instant::now();
    let mut cluster = NatsCluster::start(NatsVersion::V2_15).await;
    let fleet = Fleet::new(cluster.client().await, cluster.urls(), SERVERS);
    let mut dispatchers: Vec<Role> = (0..3).map(|_| fleet.dispatcher("a dispatcher")).collect();
    let nodes = |group: u32| fleet.nodes(&format!("sim-{group}"), in_fleet / GROUPS, "500ms");
    let mut workers: Vec<Role> = (0..GROUPS).map(nodes).collect();
    fleet.present(in_fleet as usize).await;
    let images = images(IMAGES as usize);
    fleet
        .submit(
            "base",
            json!({"images": images, "parallelism": in_fleet / 25}),
        )
        .await;
    fleet
        .job("base", "to be under way", |job| {
            job.status.counts.succeeded >= in_fleet / 25
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
        so_far.succeeded < in_fleet * IMAGES,
        "the job ended before the restarts did"
    );
    fleet
        .submit(
            "base",
            json!({"images": images, "parallelism": in_fleet * IMAGES}),
        )
        .await;
    let record = fleet.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(
        record.status.counts.succeeded,
        in_fleet * IMAGES,
        "{record:?}"
    );
    ended_once(&fleet.told("base").await, (in_fleet * IMAGES) as usize);
    println!(
        "ten restarts under {in_fleet} nodes took {:?}",
        began.elapsed()
    );
}
