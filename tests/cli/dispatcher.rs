//! This test as the dispatcher: it sets the broker up, takes requests, and says what became of them.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::kv;
use futures::StreamExt as _;
use prewarm::bus::Bus;
use prewarm::bus::topology::{TopologySettings, ensure};
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::Event;
use prewarm::wire::subject::Subjects;
use serde_json::{Value, json};

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Prewarm, prewarm};
use crate::support::wait::within;

/// How long the program may take to ask for something.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// The time every record and event of these tests is from.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

/// A broker that is set up, and the dispatcher that this test is.
pub(crate) struct Dispatcher {
    pub(crate) nats: NatsServer,
    pub(crate) bus: Bus,
}

/// What the program asked for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) verb: String,
    pub(crate) body: Value,
    pub(crate) sequence: u64,
}

impl Dispatcher {
    pub(crate) async fn start() -> Self {
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let bus = Bus::new(nats.client().await, Subjects::default());
        ensure(&bus, TopologySettings::default()).await.unwrap();
        Self { nats, bus }
    }

    /// A call of the program that talks to this broker.
    pub(crate) fn prewarm(&self, args: &[&str]) -> Prewarm {
        prewarm(args).env("NATS_URL", self.nats.url())
    }

    /// Takes the next request.
    pub(crate) async fn request(&self) -> Request {
        let stream = self
            .bus
            .jetstream
            .get_stream(self.bus.subjects.jobs_stream())
            .await
            .unwrap();
        let config = pull::Config {
            durable_name: Some("dispatcher".to_owned()),
            ..Default::default()
        };
        let consumer = stream
            .get_or_create_consumer("dispatcher", config)
            .await
            .unwrap();
        // One and no more: what else is asked stays for the next call.
        let mut messages = consumer
            .batch()
            .max_messages(1)
            .expires(LIMIT)
            .messages()
            .await
            .unwrap();
        let message = within(LIMIT, "a request of the program", messages.next())
            .await
            .unwrap()
            .unwrap();
        message.double_ack().await.unwrap();
        Request {
            verb: message.subject.rsplit('.').next().unwrap().to_owned(),
            body: serde_json::from_slice(&message.payload).unwrap(),
            sequence: message.info().unwrap().stream_sequence,
        }
    }

    /// Says something about a job: `data` without `job` and `event`.
    pub(crate) async fn tell(&self, job: &str, event: &str, data: Value) {
        let mut fact = json!({"job": job, "event": event});
        fact.as_object_mut()
            .unwrap()
            .extend(data.as_object().unwrap().clone());
        self.publish(
            self.bus
                .subjects
                .job_event(Some(&job.parse().unwrap()), event),
            &format!("job.{event}"),
            job,
            fact,
        )
        .await;
    }

    /// Says something about the pull of `app:1` on a node.
    pub(crate) async fn tell_task(&self, job: &str, node: &str, state: &str, data: Value) {
        let mut fact = json!({"job": job, "uid": "u", "generation": 1, "round": 1, "node": node,
            "image": "example.com/app:1", "attempt": 1, "state": state});
        fact.as_object_mut()
            .unwrap()
            .extend(data.as_object().unwrap().clone());
        let subject = format!("prewarm.event.task.{job}.{node}.0123456789ab");
        self.publish(
            subject,
            &format!("task.{state}"),
            &format!("{job}/{node}"),
            fact,
        )
        .await;
    }

    async fn publish(&self, subject: String, kind: &str, about: &str, fact: Value) {
        let event = Event::new(
            kind,
            format!("{about}-{kind}"),
            "/prewarm/dispatcher".to_owned(),
            about.to_owned(),
            START,
            fact,
        );
        let body = serde_json::to_vec(&event).unwrap();
        self.bus
            .jetstream
            .publish(subject, body.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }

    async fn bucket(&self, name: String) -> kv::Store {
        self.bus.jetstream.get_key_value(name).await.unwrap()
    }

    /// Writes a job's record.
    pub(crate) async fn put_job(&self, record: &Value) {
        let key = record["metadata"]["name"]
            .as_str()
            .unwrap()
            .replace('.', "_");
        let bucket = self.bucket(self.bus.subjects.jobs_bucket()).await;
        bucket.put(key, record.to_string().into()).await.unwrap();
    }

    /// Deletes a job's record.
    pub(crate) async fn forget_job(&self, key: &str) {
        self.bucket(self.bus.subjects.jobs_bucket())
            .await
            .delete(key)
            .await
            .unwrap();
    }

    /// Writes a node's record.
    pub(crate) async fn put_node(&self, record: &Value) {
        let key = record["name"].as_str().unwrap().replace('.', "_");
        let bucket = self.bucket(self.bus.subjects.nodes_bucket()).await;
        bucket.put(key, record.to_string().into()).await.unwrap();
    }
}

/// A job's record: `done` of 10 pulls succeeded, `failed` failed.
pub(crate) fn job(name: &str, phase: &str, done: u32, failed: u32) -> Value {
    json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
        "metadata": {"name": name, "uid": "u", "generation": 1, "createdAt": START, "requestSequence": 1},
        "spec": {"images": ["example.com/app:1"], "selector": {"matchLabels": {"pool": "gpu"}}, "parallelism": 2},
        "status": {
            "phase": phase, "round": 1, "startedAt": START, "bytesRegistry": 2048, "message": "as it should be",
            "counts": {"desired": 10, "pending": 10 - done - failed, "active": 0, "succeeded": done, "failed": failed, "cancelled": 0},
            "nodes": {"desired": 10, "succeeded": done, "failed": failed},
        },
    })
}

/// A node's record.
pub(crate) fn node(name: &str, presence: &str) -> Value {
    json!({
        "name": name, "labels": {"pool": "gpu"}, "platform": "linux/amd64", "runtime": "containerd 1.7.24", "capacity": 3,
        "diskTotalBytes": 10_737_418_240_u64, "diskFreeBytes": 1_073_741_824, "version": "0.1.0", "instance": "i",
        "presence": presence, "since": START,
    })
}
