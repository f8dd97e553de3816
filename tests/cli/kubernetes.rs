//! A worker in a pod: its node's name, labels and state come from the API of Kubernetes, and changes reach the jobs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::dispatcher::LIMIT;
use super::roles::get;
use crate::support::kubernetes::{Gone, KubernetesApi, Mood};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Output, Role, prewarm};
use crate::support::process::free_port;
use crate::support::wait::eventually;

/// Longer than the longest delay between two tries to ask the API, jitter included.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);

/// A broker and a dispatcher.
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

    /// A worker in a pod that reaches this API.
    fn worker(&self, api: &KubernetesApi, settings: &[(&str, &str)]) -> Role {
        let mut worker = prewarm(["worker", "--runtime", "simulated"])
            .env("PREWARM_METRICS_LISTEN", "off")
            .env("PREWARM_NATS_URL", self.nats.url());
        for (name, value) in settings {
            worker = worker.env(name, value);
        }
        worker.in_a_pod(api).spawn("the worker")
    }

    async fn run(&self, args: &[&str]) -> Output {
        prewarm(args)
            .env("PREWARM_NATS_URL", self.nats.url())
            .run()
            .await
    }

    async fn node(&self, name: &str) -> Result<Value, String> {
        let output = self.run(&["get", "node", name, "-o", "json"]).await;
        serde_json::from_str(&output.stdout).map_err(|_| format!("{output:?}"))
    }

    /// Waits until the node's record is so.
    async fn until(&self, what: &str, name: &str, so: impl Fn(&Value) -> bool) -> Value {
        eventually(what, FOLLOW_LIMIT, async || {
            let node = self.node(name).await?;
            if so(&node) {
                Ok(node)
            } else {
                Err(node.to_string())
            }
        })
        .await
    }

    async fn labelled(&self, name: &str, key: &str, value: &str) -> Value {
        let what = format!("{name} to have {key}={value}");
        let so = |node: &Value| node["labels"][key] == value;
        self.until(&what, name, so).await
    }

    /// Submits a job for the nodes of this selector.
    async fn submit(&self, job: &str, selector: &str, more: &[&str]) {
        // A digest, so that no registry has to say what a tag means.
        let image = format!("example.com/app@sha256:{}", "a".repeat(64));
        let mut args = vec!["run", &image, "--name", job, "--selector", selector];
        args.extend(more);
        let output = self.run(&args).await;
        assert_eq!(output.code, 0, "{output:?}");
    }

    async fn describes(&self, kind: &str, name: &str, line: &str) {
        let what = format!("`describe {kind} {name}` to say {line:?}");
        eventually(&what, LIMIT, async || {
            let text = self.run(&["describe", kind, name]).await.stdout;
            if text.contains(line) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
    }

    async fn succeeded(&self, job: &str, pulls: u32) {
        let what = format!("{job} to have {pulls} pulls succeeded");
        eventually(&what, LIMIT, async || {
            let output = self.run(&["get", "job", job, "-o", "json"]).await;
            let job: Value =
                serde_json::from_str(&output.stdout).map_err(|_| format!("{output:?}"))?;
            let counts = &job["status"]["counts"];
            if counts["succeeded"] == pulls && counts["desired"] == pulls {
                Ok(())
            } else {
                Err(job["status"].to_string())
            }
        })
        .await;
    }
}

/// Waits until `/readyz` of the role at this port has all of this.
async fn readyz(port: u16, wanted: &[&str]) {
    let what = format!("/readyz to say {wanted:?}");
    eventually(&what, LIMIT, async || {
        let text = get(port, "/readyz").await?;
        let has_all = wanted.iter().all(|wanted| text.contains(wanted));
        has_all.then_some(()).ok_or(text)
    })
    .await;
}

#[tokio::test]
async fn name_and_labels_are_those_of_kubernetes_and_a_new_label_brings_the_node_a_job() {
    let cell = Cell::start().await;
    let api = KubernetesApi::start("node-7.example", json!({"pool": "cpu", "zone": "a"})).await;
    // Without PREWARM_NODE: the token says which node it is. The host's name would be the pod's.
    let mut worker = cell.worker(&api, &[("PREWARM_LABELS", "zone=b,rack=7")]);
    let node = cell.labelled("node-7.example", "pool", "cpu").await;
    let expected = json!({"pool": "cpu", "zone": "b", "rack": "7"});
    assert_eq!(node["labels"], expected, "the setting outweighs Kubernetes");

    cell.submit("warm", "pool=gpu", &["--never"]).await;
    cell.describes("job", "warm", "a node that matches").await;
    api.label("pool", "gpu");
    cell.succeeded("warm", 1).await;
    api.label("pool", "cpu");
    cell.succeeded("warm", 0).await;

    let lists = api.requests();
    let lists = lists.iter().filter(|path| !path.contains("watch=true"));
    assert_eq!(lists.count(), 1, "the rest came by the watch");
    assert!(worker.terminate().await.success(), "{}", worker.log());
}

#[tokio::test]
async fn a_cordoned_or_not_ready_node_waits_or_pulls_as_the_operator_chose() {
    let cell = Cell::start().await;
    let pool = || json!({"pool": "x"});
    let (waits, pulls, ill) = tokio::join!(
        KubernetesApi::start("waits", pool()),
        KubernetesApi::start("pulls", pool()),
        KubernetesApi::start("ill", pool()),
    );
    waits.cordon(true);
    pulls.cordon(true);
    pulls.not_ready();
    let wait_for_cordoned = [("PREWARM_WHEN_CORDONED", "wait")];
    let _workers = [
        cell.worker(&waits, &wait_for_cordoned),
        cell.worker(&pulls, &[]),
        cell.worker(&ill, &[("PREWARM_WHEN_NOT_READY", "wait")]),
    ];
    for node in ["waits", "pulls", "ill"] {
        cell.labelled(node, "pool", "x").await;
    }
    // While it runs, too.
    ill.not_ready();
    let held = |node: &Value| node["waiting"] == "NotReady (NodeStatusUnknown) in Kubernetes";
    cell.until("the ill node to wait", "ill", held).await;

    cell.submit("base", "pool=x", &[]).await;
    cell.describes("job", "base", "1 succeeded").await;
    for line in [
        "1 node to take pulls again, cordoned in Kubernetes: waits",
        "1 node to take pulls again, NotReady (NodeStatusUnknown) in Kubernetes: ill",
        "3 pulls: 1 succeeded, 2 pending",
    ] {
        cell.describes("job", "base", line).await;
    }
    let line = "nothing new is released to it: cordoned in Kubernetes";
    cell.describes("node", "waits", line).await;
    let table = cell.run(&["get", "nodes"]).await.stdout;
    let status = |node: &str| {
        let line = table.lines().find(|line| line.starts_with(node));
        line.and_then(|line| line.split_whitespace().nth(1))
            .map(str::to_owned)
    };
    assert_eq!(status("waits").as_deref(), Some("Waiting"), "{table}");
    assert_eq!(status("pulls").as_deref(), Some("Present"), "{table}");

    waits.cordon(false);
    cell.describes("job", "base", "2 succeeded").await;
    ill.change(|node| node["status"]["conditions"][1]["status"] = "True".into());
    cell.succeeded("base", 3).await;
}

#[tokio::test]
async fn changes_are_seen_whatever_becomes_of_the_watch() {
    let cell = Cell::start().await;
    let mut api = KubernetesApi::start("n", json!({"step": "0"})).await;
    let mut worker = cell.worker(&api, &[]);
    cell.labelled("n", "step", "0").await;
    let lists = |api: &KubernetesApi| {
        let requests = api.requests();
        let lists = requests.iter().filter(|path| !path.contains("watch=true"));
        lists.count()
    };

    // Cut off: the watch goes on where it was, and has what came meanwhile.
    api.cut();
    api.label("step", "1");
    cell.labelled("n", "step", "1").await;
    assert_eq!(lists(&api), 1, "{:?}", api.requests());

    // What came meanwhile is gone: the node is listed anew.
    for (number, gone) in [(2, Gone::Event), (3, Gone::Status)] {
        api.stop().await;
        api.label("step", &number.to_string());
        api.forget(gone);
        api.resume().await;
        cell.labelled("n", "step", &number.to_string()).await;
        let what = format!("{number} lists");
        eventually(&what, LIMIT, async || lists(&api) == number).await;
    }

    // Away for a while: what was known stays in force, and it is told.
    api.stop().await;
    worker
        .logs("its labels and state stay as they were", LIMIT)
        .await;
    assert_eq!(cell.node("n").await.unwrap()["presence"], "Present");
    api.label("step", "4");
    api.resume().await;
    cell.labelled("n", "step", "4").await;

    // Not allowed any more.
    api.mood(Mood::Refusing(403));
    api.cut();
    let line = worker.logs("(403)", FOLLOW_LIMIT).await;
    assert!(line.contains("service-accounts.yaml"), "{line}");
    api.mood(Mood::Well);
    api.label("step", "5");
    cell.labelled("n", "step", "5").await;
    assert!(worker.terminate().await.success(), "{}", worker.log());
}

#[tokio::test]
async fn an_api_that_is_away_at_the_start_is_waited_for_and_no_labels_are_made_up() {
    let cell = Cell::start().await;
    let mut api = KubernetesApi::prepare("n", json!({"pool": "x"}));
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let settings = [
        ("PREWARM_LABELS", "zone=b"),
        ("PREWARM_METRICS_LISTEN", &listen),
    ];
    let mut worker = cell.worker(&api, &settings);
    let line = worker.logs("does not tell of the node", LIMIT).await;
    let refused = "kubernetes: its API has not told of the node yet, which the worker waits for: Connection refused";
    readyz(
        port,
        &["HTTP/1.1 503", refused, "broker: it is not looked for yet"],
    )
    .await;
    for part in [
        "it is not registered, and gets no pulls",
        "Connection refused",
        "KUBERNETES_SERVICE_HOST",
    ] {
        assert!(line.contains(part), "{part:?} is missing in {line}");
    }
    let nodes = cell.run(&["get", "nodes"]).await;
    assert!(nodes.stdout.is_empty(), "{nodes:?}");
    // It takes requests and does not answer yet.
    api.mood(Mood::Silent);
    api.resume().await;
    let asked = async || !api.requests().is_empty();
    eventually("a request to the silent API", FOLLOW_LIMIT, asked).await;
    api.mood(Mood::Well);
    let node = cell.labelled("n", "pool", "x").await;
    assert_eq!(node["labels"]["zone"], "b");
    readyz(port, &["HTTP/1.1 200"]).await;
    // What was known stays in force, and the worker works.
    api.stop().await;
    readyz(port, &["HTTP/1.1 200"]).await;
    worker
        .logs("the Kubernetes API tells of the node", LIMIT)
        .await;
}

#[tokio::test]
async fn what_keeps_the_api_from_telling_is_said_with_what_to_do() {
    let cell = Cell::start().await;
    let api = KubernetesApi::start("n", json!({})).await;
    let mut other = cell.worker(&api, &[("PREWARM_NODE", "another")]);
    let line = other.logs("(403)", LIMIT).await;
    assert!(line.contains("service-accounts.yaml"), "{line}");
    api.mood(Mood::Refusing(401));
    let mut refused = cell.worker(&api, &[]);
    let line = refused.logs("(401)", LIMIT).await;
    assert!(line.contains("token"), "{line}");
    // It can be told to stop meanwhile.
    assert!(refused.terminate().await.success(), "{}", refused.log());
}

#[tokio::test]
async fn a_service_account_that_lacks_a_file_ends_the_worker_with_what_to_do() {
    let api = KubernetesApi::start("n", json!({})).await;
    std::fs::remove_file(api.service_account().join("ca.crt")).unwrap();
    let worker = prewarm(["worker", "--runtime", "simulated"]).env("PREWARM_METRICS_LISTEN", "off");
    let output = worker.in_a_pod(&api).run().await;
    assert_eq!(output.code, 3, "{output:?}");
    for part in [
        "certificate bundle",
        "secrets/kubernetes.io/serviceaccount",
        "PREWARM_KUBERNETES=off",
    ] {
        assert!(
            output.stderr.contains(part),
            "{part:?} is missing in {output:?}"
        );
    }
    assert!(api.requests().is_empty(), "{:?}", api.requests());
}

#[tokio::test]
async fn an_api_that_ends_every_watch_at_once_is_asked_ever_more_slowly() {
    let cell = Cell::start().await;
    let api = KubernetesApi::start("n", json!({"step": "0"})).await;
    api.mood(Mood::Hasty);
    let began = Instant::now();
    let _worker = cell.worker(&api, &[]);
    cell.labelled("n", "step", "0").await;
    // A list, and four watches with 0.5, 1 and 2 s between them at least.
    let five = async || api.requests().len() >= 5;
    eventually("five requests", FOLLOW_LIMIT, five).await;
    assert!(began.elapsed() >= Duration::from_millis(3_500));
    api.label("step", "1");
    cell.labelled("n", "step", "1").await;
}

#[tokio::test]
async fn check_looks_at_the_node_in_kubernetes() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let api = KubernetesApi::start("n", json!({})).await;
    let check = async |cordoned: &str| {
        let call = prewarm(["check", "--runtime", "simulated"])
            .env("NATS_URL", nats.url())
            .env("PREWARM_WHEN_CORDONED", cordoned);
        call.in_a_pod(&api).run().await
    };
    api.cordon(true);
    let line = "ok    kubernetes    node n is Ready, cordoned\n";
    let output = check("pull").await;
    assert!(output.stdout.contains(line), "{output:?}");
    let line = "warn  kubernetes    node n is Ready, cordoned: nothing new is released to it\n";
    let output = check("wait").await;
    assert!(output.stdout.contains(line), "{output:?}");
    api.mood(Mood::Refusing(403));
    let output = check("pull").await;
    assert!(
        output
            .stdout
            .contains("FAIL  kubernetes    nothing is known of node n: as the test says (403)")
            && output.stdout.contains("service-accounts.yaml"),
        "{output:?}"
    );
    assert_eq!(output.code, 3, "{output:?}");
}

#[tokio::test]
async fn what_can_only_be_known_in_a_pod_is_asked_for_outside() {
    let output = prewarm(["worker", "--runtime", "simulated", "--kubernetes", "on"])
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("--kubernetes: ") && output.stderr.contains("service account"),
        "{output:?}"
    );
}
