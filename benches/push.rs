//! How long a push to a registry takes to become work: from the request that puts the manifest under its tag to the first
//! pull task on the broker. `cargo bench --bench push` (`make parts` before).
//!
//! Everything is real: docker-registry with notifications, the receiver, the dispatcher, nats-server; the node is one of
//! `prewarm simulate`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use support::images::generated;
use support::nats::{NatsServer, NatsVersion};
use support::prewarm::prewarm;
use support::process::free_port;
use support::registry::Registry;
use support::wait::{eventually, within};

const PUSHES: usize = 50;
const LIMIT: Duration = Duration::from_secs(30);
const SECRET: &str = "a-secret-of-the-bench";

#[tokio::main]
async fn main() {
    let port = free_port();
    let registry = Registry::start_with(&format!(
        "notifications:\n  endpoints:\n    - name: prewarm\n      url: http://127.0.0.1:{port}/webhooks/distribution\n      headers: {{Authorization: [Bearer {SECRET}]}}\n      timeout: 5s\n      threshold: 2\n      backoff: 200ms\n"
    ))
    .await;
    let address = registry.addr();
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let folder = tempfile::tempdir().unwrap();
    let (sources, rule) = (
        folder.path().join("sources.yaml"),
        folder.path().join("rule.yaml"),
    );
    let text = format!(
        "sources: {{distribution: {{secret-env: HOOK_SECRET, registries: ['{address}']}}}}"
    );
    std::fs::write(&sources, text).unwrap();
    let text = "apiVersion: prewarm.dev/v1\nkind: PushRule\nmetadata: {name: all}\nspec:\n  registry: '**'\n  repository: '**'\n  \
        job: {spec: {images: ['{{registry}}/{{repository}}@{{digest}}']}}\n";
    std::fs::write(&rule, text).unwrap();
    let role = |args: &[&str]| {
        prewarm(args)
            .env("PREWARM_NATS_URL", nats.url())
            .env("PREWARM_METRICS_LISTEN", "off")
    };
    let mut dispatcher = role(&["dispatcher"]).spawn("the dispatcher");
    dispatcher.logs("taking pushes", LIMIT).await;
    let listen = format!("127.0.0.1:{port}");
    let receiver = [
        "webhook",
        "--listen",
        &listen,
        "--webhook-config",
        sources.to_str().unwrap(),
    ];
    let mut receiver = role(&receiver)
        .env("HOOK_SECRET", SECRET)
        .spawn("the receiver");
    receiver.logs("the broker is connected", LIMIT).await;
    let _node = role(&["simulate", "--nodes", "1", "--simulated-latency", "0"]).spawn("the node");
    eventually("the node to be present", LIMIT, async || {
        let nodes = role(&["get", "nodes", "-o", "json"]).run().await;
        if nodes.stdout.contains("\"Present\"") {
            Ok(())
        } else {
            Err(nodes)
        }
    })
    .await;
    let applied = role(&["apply", "-f", rule.to_str().unwrap()]).run().await;
    assert_eq!(applied.code, 0, "{applied:?}");

    let mut took = measure(&nats, &registry).await;
    took.sort_by(f64::total_cmp);
    println!(
        "from the push of the manifest to the first pull task, {PUSHES} pushes: median {:.1} ms, min {:.1}, p90 {:.1}, max {:.1}",
        took[took.len() / 2],
        took[0],
        took[took.len() * 9 / 10],
        took[took.len() - 1]
    );
}

/// Milliseconds of each push.
async fn measure(nats: &NatsServer, registry: &Registry) -> Vec<f64> {
    let client = nats.client().await;
    let mut tasks = client.subscribe("prewarm.task.>").await.unwrap();
    client.flush().await.unwrap();
    let mut took = Vec::new();
    for n in 0..=PUSHES {
        let image = generated(n as u64, 1, 10_000).build();
        let pushed = registry.push("team/app", &format!("1.{n}"), &image).await;
        let task = within(LIMIT, "a pull task", tasks.next()).await.unwrap();
        let arrived = Instant::now();
        let body = String::from_utf8_lossy(&task.payload).into_owned();
        assert!(body.contains(&pushed.digest), "{body}");
        // The first one opens connections.
        if n > 0 {
            took.push(arrived.duration_since(pushed.tagged_at).as_secs_f64() * 1e3);
        }
    }
    took
}
