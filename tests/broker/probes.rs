//! What a server answers to the pod's probes, in health and without a quorum.

use std::time::Duration;

use crate::manifests::{cluster_broker, nats};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::NatsCluster;
use crate::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(60);
/// Least time for which a start may fail: what a server has to catch up with after a long absence.
const PATIENCE: u64 = 1_800;

/// The paths of the three probes.
pub(crate) struct Paths {
    startup: String,
    pub(crate) readiness: String,
    liveness: String,
}

pub(crate) fn paths() -> Paths {
    let all = cluster_broker();
    let container = nats(&all);
    let path = |probe: &str| {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], "monitor", "{probe}");
        // A second is too little for one that goes through all streams and consumers.
        assert!(
            container[probe]["timeoutSeconds"].as_u64() >= Some(5),
            "{probe}"
        );
        get["path"].as_str().unwrap().to_owned()
    };
    let startup = &container["startupProbe"];
    let number = |key: &str| startup[key].as_u64().unwrap();
    let patience = number("periodSeconds") * number("failureThreshold");
    assert!(patience >= PATIENCE, "{patience} s");
    Paths {
        startup: path("startupProbe"),
        readiness: path("readinessProbe"),
        liveness: path("livenessProbe"),
    }
}

/// Waits until this server answers a path with this status.
async fn answers(cluster: &NatsCluster, number: usize, path: &str, status: u16) -> String {
    let what = format!("server {number} to answer {path} with {status}");
    eventually(&what, LIMIT, async || {
        match cluster.monitor(number, path).await {
            Ok((seen, body)) if seen == status => Ok(body),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_quorum_is_not_killed_and_only_its_start_waits_for_one() {
    let paths = paths();
    for version in NatsVersion::ALL {
        let mut cluster = NatsCluster::shipped(version).await;
        for number in 0..cluster.servers.len() {
            for path in [&paths.startup, &paths.readiness, &paths.liveness] {
                answers(&cluster, number, path, 200).await;
            }
        }
        for server in &mut cluster.servers[1..] {
            server.kill();
        }
        let without = answers(&cluster, 0, &paths.startup, 503).await;
        assert!(without.contains("JetStream"), "{version:?}: {without}");
        // Restarted alone it is the same: kubelet would kill it after the startup probe's patience only.
        for restarted in [false, true] {
            if restarted {
                cluster.servers[0].restart().await;
                answers(&cluster, 0, &paths.startup, 503).await;
            }
            answers(&cluster, 0, &paths.readiness, 200).await;
            answers(&cluster, 0, &paths.liveness, 200).await;
        }
        for server in &mut cluster.servers[1..] {
            server.restart().await;
        }
        answers(&cluster, 0, &paths.startup, 200).await;
    }
}
