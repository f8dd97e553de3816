//! How many webhooks a receiver on one core takes, and how long each waits: `cargo bench --bench webhook`.
//!
//! The load comes from wrk (Debian: `apt-get install wrk`), with a new event in every request. The receiver has
//! one core for itself; nats-server and wrk share the others. Every push has to be in the stream at the end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

use prewarm::bus::Bus;
use prewarm::bus::topology::{TopologySettings, ensure};
use prewarm::wire::subject::Subjects;

use support::nats::{NatsServer, NatsVersion};
use support::prewarm::{Role, prewarm};
use support::process::free_port;

const LIMIT: Duration = Duration::from_secs(20);
const SECRET: &str = "a-secret-of-32-characters-or-more";
/// As long as what comes fits into the stream, which holds 100,000 messages.
const SECONDS: u32 = 2;
/// Senders that each have one request under way.
const CONNECTIONS: [u32; 3] = [4, 16, 32];
/// What is promised.
const RATE: f64 = 2_000.0;
const P99: f64 = 20.0;

/// Each request is a push of another digest. The last lines are the figures, for us to read.
const SCRIPT: &str = r#"
local count = 0
request = function()
  count = count + 1
  local digest = string.format("sha256:%s%052d", RUN, count)
  local body = '{"type":"PUSH_ARTIFACT","occur_at":' .. count .. ',"operator":"admin","event_data":{"resources":[{"digest":"'
    .. digest .. '","tag":"1.4","resource_url":"r.example.com/team/app:1.4"}],"repository":{"name":"app","namespace":"team",'
    .. '"repo_full_name":"team/app","repo_type":"private"}}}'
  return wrk.format("POST", "/webhooks/harbor", {["Authorization"] = SECRET, ["Content-Type"] = "application/json"}, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("figures %d %d %d %.3f %.3f %.3f\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
"#;

/// Binds every thread of a process to cores.
fn pin(pid: u32, cores: &str) {
    let output = Command::new("taskset")
        .args(["-acp", cores, &pid.to_string()])
        .output();
    let output = output.expect("taskset (Debian: util-linux)");
    assert!(output.status.success(), "taskset: {output:?}");
}

async fn stored(bus: &Bus) -> u64 {
    let mut stream = bus
        .jetstream
        .get_stream(bus.subjects.jobs_stream())
        .await
        .unwrap();
    stream.info().await.unwrap().state.messages
}

/// The receiver on its core, and its broker on the others.
struct Cell {
    bus: Bus,
    others: String,
    port: u16,
    folder: tempfile::TempDir,
    _nats: NatsServer,
    _receiver: Role,
}

impl Cell {
    async fn start() -> Self {
        let cores = std::thread::available_parallelism().unwrap().get();
        let others = if cores > 1 {
            format!("1-{}", cores - 1)
        } else {
            "0".to_owned()
        };
        let mut nats = NatsServer::start(NatsVersion::V2_15).await;
        pin(nats.process().pid(), &others);
        let bus = Bus::new(nats.client().await, Subjects::default());
        ensure(&bus, TopologySettings::default()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("webhooks.yaml");
        let text = "sources: {harbor: {secret-env: HOOK_SECRET, registries: [r.example.com]}}";
        std::fs::write(&config, text).unwrap();
        let port = free_port();
        let mut receiver = prewarm(["webhook", "--metrics-listen", "off", "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("--webhook-config")
            .arg(&config)
            .env("HOOK_SECRET", SECRET)
            .env("PREWARM_NATS_URL", nats.url())
            .spawn("the receiver");
        receiver.logs("the broker is connected", LIMIT).await;
        pin(receiver.pid(), "0");
        Self {
            bus,
            others,
            port,
            folder,
            _nats: nats,
            _receiver: receiver,
        }
    }

    /// What wrk says at its end.
    async fn load(&self, connections: u32) -> Vec<f64> {
        let script = self.folder.path().join("push.lua");
        let head = format!("RUN = \"{connections:012}\"\nSECRET = \"{SECRET}\"\n");
        std::fs::write(&script, format!("{head}{SCRIPT}")).unwrap();
        let (count, time) = (connections.to_string(), format!("{SECONDS}s"));
        let output = tokio::process::Command::new("taskset")
            .args(["-c", &self.others, "wrk", "-t1"])
            .args(["-c", &count, "-d", &time, "-s"])
            .arg(&script)
            .arg(format!("http://127.0.0.1:{}", self.port))
            .output()
            .await
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let line = output
            .lines()
            .find_map(|line| line.strip_prefix("figures "));
        let line = line.unwrap_or_else(|| panic!("wrk said: {output}"));
        line.split(' ')
            .map(|figure| figure.parse().unwrap())
            .collect()
    }

    async fn measure(&self, connections: u32) {
        let jobs = self.bus.subjects.jobs_stream();
        let jobs = self.bus.jetstream.get_stream(jobs).await.unwrap();
        jobs.purge().await.unwrap();
        let figures = self.load(connections).await;
        let &[answered, micros, failed, p50, p99, max] = figures.as_slice() else {
            panic!("wrk said: {figures:?}");
        };
        let rate = answered / (micros / 1e6);
        let stored = stored(&self.bus).await;
        let promised = if rate >= RATE && p99 < P99 {
            ""
        } else {
            " (less than is promised)"
        };
        println!(
            "{connections} senders, receiver on one core: {rate:.0} webhooks/s, median {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms; \
             {answered} answered, {failed} of them not with 2xx, {stored} in the stream{promised}"
        );
        assert!(failed == 0.0, "the receiver refused pushes");
        // wrk leaves its last requests without waiting for their answers.
        let unheard = f64::from(connections);
        let stored = u32::try_from(stored).map(f64::from).unwrap();
        assert!(
            stored >= answered - failed && stored <= answered + unheard,
            "a push is lost or there twice"
        );
    }
}

#[tokio::main]
async fn main() {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !there("wrk") || !there("taskset") {
        println!(
            "webhook: not measured: wrk and taskset have to be on PATH (Debian: apt-get install wrk util-linux)"
        );
        return;
    }
    let cell = Cell::start().await;
    for connections in CONNECTIONS {
        cell.measure(connections).await;
    }
}
