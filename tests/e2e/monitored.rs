//! The dashboard and the alert rules against a cell that works, scraped by a real Prometheus: every query returns data,
//! and the table of metrics says what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::cell::{Cell, LIMIT, dispatcher_call, worker_call};
use crate::support::collector::Collector;
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{generated, http};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;
use crate::support::prewarm::{Role, prewarm};
use crate::support::process::free_port;
use crate::support::prometheus::Prometheus;
use crate::support::registry::Registry;
use crate::support::wait::eventually;

/// Those that have it export traces, and count what they export.
const OTLP: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Everything that serves metrics, and who scrapes it.
struct Monitored {
    cell: Cell,
    prometheus: Prometheus,
    /// Where the receiver takes webhooks.
    hooks: u16,
    /// Where metrics are served.
    ports: [u16; 4],
    _containerd: Containerd,
    _others: [Role; 3],
    _collector: Collector,
    _folder: tempfile::TempDir,
}

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/monitoring")
        .join(file)
}

fn listen(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Monitored {
    /// A broker, a dispatcher, a worker of a containerd (`real`), one that pretends (`pretends`) and a receiver.
    async fn start() -> Self {
        let ports = [(); 4].map(|()| free_port());
        let [dispatching, real, pretending, receiving] = ports.map(listen);
        let rules = monitoring("rules.yaml");
        let (collector, nats, registry, containerd, prometheus) = tokio::join!(
            Collector::start(),
            NatsServer::start(NatsVersion::V2_15),
            Registry::start(),
            Containerd::start(ContainerdVersion::V1_7),
            Prometheus::start("prewarm", &ports, &rules),
        );
        containerd.allow_registry(&registry.addr());
        let dispatcher = dispatcher_call(&nats)
            .env("PREWARM_METRICS_LISTEN", dispatching)
            .env(OTLP, collector.endpoint())
            .spawn("the dispatcher");
        let real = worker_call(&nats, "real", &containerd)
            .env("PREWARM_METRICS_LISTEN", real)
            .env(OTLP, collector.endpoint())
            .spawn("the worker of containerd");
        let pretending = worker_call(&nats, "pretends", &containerd)
            .env("PREWARM_METRICS_LISTEN", pretending)
            .env("PREWARM_RUNTIME", "simulated")
            .env("PREWARM_SIMULATED_LATENCY", "10ms")
            .env("PREWARM_SIMULATED_FAILURE_RATE", "0.4")
            .spawn("the worker that pretends");
        let folder = tempfile::tempdir().unwrap();
        let sources = folder.path().join("sources.yaml");
        let text = "sources: {generic: {proof: none, registries: [r.example.com]}}";
        std::fs::write(&sources, text).unwrap();
        let hooks = free_port();
        let receiver = prewarm(["webhook", "--listen", &listen(hooks)])
            .arg("--webhook-config")
            .arg(&sources)
            .env("PREWARM_METRICS_LISTEN", receiving)
            .env(OTLP, collector.endpoint())
            .env("PREWARM_NATS_URL", nats.url())
            .spawn("the receiver");
        let monitored = Self {
            cell: Cell {
                nats,
                registry,
                dispatcher,
            },
            prometheus,
            hooks,
            ports,
            _containerd: containerd,
            _others: [real, pretending, receiver],
            _collector: collector,
            _folder: folder,
        };
        // What is counted from now on was seen at zero.
        monitored.finds("count(up == 1) == 4").await;
        let conditions = "count(prewarm_ready == 1) == 2 + 3 + 3 + 2";
        monitored.finds(conditions).await;
        monitored
    }

    /// Waits until the expression has a value that is a number.
    async fn finds(&self, expression: &str) {
        eventually(&format!("data of {expression}"), LIMIT, async || {
            let found = self.prometheus.query(expression).await?;
            if found.iter().any(|(_, value)| !value.is_nan()) {
                Ok(())
            } else {
                Err(format!("{found:?}; {}", self.cell.dispatcher.log()))
            }
        })
        .await;
    }

    async fn hook(&self, body: &'static str) -> u16 {
        let url = format!("http://127.0.0.1:{}/webhooks/generic", self.hooks);
        let sent = http().post(url).body(body).send().await;
        sent.unwrap().status().as_u16()
    }

    /// Jobs that succeed, with and without retries, one that fails, and a push.
    async fn work(&self) {
        let registry = &self.cell.registry;
        let image = generated(5, 2, 100_000).build();
        let pushed = registry.push("team/app", "1", &image).await;
        let on = |node: &str| json!({"names": [node]});
        let publish = async |name: &str, node: &str, images: Value| {
            let spec = json!({"images": images, "selector": on(node), "parallelism": 20});
            self.cell.publish(name, spec).await;
        };
        publish("first", "real", json!([pushed.by_tag])).await;
        let missing = format!("{}/team/nothing:1", registry.addr());
        publish("fails", "real", json!([missing])).await;
        // By their digests, so that nobody asks what they mean; which attempts fail is drawn by the names.
        let images: Vec<String> = (0..12)
            .map(|number| format!("sim.invalid/{number}@sha256:{number:064x}"))
            .collect();
        publish("retries", "pretends", json!(images)).await;
        for job in ["first", "fails", "retries"] {
            self.cell.ended(job).await;
        }
        publish("again", "real", json!([pushed.by_tag])).await;
        self.cell.ended("again").await;
        let push = r#"{"registry": "r.example.com", "repository": "team/app", "tag": "1"}"#;
        assert_eq!(self.hook(push).await, 202);
        assert_eq!(self.hook("no JSON").await, 400);
    }

    async fn metrics(&self, port: u16) -> String {
        let url = format!("http://127.0.0.1:{port}/metrics");
        http().get(url).send().await.unwrap().text().await.unwrap()
    }
}

fn document(file: &str) -> Value {
    let text = std::fs::read_to_string(monitoring(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// Every query of the dashboard, as Grafana sends it for all jobs.
fn queries() -> Vec<String> {
    let dashboard = document("dashboard.json");
    let panels = dashboard["panels"].as_array().unwrap();
    let of_panel = |panel: &Value| panel["targets"].as_array().cloned().unwrap_or_default();
    let targets: Vec<Value> = panels.iter().flat_map(of_panel).collect();
    let query = |target: &Value| {
        let query = target["expr"].as_str().unwrap();
        query
            .replace("$job", ".*")
            .replace("$__rate_interval", "2m")
    };
    let queries: Vec<String> = targets.iter().map(query).collect();
    assert!(queries.len() > 40 && queries.iter().all(|query| !query.contains('$')));
    queries
}

/// The metrics that the alert rules look at, each with its matchers.
fn looked_at() -> BTreeSet<String> {
    let rules = document("rules.yaml");
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    let mut found = BTreeSet::new();
    for rule in rules {
        let text = rule["expr"].as_str().unwrap();
        let mut of_rule = BTreeSet::new();
        for (at, _) in text.match_indices("prewarm_") {
            let rest = &text[at..];
            let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !name(c)).unwrap_or(rest.len());
            let matchers = rest[end..]
                .strip_prefix('{')
                .and_then(|rest| rest.find('}'));
            of_rule.insert(rest[..end + matchers.map_or(0, |end| end + 2)].to_owned());
        }
        assert!(!of_rule.is_empty(), "{text}");
        found.extend(of_rule);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_every_alert_has_data() {
    let monitored = Monitored::start().await;
    monitored.work().await;
    for query in queries() {
        monitored.finds(&query).await;
    }
    for metric in looked_at() {
        monitored.finds(&metric).await;
    }
    // And what was done is what they tell.
    for told in [
        "sum(prewarm_dispatcher_leader) == 1",
        "sum(prewarm_nodes{presence=\"present\"}) == 2",
        "sum(prewarm_jobs{phase=\"Completed\"}) == 4",
        "sum(prewarm_jobs_ended_total{outcome=\"Failed\"}) >= 1",
        "sum(prewarm_job_failed_pulls_total{kind=\"ImageNotFound\"}) >= 1",
        "sum(prewarm_worker_retries_total) >= 1",
        "sum(prewarm_worker_bytes_total{source=\"registry\"}) > 100000",
        "sum(prewarm_worker_bytes_total{source=\"present\"}) > 100000",
        "sum(prewarm_worker_pulls_total{engine=\"native\"}) == 1",
        "sum(prewarm_pulls_released_total) == 15",
        "sum(prewarm_worker_queue_wait_seconds_count) == 15",
        "sum(prewarm_pull_events_total{state=~\"succeeded|failed\"}) == 15",
        "sum(prewarm_worker_slots_taken) == 0",
        "sum(prewarm_trace_spans_total{outcome=\"exported\"}) >= 4",
        "sum(prewarm_trace_spans_total{outcome=\"dropped\"}) == 0",
        "sum(prewarm_webhook_pushes_total{outcome=\"published\"}) == 1",
        "sum(ALERTS{alertname=\"PrewarmJobFailed\", alertstate=\"firing\"}) >= 1",
    ] {
        monitored.finds(told).await;
    }
    let rules = monitored.prometheus.get("rules").await.unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    the_table_is_what_there_is(&monitored).await;
}

/// A metric's type and labels.
type Described = (String, BTreeSet<String>);

async fn the_table_is_what_there_is(monitored: &Monitored) {
    let mut served: BTreeMap<String, Described> = BTreeMap::new();
    for port in monitored.ports {
        let text = monitored.metrics(port).await;
        promtool_takes(&text).await;
        describe(&text, &mut served);
        for name in ["team/app", "r.example.com", "pretends", "retries\""] {
            assert!(!text.contains(name), "{name} is no bounded label:\n{text}");
        }
    }
    let readme = std::fs::read_to_string(monitoring("README.md")).unwrap();
    let mut told = BTreeMap::new();
    for row in readme.lines().filter(|line| line.starts_with("| `p")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split('`').skip(1).step_by(2).map(str::to_owned);
        let described = (cells[2].to_owned(), labels.collect());
        told.insert(cells[1].trim_matches('`').to_owned(), described);
    }
    assert_eq!(
        told, served,
        "the table of deploy/monitoring/README.md (left)"
    );
}

/// Adds the metrics of a text in Prometheus' format.
fn describe(text: &str, served: &mut BTreeMap<String, Described>) {
    let mut current = String::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            name.clone_into(&mut current);
            served.entry(current.clone()).or_default().0 = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split('}').next().unwrap().split("\",");
            let names = labels.map(|label| label.split('=').next().unwrap().to_owned());
            let names = names.filter(|name| name != "le");
            served.get_mut(&current).unwrap().1.extend(names);
        }
    }
}

/// promtool finds nothing in these names, types and texts to be bettered.
async fn promtool_takes(text: &str) {
    let mut promtool = tokio::process::Command::new(parts::program("prometheus", "promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    let said = promtool.wait_with_output().await.unwrap();
    assert!(said.status.success(), "{said:?}");
}
