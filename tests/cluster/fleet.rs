//! A cell on a cluster, and what its events say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use prewarm::bus::Bus;
use prewarm::dispatch::lease::DEFAULT_LEASE;
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{
    Event, JobEvent, JobEventKind, NodeEvent, NodeEventKind, PullState, TaskEvent,
};
use prewarm::wire::record::{JobRecord, NodePresence, NodeRecord};
use prewarm::wire::subject::{JobVerb, Subjects};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::nats_cluster::{NatsCluster, SERVERS};
use crate::support::prewarm::{Role, prewarm};
use crate::support::wait::eventually;

/// How long anything may take that is not waiting for a time of ours to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A client of the cell, for the test's own use.
pub(crate) struct Fleet {
    pub(crate) bus: Bus,
    urls: String,
    urls_of_nodes: String,
    replicas: usize,
    /// Of the nodes of one prefix.
    connections: &'static str,
    /// How long a job or a fleet may take.
    pub(crate) limit: Duration,
}

/// Every event of a job's pulls, in the order in which the broker stored them.
pub(crate) type Told = Vec<Event<TaskEvent>>;

impl Fleet {
    pub(crate) fn new(client: async_nats::Client, urls: String, replicas: usize) -> Self {
        Self {
            bus: Bus::new(client, Subjects::default()),
            urls_of_nodes: urls.clone(),
            urls,
            replicas,
            connections: "8",
            limit: LIMIT,
        }
    }

    /// The cell of a cluster, with three replicas of everything.
    pub(crate) async fn on(cluster: &NatsCluster) -> Self {
        Self {
            urls_of_nodes: cluster.urls_of_nodes(),
            ..Self::new(cluster.client().await, cluster.urls(), SERVERS)
        }
    }

    /// With nodes that reach the servers at these addresses, all by one connection.
    pub(crate) fn through(mut self, urls: Vec<String>) -> Self {
        self.urls_of_nodes = urls.join(",");
        self.connections = "1";
        self
    }

    pub(crate) fn dispatcher(&self, name: &str) -> Role {
        self.dispatcher_with(name, DEFAULT_LEASE)
    }

    pub(crate) fn dispatcher_with(&self, name: &str, lease: Duration) -> Role {
        let lease = format!("{}s", lease.as_secs());
        let replicas = self.replicas.to_string();
        prewarm([
            "dispatcher",
            "--metrics-listen",
            "off",
            "--replicas",
            &replicas,
            "--lease",
            &lease,
        ])
        .env("PREWARM_NATS_URL", &self.urls)
        .env("PREWARM_LOG", "info,prewarm=debug")
        .spawn(name)
    }

    /// Simulated nodes `PREFIX-00001` and on.
    pub(crate) fn nodes(&self, prefix: &str, nodes: u32, latency: &str) -> Role {
        let nodes = nodes.to_string();
        prewarm([
            "simulate",
            "--nodes",
            &nodes,
            "--node-prefix",
            prefix,
            "--connections",
            self.connections,
            "-o",
            "json",
        ])
        .env("PREWARM_NATS_URL", &self.urls_of_nodes)
        .env("PREWARM_LOG", "warn")
        .env("PREWARM_SIMULATED_LATENCY", latency)
        .spawn(&format!("the nodes {prefix}"))
    }

    /// Waits until so many nodes are there.
    pub(crate) async fn present(&self, nodes: usize) {
        let what = format!("{nodes} nodes to be present");
        eventually(&what, self.limit, async || {
            let records: Vec<NodeRecord> = self.bucket(&self.bus.subjects.nodes_bucket()).await?;
            let present = records
                .iter()
                .filter(|node| node.presence == NodePresence::Present);
            let present = present.count();
            if present == nodes {
                Ok(())
            } else {
                Err(format!("{present} are"))
            }
        })
        .await;
    }

