//! One trace from the published message to the last phase of the pull, and log lines that say what they are about.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use prewarm::domain::status::Outcome;
use ring::hmac;
use serde_json::{Value, json};

use super::cell::{Cell, LIMIT, worker_call};
use crate::support::collector::{Collector, Seen};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{generated, http};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::process::free_port;
use crate::support::registry::Registry;
use crate::support::wait::eventually;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";
/// Asks no registry: the digest is there.
const IMAGE: &str =
    "r.invalid/team/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A broker with one dispatcher and one worker that only pretends to pull, both of whom trace.
struct Traced {
    nats: NatsServer,
    endpoint: String,
    dispatcher: Role,
    worker: Role,
}

impl Traced {
    async fn start(endpoint: &str, worker: &[(&str, &str)]) -> Self {
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let mut dispatcher = dispatcher(&nats, endpoint).spawn("the dispatcher");
        dispatcher.logs("taking pushes", LIMIT).await;
        let call = role(&nats, "worker", endpoint)
            .env("PREWARM_NODE", "node-1")
            .env("PREWARM_RUNTIME", "simulated")
            .env("PREWARM_SIMULATED_LATENCY", "50ms");
        let call = worker
            .iter()
            .fold(call, |call, (name, value)| call.env(name, value));
        let mut worker = call.spawn("the worker");
        worker.logs("\"registered\"", LIMIT).await;
        Self {
            nats,
            endpoint: endpoint.to_owned(),
            dispatcher,
            worker,
        }
    }

    async fn publish(&self, name: &str, spec: Value, traceparent: Option<&str>) {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec,
        });
        let mut headers = async_nats::HeaderMap::new();
        if let Some(traceparent) = traceparent {
            headers.insert("traceparent", traceparent);
        }
        let client = self.nats.client().await;
        let body = manifest.to_string().into();
        let subject = "prewarm.job.submit";
        client
            .publish_with_headers(subject, headers, body)
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    /// What was told: by subject, the spans that the events hang under, in the order of the telling.
    async fn told(&self) -> BTreeMap<String, Vec<Option<String>>> {
        let client = self.nats.client().await;
        let jetstream = async_nats::jetstream::new(client);
        let mut stream = jetstream.get_stream("PREWARM_EVENTS").await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let header = message.headers.get("traceparent");
            let spans = told.entry(message.subject.to_string()).or_default();
            spans.push(header.map(|header| header.as_str().to_owned()));
        }
        told
    }

    fn command(&self, args: &[&str]) -> Prewarm {
        prewarm(args).env("PREWARM_NATS_URL", self.nats.url())
    }

    async fn record(&self, job: &str) -> Value {
        let output = self.command(&["get", "job", job, "-o", "json"]).run().await;
        serde_json::from_str(&output.stdout).unwrap_or_default()
    }

    async fn outcome(&self, job: &str) -> String {
        eventually(&format!("job {job} to end"), LIMIT, async || {
            let record = self.record(job).await;
            let outcome = record["status"]["outcome"].as_str();
            outcome.map(str::to_owned).ok_or_else(|| {
                format!(
                    "{record}; dispatcher:\n{}\nworker:\n{}",
                    self.dispatcher.log(),
                    self.worker.log()
                )
            })
        })
        .await
    }
}

fn role(nats: &NatsServer, role: &str, endpoint: &str) -> Prewarm {
    prewarm([role, "--metrics-listen", "off"])
        .env("PREWARM_NATS_URL", nats.url())
        .env("PREWARM_LOG", "info,prewarm=debug")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
}

fn dispatcher(nats: &NatsServer, endpoint: &str) -> Prewarm {
    role(nats, "dispatcher", endpoint)
}

fn traceparent() -> String {
    format!("00-{TRACE}-{PUBLISHER}-01")
}

