//! The worker itself, with its usual settings: what memory it takes while it pulls one image after the other, and what it
//! keeps when it has nothing to do.

use std::time::Duration;

use serde_json::json;

use super::support::containerd::{Containerd, ContainerdVersion};
use super::support::nats::{NatsServer, NatsVersion};
use super::support::prewarm::{Role, prewarm};
use super::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(120);
/// How long it has nothing to do before its memory is looked at.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// Pulls these images, all of the registry at `address`.
pub(super) async fn memory(address: &str, images: &[&str]) {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    containerd.allow_registry(address);
    let call = |args: &[&str]| {
        prewarm(args)
            .env("PREWARM_NATS_URL", nats.url())
            .env("PREWARM_METRICS_LISTEN", "off")
            .env("PREWARM_REGISTRY_CONFIG_DIR", containerd.certs_dir())
    };
    let _dispatcher = call(&["dispatcher"]).spawn("the dispatcher");
    let worker = call(&["worker"])
        .env("PREWARM_NODE", "node")
        .env("PREWARM_CONTAINERD_ADDRESS", containerd.socket())
        .env("PREWARM_MIN_FREE_DISK", "0%")
        .spawn("the worker");
    let has = async |args: &[&str], words: &str| {
        eventually(&format!("{args:?} to say {words}"), LIMIT, async || {
            let output = call(args).run().await;
            match output.stdout.contains(words) {
                true => Ok(()),
                false => Err(format!("{output:?}")),
            }
        })
        .await;
    };
    has(&["get", "node", "node", "-o", "json"], "\"Present\"").await;
    let client = nats.client().await;
    for image in images {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": image},
            "spec": {"images": [format!("{address}/{image}:1")]},
        });
        let manifest = manifest.to_string().into();
        client
            .publish("prewarm.job.submit", manifest)
            .await
            .unwrap();
        has(&["get", "job", image, "-o", "json"], "\"Succeeded\"").await;
    }
    let most = resident(&worker, "VmHWM:");
    tokio::time::sleep(IDLE_FOR).await;
    println!(
        "\nworker: {:.1} MB at most while it pulled {}; {:.1} MB after {} s with nothing to do",
        most,
        images.join(", "),
        resident(&worker, "VmRSS:"),
        IDLE_FOR.as_secs(),
    );
}

/// A line of its /proc/PID/status, in MB.
fn resident(worker: &Role, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kibibytes: f64 = line
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kibibytes * 1024.0 / 1e6
}
