//! A cluster that has no leader yet.

use crate::fleet::{Fleet, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::NatsCluster;

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
