//! Workers that lose their server while it lives.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{Fleet, LIMIT, images};
use crate::line::{Line, Parting, carrying};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::NatsCluster;
use crate::support::shipped;

/// Nodes of a fleet, when `NODES` does not say how many.
const NODES: u32 = 12;
/// How long a fleet may take to be at work again by another server: less than the ack wait, 30 s, for which a task waits that
/// was given to a request from before.
const AT_WORK_WITHIN: Duration = Duration::from_secs(28);

/// The servers tell nobody where they and the others are: every connection goes through a line.
fn unadvertised(text: String) -> String {
    const CLUSTER: &str = "  name: prewarm\n";
    assert_eq!(text.matches(CLUSTER).count(), 1, "{text}");
    text.replace(CLUSTER, &format!("{CLUSTER}  no_advertise: true\n"))
}

fn in_fleet() -> u32 {
    std::env::var("NODES").map_or(NODES, |nodes| nodes.parse().expect("NODES as a number"))
}

/// Where workers have an account of their own, the servers of their consumers do not see that nobody listens any more to the
/// requests which they left open at another server, and would give them tasks for as long as those requests last.
async fn workers_that_lose_their_server_are_at_work_at_once(version: NatsVersion, how: Parting) {
    let in_fleet = in_fleet();
    let cluster = NatsCluster::shipped_with(version, unadvertised).await;
    let mut lines = Vec::new();
    for server in &cluster.servers {
        lines.push(Line::to(server.port()).await);
    }
    let urls = lines.iter().map(|line| {
        let login = format!("{}:node", shipped::EVERY_NODE);
        format!("nats://{login}@127.0.0.1:{}", line.port())
    });
    let fleet = Fleet::on(&cluster).await.through(urls.collect());
    let _dispatcher = fleet.dispatcher("one");
    let _nodes = fleet.nodes("sim", in_fleet, "0");
    fleet.present(in_fleet as usize).await;
    let job = |images| json!({"images": images, "parallelism": "100%"});
    fleet.submit("before", job(images(1))).await;
    fleet.ended("before").await;

    let lost = carrying(&lines, LIMIT).await;
    lines[lost].part(how);
    let other = carrying(&lines, LIMIT).await;
    assert_ne!(lost, other);
    let began = Instant::now();
    fleet.submit("after", job(images(1))).await;
    let record = fleet.ended("after").await;
    let took = began.elapsed();
    println!(
        "{version:?}, {how:?}: {in_fleet} nodes were at work {took:?} after they had another server"
    );
    assert_eq!(record.status.counts.succeeded, in_fleet, "{record:?}");
    assert!(took < AT_WORK_WITHIN, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_cut_off_are_at_work_at_once_with_nats_2_10() {
    workers_that_lose_their_server_are_at_work_at_once(NatsVersion::V2_10, Parting::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_cut_off_are_at_work_at_once_with_nats_2_15() {
    workers_that_lose_their_server_are_at_work_at_once(NatsVersion::V2_15, Parting::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_behind_a_partition_are_at_work_at_once_with_nats_2_10() {
    workers_that_lose_their_server_are_at_work_at_once(NatsVersion::V2_10, Parting::Silence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_behind_a_partition_are_at_work_at_once_with_nats_2_15() {
    workers_that_lose_their_server_are_at_work_at_once(NatsVersion::V2_15, Parting::Silence).await;
}