    pub(crate) async fn submit(&self, name: &str, spec: Value) {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec,
        });
        let subject = self.bus.subjects.job(JobVerb::Submit);
        eventually("the broker to take a job", LIMIT, async || {
            let sent = self
                .bus
                .jetstream
                .publish(subject.clone(), manifest.to_string().into());
            let sent = sent.await.map_err(|error| error.to_string())?;
            sent.await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// Waits until a job's record says something.
    pub(crate) async fn job(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&JobRecord) -> bool,
    ) -> JobRecord {
        eventually(&format!("job {name} {what}"), self.limit, async || {
            let records: Vec<JobRecord> = self.bucket(&self.bus.subjects.jobs_bucket()).await?;
            let found = records
                .into_iter()
                .find(|job| job.metadata.name.as_str() == name);
            match found {
                Some(record) if is(&record) => Ok(record),
                other => Err(format!("{:?}", other.map(|record| record.status))),
            }
        })
        .await
    }

    pub(crate) async fn ended(&self, name: &str) -> JobRecord {
        self.job(name, "to end", |job| job.status.outcome.is_some())
            .await
    }

    async fn bucket<T: DeserializeOwned>(&self, bucket: &str) -> Result<Vec<T>, String> {
        let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.>"));
        self.read(&stream, filter, DeliverPolicy::LastPerSubject)
            .await
    }

    /// Everything that was told of a job's pulls.
    pub(crate) async fn told(&self, job: &str) -> Told {
        let name = job.parse().unwrap();
        self.events(self.bus.subjects.task_events(Some(&name)))
            .await
    }

    /// What was told of a job itself, by kind.
    pub(crate) async fn told_of_job(&self, job: &str, kind: JobEventKind) -> Vec<Event<JobEvent>> {
        let name = job.parse().unwrap();
        self.events(self.bus.subjects.job_event(Some(&name), kind.token()))
            .await
    }

    /// What was told of all nodes, by kind.
    pub(crate) async fn told_of_nodes(&self, kind: NodeEventKind) -> Vec<Event<NodeEvent>> {
        let subject = self
            .bus
            .subjects
            .node_event(&"node".parse().unwrap(), kind.token());
        self.events(subject.replace(".node.node.", ".node.*."))
            .await
    }

    async fn events<T: DeserializeOwned>(&self, filter: String) -> Vec<T> {
        let stream = self.bus.subjects.events_stream();
        eventually("the events to be read", LIMIT, async || {
            self.read(&stream, filter.clone(), DeliverPolicy::All).await
        })
        .await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        stream: &str,
        filter: String,
        from: DeliverPolicy,
    ) -> Result<Vec<T>, String> {
        let mut read = Vec::new();
        let reading = self.bus.read_all(stream, filter, from, |message| {
            if !message.payload.is_empty() {
                read.push(serde_json::from_slice(&message.payload).unwrap());
            }
        });
        reading.await.map_err(|error| error.to_string())?;
        Ok(read)
    }
}

/// Names of so many images, with digests: nobody has to ask a registry that is not there what they are.
pub(crate) fn images(count: usize) -> Vec<String> {
    let image = |number: usize| format!("r.invalid/image@sha256:{number:064x}");
    (1..=count).map(image).collect()
}

/// Checks that every one of `pulls` pulls succeeded by a download, once, and failed never.
///
/// That an attempt began may get lost with the broker that is told; how it ended may not. And it may be told of twice: a
/// task whose ack went with a broker comes again, as another attempt that finds its image there.
pub(crate) fn each_pulled_once(told: &Told, pulls: usize) {
    let mut seen: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut facts: BTreeSet<(&str, bool)> = BTreeSet::new();
    for event in told {
        let data = &event.data;
        let present = data
            .result
            .as_ref()
            .is_some_and(|result| result.already_present);
        // A copy of a fact that was told before has its id; so has another end of the same pull.
        if !facts.insert((&event.id, present)) {
            continue;
        }
        let key = (data.node.to_string(), data.image.to_string());
        let states = seen.entry(key).or_default();
        if !present && data.state != PullState::Started {
            states.push(data.state.as_str().to_owned());
        }
    }
    assert_eq!(seen.len(), pulls, "pulls that were told of");
    for (pull, states) in seen {
        assert_eq!(states, ["succeeded"], "{pull:?}");
    }
}

/// Ends simulated nodes and checks that they downloaded as often as there were pulls. A task whose ack went with a broker
/// comes again and finds its image there.
pub(crate) async fn downloaded_once(mut nodes: Role, pulls: usize) {
    nodes.terminate().await;
    // They are the only document over several lines, and the first words when nothing went wrong; what is nested in
    // it is indented.
    let log = format!("\n{}", nodes.log());
    let begin = log.find("\n{\n");
    let begin = begin.unwrap_or_else(|| panic!("no figures of the simulation in {log}"));
    let mut figures = serde_json::Deserializer::from_str(&log[begin..]).into_iter::<Value>();
    let figures = figures.next().expect("figures").expect("figures as JSON");
    let figure = |name: &str| {
        figures[name]
            .as_u64()
            .map(|number| usize::try_from(number).unwrap())
    };
    let again = figure("alreadyPresent").expect("a count");
    assert_eq!(figure("started"), Some(pulls + again), "{figures}");
    assert_eq!(figure("succeeded"), Some(pulls + again), "{figures}");
}

/// Checks that so many pulls ended, and none of them in two ways.
pub(crate) fn ended_once(told: &Told, pulls: usize) {
    let mut ends: BTreeMap<(String, String), PullState> = BTreeMap::new();
    for event in told.iter().filter(|event| event.data.state.is_terminal()) {
        let data = &event.data;
        let key = (data.node.to_string(), data.image.to_string());
        let first = ends.entry(key).or_insert(data.state);
        assert_eq!(*first, data.state, "{data:?} had another end before");
    }
    assert_eq!(ends.len(), pulls, "pulls that ended");
}

/// When each node ended its first pull after a moment. That one began may get lost, that it ended may not.
pub(crate) fn first_ends(told: &Told, after: Timestamp) -> BTreeMap<String, Duration> {
    let mut first = BTreeMap::new();
    let ended = told
        .iter()
        .filter(|event| event.data.state.is_terminal() && event.time > after);
    for event in ended {
        let waited = event.time.since(after);
        let node = event.data.node.to_string();
        let least = first.entry(node).or_insert(waited);
        *least = waited.min(*least);
    }
    first
}

/// This moment, as events tell time.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::EPOCH.after(since.unwrap())
}
