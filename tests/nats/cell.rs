//! A broker, dispatchers, and nodes whose workers are played by the tests.

use std::sync::Mutex;
use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt as _;
use prewarm::bus::Bus;
use prewarm::dispatch::run::{DispatcherSettings, run};
use prewarm::domain::failure::FailureKind;
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{
    Event, FailureReport, JobEvent, JobEventKind, PullResult, PullState, TaskEvent,
};
use prewarm::wire::subject::{JobVerb, PullKey, Subjects};
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::RegistrationReply;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::heartbeats::beat;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::wait::{eventually, within};

pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const AUDIT_EVERY: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_millis(600);

pub(crate) struct Cell {
    pub(crate) server: NatsServer,
    pub(crate) bus: Bus,
    /// The heartbeats of the registered nodes.
    beats: Mutex<JoinSet<()>>,
}

impl Cell {
    pub(crate) async fn start(version: NatsVersion) -> Self {
        Self::on(NatsServer::start(version).await).await
    }

    pub(crate) async fn on(server: NatsServer) -> Self {
        let bus = Bus::new(server.client().await, Subjects::default());
        Self {
            server,
            bus,
            beats: Mutex::default(),
        }
    }

    pub(crate) async fn dispatcher(&self, instance: &str) -> Dispatcher {
        let bus = Bus::new(self.server.client().await, Subjects::default());
        let mut settings = DispatcherSettings::new(instance.to_owned());
        settings.lease = LEASE;
        settings.audit_every = AUDIT_EVERY;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(bus, settings, shutdown.clone()));
        Dispatcher { task, shutdown }
    }

    /// Registers until a dispatcher answers; the node lives as long as the cell.
    pub(crate) async fn register(&self, node: &str, labels: Value, consumer_lost: bool) -> Node {
        let name = node.parse().unwrap();
        let registration = json!({
            "instance": "test", "labels": labels, "platform": "linux/amd64", "runtime": "test 1", "capacity": 3,
            "diskTotalBytes": 1, "diskFreeBytes": 1, "version": "0", "consumerLost": consumer_lost,
        });
        let reply = eventually("a dispatcher to answer a registration", LIMIT, async || {
            let subject = self.bus.subjects.worker(&name);
            let asked = self
                .bus
                .client
                .request(subject, registration.to_string().into())
                .await;
            let reply: RegistrationReply =
                serde_json::from_slice(&asked.map_err(|e| e.to_string())?.payload).unwrap();
            if reply.error.is_empty() {
                Ok(reply)
            } else {
                Err(reply.error)
            }
        })
        .await;
        let beats = beat(&self.bus, &name, "test");
        self.beats.lock().unwrap().spawn(beats);
        let stream = self.bus.jetstream.get_stream(&reply.stream).await.unwrap();
        let consumer: jetstream::consumer::PullConsumer =
            stream.get_consumer(&reply.consumer).await.unwrap();
        Node {
            bus: self.bus.clone(),
            tasks: consumer.messages().await.unwrap(),
        }
    }

    pub(crate) async fn submit(&self, name: &str, spec: Value) {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": { "name": name }, "spec": spec,
        });
        self.publish(JobVerb::Submit, manifest).await;
    }

    pub(crate) async fn publish(&self, verb: JobVerb, body: Value) {
        eventually("the broker to take a request", LIMIT, async || {
            let sent = self
                .bus
                .jetstream
                .publish(self.bus.subjects.job(verb), body.to_string().into());
            sent.await
                .map_err(|e| e.to_string())?
                .await
                .map_err(|e| e.to_string())
        })
        .await;
    }

    /// Waits for an event of a job, from the first that is stored.
    pub(crate) async fn event(&self, job: Option<&str>, kind: JobEventKind) -> Event<JobEvent> {
        let job = job.map(|job| job.parse().unwrap());
        let subject = self.bus.subjects.job_event(job.as_ref(), kind.token());
        eventually(&format!("an event on {subject}"), LIMIT, async || {
            let stream = self
                .bus
                .jetstream
                .get_stream(self.bus.subjects.events_stream())
                .await;
            let stream = stream.map_err(|e| e.to_string())?;
            let message = stream.get_last_raw_message_by_subject(&subject).await;
            let message = message.map_err(|e| e.to_string())?;
            serde_json::from_slice::<Event<JobEvent>>(&message.payload).map_err(|e| e.to_string())
        })
        .await
    }

    pub(crate) async fn tasks_left(&self) -> u64 {
        let stream = self
            .bus
            .jetstream
            .get_stream(self.bus.subjects.tasks_stream())
            .await
            .unwrap();
        stream.cached_info().state.messages
    }
}

pub(crate) struct Dispatcher {
    pub(crate) task: JoinHandle<Result<(), prewarm::dispatch::run::DispatcherError>>,
    shutdown: CancellationToken,
}

impl Dispatcher {
    /// Stops at once, as a killed process does: the lease stays taken.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        within(LIMIT, "the dispatcher to stop", self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

/// A node whose worker is the test.
pub(crate) struct Node {
    bus: Bus,
    tasks: jetstream::consumer::pull::Stream,
}

impl Node {
    pub(crate) async fn take(&mut self) -> (PullTask, jetstream::Message) {
        let message = within(LIMIT, "a task", self.tasks.next())
            .await
            .unwrap()
            .unwrap();
        (serde_json::from_slice(&message.payload).unwrap(), message)
    }

    pub(crate) async fn succeed(&mut self) -> PullTask {
        let result = PullResult {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            already_present: false,
            bytes_registry: 10,
            bytes_elsewhere: 1,
            bytes_present: 0,
            resolve_millis: 1,
            download_millis: 1,
            unpack_millis: 1,
            engine: String::new(),
            engine_reason: String::new(),
        };
        self.end(PullState::Succeeded, Some(result), None).await
    }

    pub(crate) async fn fail(&mut self) -> PullTask {
        let message = "there is no such image".to_owned();
        let failure = FailureReport {
            kind: FailureKind::ImageNotFound,
            message,
        };
        self.end(PullState::Failed, None, Some(failure)).await
    }

    /// Ends the next task as a worker does: the event is stored, then the task is acked.
    async fn end(
        &mut self,
        state: PullState,
        result: Option<PullResult>,
        failure: Option<FailureReport>,
    ) -> PullTask {
        let (task, message) = self.take().await;
        let event = TaskEvent {
            failure,
            result,
            ..event_of(&task, state)
        };
        self.tell(event).await;
        message.ack().await.unwrap();
        task
    }

    /// Stores an event as a worker does.
    pub(crate) async fn tell(&self, event: TaskEvent) {
        let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
        let body = serde_json::to_vec(&event.into_event("prewarm", Timestamp::EPOCH)).unwrap();
        let subject = self.bus.subjects.task_event(&key);
        self.bus
            .jetstream
            .publish(subject, body.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
}

/// What a worker tells of a task, with nothing beside the state.
pub(crate) fn event_of(task: &PullTask, state: PullState) -> TaskEvent {
    TaskEvent {
        job: task.job.clone(),
        run: task.run.clone(),
        node: task.node.clone(),
        image: task.image.clone(),
        state,
        attempt: 1,
        failure: None,
        next_attempt_at: None,
        result: None,
        labels: Default::default(),
        annotations: Default::default(),
    }
}
