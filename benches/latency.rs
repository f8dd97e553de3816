//! How long a published message takes to become work, and what an idle worker costs:
//! `cargo bench --bench latency` (root, for containerd; `make parts` before).
//!
//! Everything is real but the registry, which only notes when it is asked and answers 404: what
//! counts is the moment of the worker's first request. Dispatcher and worker are the release
//! program, each a process of its own; they reach the registry by different addresses, so that
//! the dispatcher's question (what the tag means) is not taken for the worker's.
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

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::json;
use support::containerd::{Containerd, ContainerdVersion};
use support::nats::{NatsServer, NatsVersion};
use support::prewarm::{Role, prewarm};
use support::wait::{eventually, within};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const JOBS: usize = 100;
const IDLE_FOR: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(30);

/// A registry that has nothing and tells when it was asked for what.
async fn registry() -> (String, mpsc::UnboundedReceiver<(Instant, String)>) {
    let (asked, questions) = mpsc::unbounded_channel();
    let app = Router::new().fallback(answer).with_state(asked);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, questions)
}

async fn answer(
    State(asked): State<mpsc::UnboundedSender<(Instant, String)>>,
    uri: Uri,
) -> StatusCode {
    asked.send((Instant::now(), uri.path().to_owned())).unwrap();
    if uri.path() == "/v2/" {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

fn hosts_toml(directory: &std::path::Path, address: &str) {
    let host = directory.join("bench.invalid");
    std::fs::create_dir_all(&host).unwrap();
    let toml = format!("server = \"http://{address}\"\n[host.\"http://{address}\"]\n");
    std::fs::write(host.join("hosts.toml"), toml).unwrap();
}

struct Cell {
    nats: NatsServer,
    _containerd: Containerd,
    _dispatcher: Role,
    worker: Role,
    questions: mpsc::UnboundedReceiver<(Instant, String)>,
    _folder: tempfile::TempDir,
}

impl Cell {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (of_dispatcher, of_worker) = (folder.path().join("a"), folder.path().join("b"));
        let (first, _) = registry().await;
        let (second, questions) = registry().await;
        hosts_toml(&of_dispatcher, &first);
        hosts_toml(&of_worker, &second);
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let containerd = Containerd::start(ContainerdVersion::V1_7).await;
        let role = |args: &[&str], certs: &std::path::Path| {
            prewarm(args)
                .env("PREWARM_NATS_URL", nats.url())
                .env("PREWARM_METRICS_LISTEN", "off")
                .env("PREWARM_REGISTRY_CONFIG_DIR", certs)
        };
        let dispatcher = role(&["dispatcher"], &of_dispatcher).spawn("the dispatcher");
        let worker = role(&["worker"], &of_worker)
            .env("PREWARM_NODE", "node")
            .env("PREWARM_CONTAINERD_ADDRESS", containerd.socket())
            .spawn("the worker");
        eventually("the node to be present", LIMIT, async || {
            let output = role(&["get", "node", "node", "-o", "json"], &of_worker)
                .run()
                .await;
            if output.stdout.contains("\"Present\"") {
                Ok(())
            } else {
                Err(format!("{output:?}"))
            }
        })
        .await;
        Self {
            nats,
            _containerd: containerd,
            _dispatcher: dispatcher,
            worker,
            questions,
            _folder: folder,
        }
    }

    /// From the publish of a job to the worker's first request for its image.
    async fn latency(&mut self, client: &async_nats::Client, job: usize) -> Duration {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": format!("job-{job}")},
            "spec": {"images": [format!("bench.invalid/app-{job}:1")]},
        });
        let published = Instant::now();
        client
            .publish("prewarm.job.submit", manifest.to_string().into())
            .await
            .unwrap();
        let wanted = format!("/v2/app-{job}/");
        let asked = async {
            loop {
                let (at, path) = self.questions.recv().await.unwrap();
                if path.starts_with(&wanted) {
                    return at;
                }
            }
        };
        within(LIMIT, "the worker to ask the registry", asked).await - published
    }

    /// CPU time the worker has used so far (proc_pid_stat(5): utime and stime, in ticks of 10 ms).
    fn worker_cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.worker.pid())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

#[tokio::main]
async fn main() {
    let mut cell = Cell::start().await;
    let client = cell.nats.client().await;
    let mut taken = Vec::new();
    for job in 0..JOBS {
        taken.push(cell.latency(&client, job).await);
    }
    taken.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "publish to the worker's first request to the registry, {JOBS} jobs: median {:.1} ms, min {:.1} ms, p90 {:.1} ms, max {:.1} ms",
        millis(taken[JOBS / 2]),
        millis(taken[0]),
        millis(taken[JOBS * 9 / 10]),
        millis(taken[JOBS - 1]),
    );
    let before = cell.worker_cpu();
    tokio::time::sleep(IDLE_FOR).await;
    let used = cell.worker_cpu() - before;
    println!(
        "idle worker: {:.1} MB resident; {} ms of CPU in {} s",
        cell.worker.resident_bytes() as f64 / 1e6,
        used.as_millis(),
        IDLE_FOR.as_secs(),
    );
}
