//! Announcing the node to whoever dispatches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use tokio::sync::{mpsc, watch};

use super::{Arrived, WorkerSettings};
use crate::bus::{Bus, REQUEST_TIMEOUT};
use crate::domain::node::{NodeFacts, NodeStanding};
use crate::image::{Runtime, RuntimeInfo};
use crate::wire::worker::{Registration, RegistrationReply};
use crate::work::effect::ConsumerName;

/// How long the runtime may take to say what it is, before its last answer is told again.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What every registration says.
#[derive(Clone, Debug)]
pub(super) struct Registering {
    bus: Bus,
    runtime: Runtime,
    subject: String,
    instance: String,
    standing: watch::Receiver<NodeStanding>,
    capacity: u32,
    /// Whether this process has not registered yet, so that no request of its own is open.
    ///
    /// One of the process before may be, for up to two minutes. nats-server drops it when nobody listens to its answer any
    /// more, but cannot see that when the worker has an account of its own and the consumer is on another server of a
    /// cluster. Each task that is given to such a request waits for the ack wait (30 s) to pass; a consumer made anew has
    /// no requests.
    is_new: Arc<AtomicBool>,
    /// What the runtime said last.
    info: Arc<Mutex<RuntimeInfo>>,
    arrivals: mpsc::Sender<Arrived>,
}

impl Registering {
    pub(super) fn new(
        bus: &Bus,
        runtime: &Runtime,
        info: RuntimeInfo,
        settings: &WorkerSettings,
        instance: String,
        arrivals: mpsc::Sender<Arrived>,
    ) -> Self {
        Self {
            bus: bus.clone(),
            runtime: runtime.clone(),
            subject: bus.subjects.worker(&settings.node),
            instance,
            standing: settings.standing.clone(),
            capacity: settings.capacity,
            is_new: Arc::new(AtomicBool::new(true)),
            info: Arc::new(Mutex::new(info)),
            arrivals,
        }
    }

    /// Asks, and reports the answer.
    pub(super) fn start(&self, consumer_lost: bool) {
        let this = self.clone();
        tokio::spawn(async move {
            let facts = this.facts().await;
            let answer = this.ask(facts, consumer_lost).await;
            let _ = this.arrivals.send(Arrived::Registered(answer)).await;
        });
    }

    async fn facts(&self) -> NodeFacts {
        let probe = tokio::time::timeout(PROBE_LIMIT, self.runtime.probe());
        let fresh = probe.await.ok().and_then(Result::ok);
        let mut last = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = fresh {
            *last = fresh;
        }
        let standing = self.standing.borrow().clone();
        NodeFacts {
            labels: standing.labels,
            platform: last.platform.clone(),
            runtime: format!("{} {}", last.name, last.version),
            capacity: self.capacity,
            disk_total_bytes: last.disk_total,
            disk_free_bytes: last.disk_free,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            waiting: standing.waiting,
        }
    }

    async fn ask(&self, facts: NodeFacts, consumer_lost: bool) -> Result<ConsumerName, String> {
        let in_cluster = self.bus.client.server_info().cluster.is_some();
        let is_new = self.is_new.load(Ordering::Relaxed);
        let registration = Registration {
            instance: self.instance.clone(),
            facts,
            consumer_lost: consumer_lost || (is_new && in_cluster),
        };
        let payload = serde_json::to_vec(&registration).map_err(|error| error.to_string())?;
        let request = async_nats::Request::new()
            .payload(payload.into())
            .timeout(Some(REQUEST_TIMEOUT));
        let client = &self.bus.client;
        let answer = client.send_request(self.subject.clone(), request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                "no dispatcher is there; start one, or check that it has the same --subject-prefix"
                    .to_owned()
            }
            RequestErrorKind::TimedOut => "the broker or the dispatcher does not answer".to_owned(),
            _ => error.to_string(),
        })?;
        let reply: RegistrationReply = serde_json::from_slice(&answer.payload)
            .map_err(|error| format!("the answer cannot be read: {error}"))?;
        if !reply.error.is_empty() {
            return Err(reply.error);
        }
        if reply.stream.is_empty() || reply.consumer.is_empty() {
            return Err("the answer names no consumer".to_owned());
        }
        self.is_new.store(false, Ordering::Relaxed);
        Ok(ConsumerName {
            stream: reply.stream,
            consumer: reply.consumer,
        })
    }
}
