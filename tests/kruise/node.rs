//! Nodes: with a worker on a simulated runtime, or with nobody who works.

use std::time::{Duration, SystemTime};

use prewarm::bus::Bus;
use prewarm::domain::failure::FailureKind;
use prewarm::domain::image::Platform;
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::name::NodeName;
use prewarm::domain::node::{NodeFacts, NodeStanding};
use prewarm::domain::progress::PullProgress;
use prewarm::domain::time::Timestamp;
use prewarm::image::simulated::{Simulated, SimulatedConfig};
use prewarm::image::{PullRequest, Runtime};
use prewarm::wire::event::{FailureReport, PullResult, PullState, TaskEvent};
use prewarm::wire::record::{NodePresence, NodeRecord};
use prewarm::wire::subject::{PullKey, Subjects};
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::{Registration, RegistrationReply};
use prewarm::work::run::{WorkerError, WorkerSettings, fixed, run};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cell::{Cell, LIMIT};
use crate::support::heartbeats::beat;
use crate::support::wait::{eventually, within};

/// The worker process that a node without one claims to have.
const NOBODY: &str = "silent";

/// A label, as in `("pool", "serverless")`.
pub(crate) type Label<'a> = (&'a str, &'a str);

/// A node before it is there.
pub(crate) struct Setup {
    settings: WorkerSettings,
    runtime: Simulated,
}

impl Setup {
    /// A node whose pulls take no time and never fail.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            settings: WorkerSettings::new(name.parse().unwrap()),
            runtime: runtime(name, 1, "0", "0"),
        }
    }

    pub(crate) fn labels(mut self, labels: &[Label<'_>]) -> Self {
        self.settings.standing = fixed(NodeStanding::labelled(owned(labels)));
        self
    }

    /// Pulls at once.
    pub(crate) fn capacity(mut self, capacity: u32) -> Self {
        self.settings.capacity = capacity;
        self
    }

    /// How long a pull takes, such as `20ms..50ms`.
    pub(crate) fn latency(mut self, latency: &str) -> Self {
        self.runtime = runtime(self.settings.node.as_str(), 1, latency, "0");
        self
    }

    pub(crate) fn runtime(mut self, runtime: Simulated) -> Self {
        self.runtime = runtime;
        self
    }
}

