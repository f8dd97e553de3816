//! A cluster that has no leader yet, or too few servers.

use crate::fleet::{Fleet, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::{NatsCluster, SERVERS};

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_waits_for_a_cluster_that_has_no_leader() {
    let mut cluster = NatsCluster::start(NatsVersion::V2_15).await;
    let fleet = Fleet::on(&cluster).await;
    for server in &mut cluster.servers[1..] {
        server.kill();
    }
    let mut dispatcher = fleet.dispatcher("a dispatcher");
    dispatcher.logs("is not set up yet", LIMIT).await;
    for server in &mut cluster.servers[1..] {
        server.restart().await;
    }
    dispatcher.logs("leading", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_waits_for_servers_that_are_missing() {
    let cluster = NatsCluster::start(NatsVersion::V2_15).await;
    let fleet = Fleet::new(cluster.client().await, cluster.urls(), SERVERS + 2);
    let mut dispatcher = fleet.dispatcher("a dispatcher");
    let line = dispatcher
        .logs("fewer servers than the 5 replicas", LIMIT)
        .await;
    assert!(line.contains("trying again"), "{line}");
}
