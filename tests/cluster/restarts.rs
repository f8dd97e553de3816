//! Everything is restarted under a fleet: of as many nodes as `NODES` says, or fewer (`make rolling`).

use std::path::Path;
use std::time::{Duration, Instant};

use prewarm::domain::status::Outcome;
use prewarm::wire::event::NodeEventKind;
use serde_json::json;

use crate::fleet::{Fleet, LIMIT, ended_once, images};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::nats_cluster::NatsCluster;
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

/// Whether everything is to be as it is shipped, which takes minutes.
fn in_full() -> bool {
    std::env::var_os("SHIPPED_TIMES").is_some()
}

/// The shipped configuration in full; else one without accounts and without a sync of every write, where a server that goes
/// takes a second, and not ten, until it lets its first client go.
async fn cluster() -> NatsCluster {
    const SOONER: &str = "lame_duck_duration: 30s\nlame_duck_grace_period: 1s";
    if in_full() {
        NatsCluster::shipped(NatsVersion::V2_15).await
    } else {
        NatsCluster::start_with(NatsVersion::V2_15, SOONER).await
    }
}

/// Checks that the job is still under way, lets it go on as fast as it can, and that all of it comes through.
async fn all_came_through(fleet: &Fleet, images: &[String], in_fleet: u32) {
    let pulls = in_fleet * u32::try_from(images.len()).unwrap();
    let so_far = fleet
        .job("base", "to be there", |_| true)
        .await
        .status
        .counts;
    assert!(
        so_far.succeeded < pulls,
        "the job ended before the restarts did"
    );
    fleet
        .submit("base", json!({"images": images, "parallelism": pulls}))
        .await;
    let record = fleet.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(record.status.counts.succeeded, pulls, "{record:?}");
    ended_once(&fleet.told("base").await, pulls as usize);
}

/// The first broker goes as its pod does, and in full all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_everything_loses_nothing() {
    const GROUPS: u32 = 4;
    const IMAGES: u32 = 4;
    let in_fleet = in_fleet();
    let parallelism = (in_fleet / 50).max(1);
    let began = Instant::now();
    let mut cluster = cluster().await;
    let mut used = Used::default();
    let mut fleet = Fleet::on(&cluster).await;
    if in_full() {
        fleet.limit = LIMIT * 10;
    }
    let mut dispatchers: Vec<Role> = (0..3).map(|_| fleet.dispatcher("a dispatcher")).collect();
    let nodes = |group: u32| fleet.nodes(&format!("sim-{group}"), in_fleet / GROUPS, "500ms");
    let mut workers: Vec<Role> = (0..GROUPS).map(nodes).collect();
    fleet.present(in_fleet as usize).await;
    let images = images(IMAGES as usize);
    fleet
        .submit(
            "base",
            json!({"images": images, "parallelism": parallelism}),
        )
        .await;
    fleet
        .job("base", "to be under way", |job| {
            job.status.counts.succeeded >= parallelism
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
            used.add(broker);
            if server == 0 || in_full() {
                broker.lame_duck().await;
            }
            broker.restart().await;
            cluster.in_sync().await;
        }
    }
    all_came_through(&fleet, &images, in_fleet).await;
    for broker in &mut cluster.servers {
        used.add(broker);
    }
    println!(
        "ten restarts under {in_fleet} nodes took {:?}; {used:?}",
        began.elapsed()
    );
}

/// What the brokers used, of all of their lives.
#[derive(Debug, Default)]
struct Used {
    /// Most memory that one of them had resident, in MB.
    most_resident: u64,
    /// Processor time of all of them together, in seconds.
    processor: f64,
    /// The largest store of one, in MB.
    largest_store: u64,
}

impl Used {
    fn add(&mut self, server: &mut NatsServer) {
        let store = size(&server.store()) / 1_000_000;
        let process = server.process();
        self.largest_store = self.largest_store.max(store);
        self.most_resident = self
            .most_resident
            .max(process.most_resident_bytes() / 1_000_000);
        self.processor += process.processor_seconds();
    }
}

/// Bytes of all files in a folder; those that go meanwhile count nothing.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Where workers have an account of their own, a broker does not see that a worker of another one has gone, and gives tasks
/// to the requests it left open: each then waits for the ack wait, 30 s, and the next as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_was_killed_and_started_again_is_at_work_at_once_with_the_shipped_accounts() {
    const NODES: u32 = 12;
    const AT_WORK_WITHIN: Duration = Duration::from_secs(28);
    let cluster = NatsCluster::shipped(NatsVersion::V2_15).await;
    let fleet = Fleet::on(&cluster).await;
    let _dispatcher = fleet.dispatcher("one");
    let mut nodes = fleet.nodes("sim", NODES, "0");
    fleet.present(NODES as usize).await;
    fleet
        .submit(
            "before",
            json!({"images": images(1), "parallelism": "100%"}),
        )
        .await;
    fleet.ended("before").await;

    nodes.kill9();
    let began = Instant::now();
    let _nodes = fleet.nodes("sim", NODES, "0");
    fleet
        .submit("after", json!({"images": images(1), "parallelism": "100%"}))
        .await;
    let record = fleet.ended("after").await;
    let took = began.elapsed();
    println!("{NODES} nodes were at work {took:?} after they were started again");
    assert_eq!(record.status.counts.succeeded, NODES, "{record:?}");
    assert!(took < AT_WORK_WITHIN, "{took:?}");
}