fn owned(labels: &[Label<'_>]) -> std::collections::BTreeMap<String, String> {
    let owned = |(key, value): &Label<'_>| ((*key).to_owned(), (*value).to_owned());
    labels.iter().map(owned).collect()
}

fn runtime(node: &str, seed: u64, latency: &str, failure_rate: &str) -> Simulated {
    Simulated::new(SimulatedConfig {
        node: node.to_owned(),
        seed,
        latency: latency.parse().unwrap(),
        failure_rate: failure_rate.parse().unwrap(),
        ..SimulatedConfig::default()
    })
}

/// What becomes of one attempt: the failure, or `None` if it ends well.
pub(crate) type Fate = Option<FailureKind>;

/// A runtime on this node that meets these images with these fates, attempt by attempt. What happens in a simulated
/// runtime is a function of its seed, so a seed with which it happens is looked for.
pub(crate) async fn fated(node: &str, fates: &[(&str, &[Fate])]) -> Simulated {
    for seed in 0..1_000_000 {
        let candidate = runtime(node, seed, "0", "0.6");
        if meets(&candidate, fates).await {
            return runtime(node, seed, "0", "0.6");
        }
    }
    panic!("no seed gives {fates:?} on {node}");
}

async fn meets(candidate: &Simulated, fates: &[(&str, &[Fate])]) -> bool {
    for (image, attempts) in fates {
        for fate in *attempts {
            let request = PullRequest {
                image: image.parse().unwrap(),
                digest: None,
                policy: ImagePullPolicy::IfNotPresent,
                platform: None,
                pull_secrets: vec![],
                pin: None,
                unpack: true,
                labels: [].into(),
            };
            let (progress, _) = watch::channel(PullProgress::default());
            let never = CancellationToken::new();
            let ended = candidate.pull(&request, &progress, &never).await;
            if ended.err().map(|failure| failure.kind) != *fate {
                return false;
            }
        }
    }
    true
}

/// A worker that ends with its value.
pub(crate) struct Worker {
    shutdown: DropGuard,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Worker {
    /// SIGTERM, and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.disarm().cancel();
        let ended = within(LIMIT, "the worker's end", self.running).await;
        ended.unwrap().unwrap();
    }

    /// kill -9.
    pub(crate) async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

impl Cell {
    /// A node without labels whose pulls take no time, registered.
    pub(crate) async fn node(&self, name: &str) -> Worker {
        self.worker(Setup::new(name)).await
    }

    /// A node whose pulls take no time, registered.
    pub(crate) async fn labelled(&self, name: &str, labels: &[Label<'_>]) -> Worker {
        self.worker(Setup::new(name).labels(labels)).await
    }

    /// A node with a worker, registered.
    pub(crate) async fn worker(&self, setup: Setup) -> Worker {
        let Setup { settings, runtime } = setup;
        let name = settings.node.to_string();
        let before = self.node_record(&name).await.map(|node| node.instance);
        let bus = Bus::new(self.server.client().await, Subjects::default());
        let shutdown = CancellationToken::new();
        let runtime = Runtime::Simulated(runtime);
        let running = tokio::spawn(run(bus, runtime, settings, shutdown.clone()));
        eventually(&format!("node {name} to be there"), LIMIT, async || {
            let node = self.node_record(&name).await;
            node.is_some_and(|node| {
                node.presence == NodePresence::Present && Some(node.instance) != before
            })
        })
        .await;
        Worker {
            shutdown: shutdown.drop_guard(),
            running,
        }
    }

    /// A node that is there, and whose tasks nobody takes.
    pub(crate) async fn silent(&self, name: &str, labels: &[Label<'_>]) {
        self.dying(name, labels).await;
        let beats = beat(&self.bus, &name.parse().unwrap(), NOBODY);
        self.beats.lock().unwrap().spawn(beats);
    }

    /// A node that registers and then says and does nothing: it is there for fifteen seconds.
    pub(crate) async fn dying(&self, name: &str, labels: &[Label<'_>]) {
        let registration = Registration {
            instance: NOBODY.to_owned(),
            facts: facts(labels),
            consumer_lost: false,
        };
        let subject = self.bus.subjects.worker(&name.parse().unwrap());
        let body = serde_json::to_vec(&registration).unwrap();
        // Who has just begun to lead, or is about to end, does not answer or asks to be asked again.
        eventually("a dispatcher to answer a registration", LIMIT, async || {
            let body = body.clone().into();
            let asked = self.bus.client.request(subject.clone(), body).await;
            let answer = asked.map_err(|error| error.to_string())?;
            let reply: RegistrationReply = serde_json::from_slice(&answer.payload).unwrap();
            if reply.error.is_empty() {
                Ok(())
            } else {
                Err(reply.error)
            }
        })
        .await;
    }

    /// A node that was there an hour ago; to be said before there is a dispatcher.
    pub(crate) async fn gone_for_an_hour(&self, name: &str, labels: &[Label<'_>]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let record = NodeRecord {
            name: name.parse().unwrap(),
            facts: facts(labels),
            instance: "gone".to_owned(),
            presence: NodePresence::Absent,
            since: Timestamp::EPOCH.after(now.unwrap() - Duration::from_secs(3_600)),
        };
        let bucket = self.bus.subjects.nodes_bucket();
        let subject = format!("$KV.{bucket}.{}", record.name.token());
        let body = serde_json::to_vec(&record).unwrap();
        let stored = self.bus.jetstream.publish(subject, body.into()).await;
        stored.unwrap().await.unwrap();
    }

    /// Says what a worker says when a pull has ended well.
    pub(crate) async fn tell_success(&self, task: &PullTask) {
        self.tell(task, PullState::Succeeded).await;
    }

    /// Says what a worker says when it has given a pull up.
    pub(crate) async fn tell_failure(&self, task: &PullTask) {
        self.tell(task, PullState::Failed).await;
    }

    async fn tell(&self, task: &PullTask, state: PullState) {
        let succeeded = state == PullState::Succeeded;
        let result = PullResult {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            already_present: false,
            bytes_registry: 1,
            bytes_elsewhere: 0,
            bytes_present: 0,
            resolve_millis: 0,
            download_millis: 0,
            unpack_millis: 0,
            engine: String::new(),
            engine_reason: String::new(),
        };
        let failure = FailureReport {
            kind: FailureKind::Timeout,
            message: "it took too long".to_owned(),
        };
        let event = TaskEvent {
            job: task.job.clone(),
            run: task.run.clone(),
            node: task.node.clone(),
            image: task.image.clone(),
            state,
            attempt: 1,
            failure: (!succeeded).then_some(failure),
            next_attempt_at: None,
            result: succeeded.then_some(result),
            labels: [].into(),
            annotations: [].into(),
        };
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let subject = self.bus.subjects.task_event(&key);
        let body = serde_json::to_vec(&event.into_event("prewarm", Timestamp::EPOCH)).unwrap();
        let stored = self.bus.jetstream.publish(subject, body.into()).await;
        stored.unwrap().await.unwrap();
    }
}

fn facts(labels: &[Label<'_>]) -> NodeFacts {
    NodeFacts {
        waiting: None,
        labels: owned(labels),
        platform: Platform::host(),
        runtime: "none".to_owned(),
        capacity: 3,
        disk_total_bytes: 1,
        disk_free_bytes: 1,
        version: "0".to_owned(),
    }
}

/// Node names, for comparing with what was told.
pub(crate) fn names(tasks: &[PullTask]) -> Vec<String> {
    tasks.iter().map(|task| task.node.to_string()).collect()
}

/// A node's name.
pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}
