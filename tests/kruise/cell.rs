//! A cell in one process: a real broker, a dispatcher, and whoever the test adds.

use std::sync::Mutex;
use std::time::Duration;

use prewarm::bus::Bus;
use prewarm::bus::topology::{self, TopologySettings};
use prewarm::dispatch::run::{DispatcherError, DispatcherSettings, run};
use prewarm::image::registry::Registry;
use prewarm::wire::manifest;
use prewarm::wire::record::JobRecord;
use prewarm::wire::subject::{JobVerb, Subjects};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::wait::eventually;

/// Longest wait for anything that happens by itself, the fifteen seconds included after which a silent node is gone.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// A leader that cannot renew it for half of this time, on a busy machine, loses its place.
const LEASE: Duration = Duration::from_secs(5);

pub(crate) struct Cell {
    pub(crate) server: NatsServer,
    pub(crate) bus: Bus,
    dispatcher: Option<Dispatcher>,
    /// The heartbeats of nodes on which nobody works.
    pub(crate) beats: Mutex<JoinSet<()>>,
}

struct Dispatcher {
    running: JoinHandle<Result<(), DispatcherError>>,
    _shutdown: DropGuard,
}

impl Cell {
    /// The newest broker and a dispatcher that leads.
    pub(crate) async fn start() -> Self {
        Self::on(NatsVersion::V2_15).await
    }

    /// The same with this broker.
    pub(crate) async fn on(version: NatsVersion) -> Self {
        let mut cell = Self::broker(version).await;
        cell.dispatch(|_| {}).await;
        cell
    }

    /// The same with a dispatcher that may ask registries.
    pub(crate) async fn that_asks(registry: Registry) -> Self {
        let mut cell = Self::broker(NatsVersion::V2_15).await;
        cell.dispatch(|settings| settings.registry = Some(registry))
            .await;
        cell
    }

    /// A broker with everything but a dispatcher.
    pub(crate) async fn broker(version: NatsVersion) -> Self {
        let server = NatsServer::start(version).await;
        let bus = Bus::new(server.client().await, Subjects::default());
        topology::ensure(&bus, TopologySettings::default())
            .await
            .unwrap();
        Self {
            server,
            bus,
            dispatcher: None,
            beats: Mutex::default(),
        }
    }

    /// Adds a dispatcher and waits until it leads.
    pub(crate) async fn dispatch(&mut self, adjust: impl FnOnce(&mut DispatcherSettings)) {
        let bus = Bus::new(self.server.client().await, Subjects::default());
        let mut settings = DispatcherSettings::new(format!("{:016x}", rand::random::<u64>()));
        settings.lease = LEASE;
        adjust(&mut settings);
        let shutdown = CancellationToken::new();
        self.dispatcher = Some(Dispatcher {
            running: tokio::spawn(run(bus, settings, shutdown.clone())),
            _shutdown: shutdown.drop_guard(),
        });
        // Only who leads answers, be it that this is no registration.
        let subject = self.bus.subjects.worker(&"nobody".parse().unwrap());
        eventually("a dispatcher to lead", LIMIT, async || {
            let asked = self.bus.client.request(subject.clone(), "{}".into()).await;
            asked.map(|_| ())
        })
        .await;
    }

    /// kill -9: the lease stays taken.
    pub(crate) async fn kill_dispatcher(&mut self) {
        let dispatcher = self.dispatcher.take().unwrap();
        dispatcher.running.abort();
        assert!(dispatcher.running.await.unwrap_err().is_cancelled());
    }

    /// Publishes a native job and waits until it is accepted.
    pub(crate) async fn submit(&self, name: &str, spec: Value) -> JobRecord {
        self.apply(&native(name, spec)).await
    }

    /// Publishes a manifest as it is and waits until it is accepted.
    pub(crate) async fn apply(&self, manifest: &str) -> JobRecord {
        let name = manifest::parse(manifest.as_bytes()).unwrap().name;
        let sequence = self.publish(JobVerb::Submit, manifest).await;
        self.job(name.as_str(), "accepted", |job| {
            job.metadata.request_sequence >= sequence
        })
        .await
    }

    /// Publishes a command on a job.
    pub(crate) async fn order(&self, verb: JobVerb, name: &str) {
        self.publish(verb, &json!({ "name": name }).to_string())
            .await;
    }

    /// Publishes a request; says its sequence.
    pub(crate) async fn publish(&self, verb: JobVerb, body: &str) -> u64 {
        let subject = self.bus.subjects.job(verb);
        let stored = self.bus.jetstream.publish(subject, body.to_owned().into());
        stored.await.unwrap().await.unwrap().sequence
    }
}

/// A native job's manifest.
pub(crate) fn native(name: &str, spec: Value) -> String {
    let manifest = json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec,
    });
    manifest.to_string()
}
