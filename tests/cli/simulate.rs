//! A fleet that pretends, over a few connections to a real broker.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(30);
const NODES: u64 = 40;

struct Cell {
    nats: NatsServer,
    _dispatcher: Role,
}

impl Cell {
    async fn start() -> Self {
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let mut dispatcher = prewarm(["dispatcher", "--metrics-listen", "off"])
            .env("PREWARM_NATS_URL", nats.url())
            .spawn("the dispatcher");
        dispatcher.logs("leading", LIMIT).await;
        Self {
            nats,
            _dispatcher: dispatcher,
        }
    }

    fn call<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Prewarm {
        prewarm(args).env("PREWARM_NATS_URL", self.nats.url())
    }

    async fn nodes_are_there(&self) {
        eventually("the nodes to be there", LIMIT, async || {
            let nodes = self.call(["get", "nodes", "-o", "json"]).run().await;
            let present = nodes.stdout.matches("\"Present\"").count();
            if present == NODES as usize {
                Ok(())
            } else {
                Err(format!("{present} are"))
            }
        })
        .await;
    }

    async fn run_job(&self, name: &str) -> i32 {
        let image = format!("r.invalid/{name}@sha256:{:064x}", 1);
        let args = [
            "run",
            &image,
            "--name",
            name,
            "--wait",
            "--parallelism",
            "10",
        ];
        self.call(args).run().await.code
    }
}

/// The figures of a simulation that was interrupted; what it told on the way comes before or after them.
fn figures(log: &str) -> Value {
    let log = format!("\n{log}");
    let begin = log
        .find("\n{\n")
        .unwrap_or_else(|| panic!("no figures in {log}"));
    let mut documents = serde_json::Deserializer::from_str(&log[begin..]).into_iter();
    documents.next().unwrap().unwrap()
}

async fn simulated(cell: &Cell, failure_rate: &str, job: &str) -> (i32, Value) {
    let mut simulation = cell
        .call([
            "simulate",
            "--nodes",
            "40",
            "--connections",
            "2",
            "-o",
            "json",
        ])
        .arg("--join-rate=40")
        .arg("--simulated-latency=p50=20ms,p99=200ms")
        .arg(format!("--simulated-failure-rate={failure_rate}"))
        .env("PREWARM_LOG", "off")
        .spawn("the simulation");
    cell.nodes_are_there().await;
    let code = cell.run_job(job).await;
    simulation.signal(Signal::INT);
    let ended = simulation.end(LIMIT).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    (code, figures(&ended.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_fleet_says_how_a_job_went() {
    let cell = Cell::start().await;
    let (code, figures) = simulated(&cell, "0", "base").await;
    assert_eq!(code, 0);
    for (name, wanted) in [
        ("joined", NODES),
        ("left", NODES),
        ("received", NODES),
        ("started", NODES),
        ("succeeded", NODES),
        ("failed", 0),
        ("retried", 0),
    ] {
        assert_eq!(figures[name], wanted, "{name} of {figures}");
    }
    let of = |times: &str, which: &str| figures[times][which].as_f64().unwrap();
    for times in ["release", "delivery", "start", "completion", "execution"] {
        let times = format!("{times}Millis");
        assert_eq!(of(&times, "count") as u64, NODES, "{figures}");
        let up = ["p50", "p90", "p99", "max"].map(|which| of(&times, which));
        assert!(up.is_sorted(), "{times} of {figures}");
    }
    // Ten at a time: the last are released when those before have ended.
    let least = of("executionMillis", "p50");
    assert!(least >= 5.0, "{figures}");
    assert!(of("releaseMillis", "max") >= least, "{figures}");
    assert!(
        of("completionMillis", "max") >= of("executionMillis", "max"),
        "{figures}"
    );
    assert!(figures["endedPerSecond"].as_f64().unwrap() > 0.0);

    // The same fleet again, now with a registry that fails always.
    let (code, figures) = simulated(&cell, "1", "worst").await;
    assert_eq!(code, 1);
    assert_eq!(figures["succeeded"], 0, "{figures}");
    assert_eq!(figures["failed"], NODES, "{figures}");
    assert!(figures["retried"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["completionMillis"]["count"], NODES, "{figures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_fleet_that_leaves_ends_with_a_table() {
    let cell = Cell::start().await;
    let output = cell
        .call([
            "simulate",
            "--nodes",
            "40",
            "--join-rate",
            "100",
            "--leave-rate",
            "40",
        ])
        .run()
        .await;
    assert_eq!(output.code, 0, "{output:?}");
    for line in ["nodes joined", "nodes left"] {
        let line = output.stdout.lines().find(|said| said.starts_with(line));
        assert!(line.is_some_and(|line| line.ends_with(" 40")), "{output:?}");
    }
    for part in ["P99", "release to start", "release to end"] {
        assert!(output.stdout.contains(part), "{output:?}");
    }
}

#[tokio::test]
async fn settings_of_a_simulation_are_all_told_when_they_are_wrong() {
    let args = [
        "simulate",
        "--nodes",
        "0",
        "--join-rate",
        "fast",
        "--flapping",
        "2",
    ];
    let output = prewarm(args)
        .arg("--simulated-latency=p50=2s,p99=1s")
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    for name in ["nodes", "join-rate", "flapping", "simulated-latency"] {
        assert!(output.stderr.contains(name), "{name}: {output:?}");
    }
    assert!(
        output.stderr.contains("such as p50=2s,p99=30s"),
        "{output:?}"
    );
}