/// The one span that hangs under another.
fn child<'a>(spans: &'a [Seen], above: &Seen, name: &str) -> &'a Seen {
    let hangs = |span: &&Seen| span.name == name && span.parent_id.as_ref() == Some(&above.span_id);
    let found: Vec<&Seen> = spans.iter().filter(hangs).collect();
    assert_eq!(found.len(), 1, "{name} under {above:#?} in {spans:#?}");
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_message_to_every_phase() {
    let collector = Collector::start().await;
    let cell = Traced::start(collector.endpoint(), &[]).await;
    cell.publish("base", json!({"images": [IMAGE]}), Some(&traceparent()))
        .await;
    let job = collector
        .named("job", &[("job", "base")], 1)
        .await
        .remove(0);
    collector.named("unpack", &[], 1).await;
    collector.named("pull", &[("job", "base")], 1).await;
    let spans = collector.spans();
    let foreign: Vec<&Seen> = spans.iter().filter(|span| span.trace_id != TRACE).collect();
    assert!(foreign.is_empty(), "{foreign:#?}");

    assert_eq!(job.parent_id.as_deref(), Some(PUBLISHER));
    assert_eq!(job.service, "prewarm-dispatcher");
    assert_eq!(
        (job.attribute("outcome"), job.attribute("succeeded")),
        ("Succeeded", "1")
    );
    child(&spans, &job, "resolve");
    let release = child(&spans, &job, "release");
    assert_eq!(release.attribute("node"), "node-1");
    let pull = child(&spans, release, "pull");
    assert_eq!(pull.service, "prewarm-worker");
    for (key, value) in [
        ("job", "base"),
        ("node", "node-1"),
        ("image", IMAGE),
        ("attempt", "1"),
        ("engine", "simulated"),
    ] {
        assert_eq!(pull.attribute(key), value);
    }
    let download = child(&spans, pull, "download");
    let unpack = child(&spans, pull, "unpack");
    assert!(spans.iter().all(|span| span.error.is_none()), "{spans:#?}");
    let within = |inner: &Seen, outer: &Seen| {
        outer.times.0 <= inner.times.0 && inner.times.1 <= outer.times.1
    };
    assert!(within(download, pull) && within(unpack, pull), "{spans:#?}");
    assert!(download.times.1 <= unpack.times.0, "{spans:#?}");
    assert!(job.times.0 <= release.times.0 && pull.times.1 - pull.times.0 >= 50_000_000);

    let context = |span: &Seen| Some(format!("00-{TRACE}-{}-01", span.span_id));
    for (subject, spans) in cell.told().await {
        let wanted = match subject.split('.').nth(2) {
            Some("job") => context(&job),
            Some("task") => context(release),
            _ => None,
        };
        assert!(
            spans.iter().all(|span| *span == wanted),
            "{subject}: {spans:?}, not {wanted:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_belong_to_the_trace_of_their_job_whoever_exports_it() {
    let nobody = "";
    let cell = Traced::start(nobody, &[("PREWARM_SIMULATED_FAILURE_RATE", "1")]).await;
    let spec = json!({"images": [IMAGE], "pullPolicy": {"backoffLimit": 1}});
    cell.publish("traced", spec.clone(), Some(&traceparent()))
        .await;
    cell.publish("plain", spec.clone(), None).await;
    // Never becomes a job.
    cell.publish("wrong", json!({"images": []}), Some(&traceparent()))
        .await;
    for job in ["traced", "plain"] {
        assert_eq!(cell.outcome(job).await, "Failed");
    }
    let told = eventually("everything to be told", LIMIT, async || {
        let told = cell.told().await;
        let rejected = told.contains_key("prewarm.event.job.wrong.rejected");
        rejected.then_some(told.clone()).ok_or(format!("{told:#?}"))
    })
    .await;
    let of = |begins: &str| {
        let about = |(subject, spans): (&String, &Vec<_>)| {
            subject.starts_with(begins).then(|| spans.clone())
        };
        told.iter().filter_map(about).flatten().collect::<Vec<_>>()
    };
    let publisher = Some(traceparent());
    for (what, job, span) in [
        ("job", "traced", &publisher),
        ("task", "traced", &publisher),
        ("job", "wrong", &publisher),
        ("job", "plain", &None),
        ("task", "plain", &None),
    ] {
        let spans = of(&format!("prewarm.event.{what}.{job}."));
        // At least that an attempt began and ended, or that the job was rejected.
        assert!(!spans.is_empty(), "{told:#?}");
        assert!(spans.iter().all(|found| found == span), "{told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_under_another_dispatcher() {
    let collector = Collector::start().await;
    let mut cell = Traced::start(collector.endpoint(), &[]).await;
    let held = |parallelism: u32| json!({"images": [IMAGE], "parallelism": parallelism});
    cell.publish("held", held(0), Some(&traceparent())).await;
    collector.named("resolve", &[("job", "held")], 1).await;
    cell.dispatcher.kill9();
    cell.dispatcher = dispatcher(&cell.nats, &cell.endpoint).spawn("another dispatcher");
    cell.dispatcher.logs("taking pushes", LIMIT).await;
    // An edit of what the job may do is no new run, and belongs to the trace of the run.
    cell.publish("held", held(1), None).await;
    let job = collector
        .named("job", &[("job", "held")], 1)
        .await
        .remove(0);
    collector.named("pull", &[("job", "held")], 1).await;
    let spans = collector.spans();
    let pull = child(&spans, child(&spans, &job, "release"), "pull");
    // The first dispatcher hung this under a span that only the second one knew the end of.
    child(&spans, &job, "resolve");
    assert_eq!(
        (job.trace_id.as_str(), pull.trace_id.as_str()),
        (TRACE, TRACE)
    );
    assert_eq!(job.parent_id.as_deref(), Some(PUBLISHER));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_as_failed_by_attempt_and_a_job_without_a_trace_begins_one() {
    let collector = Collector::start().await;
    let cell = Traced::start(
        collector.endpoint(),
        &[("PREWARM_SIMULATED_FAILURE_RATE", "1")],
    )
    .await;
    // By the command line, which is the beginning of the trace.
    let output = cell
        .command(&[
            "run",
            IMAGE,
            "--name",
            "bad",
            "--backoff-limit",
            "1",
            "--wait",
        ])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .run()
        .await;
    assert_eq!(output.code, 1, "{output:?}");
    let job = collector.named("job", &[("job", "bad")], 1).await.remove(0);
    let pulls = collector.named("pull", &[("job", "bad")], 2).await;
    let request = collector.named("request", &[], 1).await.remove(0);
    assert_eq!(
        (request.service.as_str(), &request.parent_id),
        ("prewarm", &None)
    );
    assert_eq!(job.parent_id.as_ref(), Some(&request.span_id));
    assert!(job.error.is_some(), "{job:#?}");
    for (pull, attempt) in pulls.iter().zip(["1", "2"]) {
        assert_eq!(pull.attribute("attempt"), attempt);
        assert!(pull.attributes.contains_key("failure"), "{pull:#?}");
        assert!(pull.error.is_some(), "{pull:#?}");
        assert_eq!(pull.trace_id, request.trace_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_recorded_is_not_exported_and_a_ci_passes_its_trace_on() {
    let collector = Collector::start().await;
    let cell = Traced::start(collector.endpoint(), &[]).await;
    let unsampled = format!("00-{TRACE}-{PUBLISHER}-00");
    cell.publish("quiet", json!({"images": [IMAGE]}), Some(&unsampled))
        .await;
    assert_eq!(cell.outcome("quiet").await, "Succeeded");
    // This command exports nothing itself.
    let ci = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01";
    let output = cell
        .command(&["run", IMAGE, "--name", "ci", "--wait"])
        .env("TRACEPARENT", ci)
        .run()
        .await;
    assert_eq!(output.code, 0, "{output:?}");
    let job = collector.named("job", &[("job", "ci")], 1).await.remove(0);
    assert_eq!(job.parent_id.as_deref(), Some("bbbbbbbbbbbbbbbb"));
    collector.named("pull", &[("job", "ci")], 1).await;
    // Nor does the service for requests.
    let script = "00-cccccccccccccccccccccccccccccccc-dddddddddddddddd-01";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", script);
    let manifest = json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": "asked"}, "spec": {"images": [IMAGE]},
    });
    let client = cell.nats.client().await;
    client
        .request_with_headers("prewarm.api.submit", headers, manifest.to_string().into())
        .await
        .unwrap();
    let job = collector
        .named("job", &[("job", "asked")], 1)
        .await
        .remove(0);
    assert_eq!(job.parent_id.as_deref(), Some("dddddddddddddddd"));
    collector.named("pull", &[("job", "asked")], 1).await;
    let all = collector.spans();
    let wanted = ["a".repeat(32), "c".repeat(32)];
    assert!(
        all.iter().all(|span| wanted.contains(&span.trace_id)),
        "{all:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_from_a_webhook_by_a_rule_to_the_pull() {
    let collector = Collector::start().await;
    let cell = Traced::start(collector.endpoint(), &[]).await;
    let rule = "apiVersion: prewarm.dev/v1\nkind: PushRule\nmetadata: {name: ci}\nspec: {registry: r.invalid, repository: '**'}\n";
    let applied = cell.command(&["apply", "-f", "-"]).stdin(rule).run().await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let folder = tempfile::tempdir().unwrap();
    let sources = folder.path().join("sources.yaml");
    std::fs::write(
        &sources,
        "sources: {generic: {secret-env: HOOK_SECRET, registries: [r.invalid]}}",
    )
    .unwrap();
    let port = free_port();
    let mut receiver = role(&cell.nats, "webhook", collector.endpoint())
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--webhook-config")
        .arg(&sources)
        .env("HOOK_SECRET", "a-secret-of-the-test")
        .spawn("the receiver");
    receiver.logs("the broker is connected", LIMIT).await;
    let push = json!({"repository": "team/app", "tag": "1", "digest": IMAGE.split_once('@').unwrap().1, "registry": "r.invalid"});
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"a-secret-of-the-test");
    let signature = hmac::sign(&key, push.to_string().as_bytes());
    let signature: String = signature
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let answer = http()
        .post(format!("http://127.0.0.1:{port}/webhooks/generic"))
        .header("x-signature", format!("sha256={signature}"))
        .header("traceparent", traceparent())
        .body(push.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202, "{:?}", answer.text().await);
    let hook = collector.named("webhook", &[], 1).await.remove(0);
    let job = collector.named("job", &[], 1).await.remove(0);
    // By its tag and by its digest.
    let pull = collector.named("pull", &[], 2).await.remove(0);
    assert_eq!(hook.parent_id.as_deref(), Some(PUBLISHER));
    assert_eq!(job.parent_id.as_ref(), Some(&hook.span_id));
    for span in [&hook, &job, &pull] {
        assert_eq!(span.trace_id, TRACE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_refuses_holds_nothing_up() {
    // It takes connections, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let cell = Traced::start(&endpoint, &[]).await;
    let began = Instant::now();
    cell.publish("quick", json!({"images": [IMAGE]}), Some(&traceparent()))
        .await;
    assert_eq!(cell.outcome("quick").await, "Succeeded");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );

    let refusing = Collector::answering(StatusCode::BAD_REQUEST).await;
    let port = free_port();
    let mut counting = prewarm(["worker"])
        .env("PREWARM_METRICS_LISTEN", format!("127.0.0.1:{port}"))
        .env("PREWARM_NATS_URL", cell.nats.url())
        .env("PREWARM_NODE", "node-2")
        .env("PREWARM_RUNTIME", "simulated")
        .env("PREWARM_SIMULATED_LATENCY", "1ms")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", refusing.endpoint())
        .spawn("a worker that counts");
    counting.logs("\"registered\"", LIMIT).await;
    let spec = json!({"images": [IMAGE], "selector": {"names": ["node-2"]}});
    cell.publish("counted", spec, Some(&traceparent())).await;
    assert_eq!(cell.outcome("counted").await, "Succeeded");
    let url = format!("http://127.0.0.1:{port}/metrics");
    // The pull and its two phases.
    let wanted = "prewarm_trace_spans_total{outcome=\"dropped\"} 3";
    eventually("dropped spans to be counted", LIMIT, async || {
        let answer = http().get(&url).send().await.map_err(|e| e.to_string())?;
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if text.contains(wanted) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    counting.logs("spans are dropped", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_pull_has_a_span_for_every_phase_and_layer() {
    let collector = Collector::start().await;
    let (nats, registry) = tokio::join!(NatsServer::start(NatsVersion::V2_10), Registry::start());
    let cell = Cell::start_with(nats, registry).await;
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    containerd.allow_registry(&cell.registry.addr());
    let image = generated(3, 3, 50_000).build();
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let _worker = worker_call(&cell.nats, "node", &containerd)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .spawn("the worker");
    cell.present("node").await;
    // The dispatcher exports nothing here, and passes the context on.
    let output = cell
        .prewarm(&["run", &pushed.by_tag, "--name", "real", "--wait"])
        .env("TRACEPARENT", traceparent())
        .run()
        .await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        cell.record("real").await.unwrap().status.outcome,
        Some(Outcome::Succeeded)
    );
    let pull = collector
        .named("pull", &[("job", "real")], 1)
        .await
        .remove(0);
    assert_eq!(
        (pull.trace_id.as_str(), pull.parent_id.as_deref()),
        (TRACE, Some(PUBLISHER))
    );
    assert_eq!(pull.attribute("engine"), "native");
    let spans = collector.spans();
    for name in ["resolve", "download", "name"] {
        child(&spans, &pull, name);
    }
    let download = child(&spans, &pull, "download");
    for (name, count) in [("layer", 3), ("commit", 3)] {
        let of_it =
            |span: &&Seen| span.name == name && span.parent_id.as_ref() == Some(&download.span_id);
        assert_eq!(spans.iter().filter(of_it).count(), count, "{spans:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_a_pull_says_which_in_json_and_in_text() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let call = |name: &str, format: &str| {
        prewarm([name, "--metrics-listen", "off"])
            .env("PREWARM_NATS_URL", nats.url())
            .env("PREWARM_LOG", "info,prewarm=debug,async_nats=off")
            .env("PREWARM_LOG_FORMAT", format)
    };
    let worker = |node: &str, format: &str| {
        call("worker", format)
            .env("PREWARM_NODE", node)
            .env("PREWARM_RUNTIME", "simulated")
            .env("PREWARM_SIMULATED_LATENCY", "1ms")
            .env("PREWARM_SIMULATED_FAILURE_RATE", "1")
            .spawn("a worker")
    };
    let mut dispatcher = call("dispatcher", "json").spawn("the dispatcher");
    dispatcher.logs("taking pushes", LIMIT).await;
    let (mut json, mut text) = (worker("node-1", "json"), worker("node-2", "text"));
    json.logs("\"registered\"", LIMIT).await;
    text.logs("INFO registered", LIMIT).await;
    let output = prewarm([
        "run",
        IMAGE,
        "--name",
        "told",
        "--backoff-limit",
        "0",
        "--wait",
    ])
    .env("PREWARM_NATS_URL", nats.url())
    .env("TRACEPARENT", traceparent())
    .run()
    .await;
    assert_eq!(output.code, 1, "{output:?}");

    json.logs("pull failed for good", LIMIT).await;
    for message in ["pull started", "pull failed for good"] {
        let found = lines(&json.log(), message);
        assert_eq!(found.len(), 1, "{}", json.log());
        let line = &found[0];
        assert_eq!(
            (
                &line["job"],
                &line["node"],
                &line["image"],
                &line["attempt"],
                &line["trace_id"]
            ),
            (
                &json!("told"),
                &json!("node-1"),
                &json!(IMAGE),
                &json!(1),
                &json!(TRACE)
            ),
            "{line}"
        );
    }
    assert_dispatcher_says(&dispatcher.log());
    let line = text.logs("pull failed for good", LIMIT).await;
    for field in ["job=told", "node=node-2", "attempt=1", TRACE, IMAGE] {
        assert!(line.contains(field), "{field} in {line}");
    }
}

/// The lines with this message.
fn lines(log: &str, about: &str) -> Vec<Value> {
    let parse = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let about = Value::from(about);
    let all = log.lines().map(parse);
    all.filter(|line| line["message"] == about).collect()
}

/// Both pulls were released and ended, and the lines say which.
fn assert_dispatcher_says(log: &str) {
    let released = lines(log, "released");
    assert_eq!(released.len(), 2, "{log}");
    for line in &released {
        assert_eq!(
            (&line["job"], &line["image"], &line["trace_id"]),
            (&json!("told"), &json!(IMAGE), &json!(TRACE))
        );
        assert!(
            line["node"].as_str().unwrap().starts_with("node-"),
            "{line}"
        );
    }
    let ended = lines(log, "a pull ended");
    assert_eq!(ended.len(), 2, "{log}");
    for line in &ended {
        assert_eq!(
            (&line["job"], &line["attempt"]),
            (&json!("told"), &json!(1))
        );
        assert!(line["node"].is_string() && line["image"] == IMAGE, "{line}");
    }
}
