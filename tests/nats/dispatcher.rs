//! The dispatcher; the workers are played by the tests.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt as _;
use prewarm::bus::Bus;
use prewarm::bus::topology::{self, TopologySettings};
use prewarm::dispatch::run::{DispatcherSettings, run};
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{Event, JobEvent, JobEventKind, PullResult, PullState, TaskEvent};
use prewarm::wire::subject::{JobVerb, PullKey, Subjects};
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::RegistrationReply;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_millis(600);

struct Cell {
    server: NatsServer,
    bus: Bus,
}

impl Cell {
    async fn start(version: NatsVersion) -> Self {
        let server = NatsServer::start(version).await;
        let bus = Bus::new(server.client().await, Subjects::default());
        Self { server, bus }
    }

    async fn dispatcher(&self, instance: &str) -> Dispatcher {
        let bus = Bus::new(self.server.client().await, Subjects::default());
        let mut settings = DispatcherSettings::new(instance.to_owned());
        settings.lease = LEASE;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(bus, settings, shutdown.clone()));
        Dispatcher { task, shutdown }
    }

    /// Registers until a dispatcher answers.
    async fn register(&self, node: &str, labels: Value, consumer_lost: bool) -> Node {
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
        let stream = self.bus.jetstream.get_stream(&reply.stream).await.unwrap();
        let consumer: jetstream::consumer::PullConsumer =
            stream.get_consumer(&reply.consumer).await.unwrap();
        Node {
            bus: self.bus.clone(),
            tasks: consumer.messages().await.unwrap(),
        }
    }

    async fn submit(&self, name: &str, spec: Value) {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": { "name": name }, "spec": spec,
        });
        self.publish(JobVerb::Submit, manifest).await;
    }

    async fn publish(&self, verb: JobVerb, body: Value) {
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
    async fn event(&self, job: Option<&str>, kind: JobEventKind) -> Event<JobEvent> {
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

    async fn tasks_left(&self) -> u64 {
        let stream = self
            .bus
            .jetstream
            .get_stream(self.bus.subjects.tasks_stream())
            .await
            .unwrap();
        stream.cached_info().state.messages
    }
}

struct Dispatcher {
    task: JoinHandle<Result<(), prewarm::dispatch::run::DispatcherError>>,
    shutdown: CancellationToken,
}

impl Dispatcher {
    /// Stops at once, as a killed process does: the lease stays taken.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within(LIMIT, "the dispatcher to stop", self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

/// A node whose worker is the test.
struct Node {
    bus: Bus,
    tasks: jetstream::consumer::pull::Stream,
}

impl Node {
    async fn take(&mut self) -> (PullTask, jetstream::Message) {
        let message = within(LIMIT, "a task", self.tasks.next())
            .await
            .unwrap()
            .unwrap();
        (serde_json::from_slice(&message.payload).unwrap(), message)
    }

    async fn succeed(&mut self) -> PullTask {
        let (task, message) = self.take().await;
        let result = PullResult {
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            already_present: false,
            bytes_registry: 10,
            bytes_elsewhere: 1,
            bytes_present: 0,
            resolve_millis: 1,
            download_millis: 1,
            unpack_millis: 1,
        };
        let event = TaskEvent {
            job: task.job.clone(),
            run: task.run.clone(),
            node: task.node.clone(),
            image: task.image.clone(),
            state: PullState::Succeeded,
            attempt: 1,
            failure: None,
            next_attempt_at: None,
            result: Some(result),
            labels: Default::default(),
            annotations: Default::default(),
        };
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let body = serde_json::to_vec(&event.into_event("prewarm", Timestamp::EPOCH)).unwrap();
        let subject = self.bus.subjects.task_event(&key);
        self.bus
            .jetstream
            .publish(subject, body.into())
            .await
            .unwrap()
            .await
            .unwrap();
        message.ack().await.unwrap();
        task
    }
}

async fn a_job_runs_from_submission_to_completion(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut blue = cell.register("blue", json!({"pool": "a"}), false).await;
    let _green = cell.register("green", json!({"pool": "b"}), false).await;
    let spec = json!({
        "images": ["registry.invalid/a:1", "registry.invalid/b:1"], "parallelism": 1,
        "selector": {"matchLabels": {"pool": "a"}},
    });
    cell.submit("base", spec).await;
    let first = blue.succeed().await;
    assert_eq!(first.node.as_str(), "blue");
    let second = blue.succeed().await;
    assert_ne!(first.image, second.image);
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    let counts = completed.data.counts.unwrap();
    assert_eq!((counts.desired, counts.succeeded, counts.failed), (2, 2, 0));
    assert_eq!(
        (
            completed.data.bytes_registry,
            completed.data.bytes_elsewhere
        ),
        (Some(20), Some(2))
    );
    assert_eq!(completed.kind, "dev.prewarm.job.completed");
    cell.event(Some("base"), JobEventKind::Accepted).await;
    cell.event(Some("base"), JobEventKind::Started).await;
    eventually(
        "the tasks of the ended job to be withdrawn",
        LIMIT,
        async || cell.tasks_left().await == 0,
    )
    .await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_job_runs_from_submission_to_completion_on_2_10() {
    a_job_runs_from_submission_to_completion(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn a_job_runs_from_submission_to_completion_on_2_15() {
    a_job_runs_from_submission_to_completion(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn a_killed_dispatcher_is_followed_by_one_that_knows_everything() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let first = cell.dispatcher("one").await;
    let mut node = cell.register("node", json!({}), false).await;
    cell.submit(
        "base",
        json!({"images": ["r.invalid/a", "r.invalid/b", "r.invalid/c"], "parallelism": 1}),
    )
    .await;
    node.succeed().await;
    let (held, message) = node.take().await;
    first.kill().await;
    let second = cell.dispatcher("two").await;
    // What was released stays released, and is not released twice.
    let _again = cell.register("node", json!({}), false).await;
    message
        .ack_with(jetstream::AckKind::Nak(None))
        .await
        .unwrap();
    let finished = node.succeed().await;
    assert_eq!(finished, held);
    node.succeed().await;
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 3);
    second.stop().await;
}

#[tokio::test]
async fn a_stopped_dispatcher_hands_over_at_once() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let first = cell.dispatcher("one").await;
    let _node = cell.register("node", json!({}), false).await;
    let second = cell.dispatcher("two").await;
    first.stop().await;
    let _node = cell.register("node", json!({}), false).await;
    second.stop().await;
}

#[tokio::test]
async fn a_broker_that_restarts_costs_no_job() {
    let mut cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("node", json!({}), false).await;
    cell.submit(
        "base",
        json!({"images": ["r.invalid/a", "r.invalid/b"], "parallelism": 1}),
    )
    .await;
    node.succeed().await;
    let (held, _) = node.take().await;
    cell.server.kill();
    cell.server.restart().await;
    // The consumer was in memory; it is made again and begins at the oldest unfinished task.
    let mut node = cell.register("node", json!({}), true).await;
    assert_eq!(node.succeed().await, held);
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 2);
    dispatcher.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_rejected_with_every_problem() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let _node = cell.register("node", json!({}), false).await;
    cell.submit("bad", json!({"images": ["UPPER"], "parallelism": "ten"}))
        .await;
    let rejected = cell.event(Some("bad"), JobEventKind::Rejected).await;
    let paths: Vec<&str> = rejected
        .data
        .problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["spec.images[0]", "spec.parallelism"]);
    cell.publish(JobVerb::Submit, json!("nonsense")).await;
    cell.event(None, JobEventKind::Rejected).await;
    cell.publish(JobVerb::Cancel, json!({"name": "nobody"}))
        .await;
    let rejected = cell.event(Some("nobody"), JobEventKind::Rejected).await;
    assert!(
        rejected.data.problems[0]
            .message
            .contains("no job named nobody")
    );
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_stream_of_another_form_is_reported_and_left_alone() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let foreign = jetstream::stream::Config {
        name: "PREWARM_TASKS".to_owned(),
        subjects: vec!["prewarm.task.>".to_owned()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    cell.bus.jetstream.create_stream(foreign).await.unwrap();
    let dispatcher = cell.dispatcher("one").await;
    let ended = within(LIMIT, "the dispatcher to give up", dispatcher.task)
        .await
        .unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(
        error.contains("PREWARM_TASKS") && error.contains("retention is WorkQueue"),
        "{error}"
    );
    let stream = cell
        .bus
        .jetstream
        .get_stream("PREWARM_TASKS")
        .await
        .unwrap();
    assert_eq!(
        stream.cached_info().config.retention,
        jetstream::stream::RetentionPolicy::WorkQueue
    );
}

#[tokio::test]
async fn the_topology_is_made_once_and_kept_as_an_operator_changed_it() {
    for version in [NatsVersion::V2_10, NatsVersion::V2_15] {
        let cell = Cell::start(version).await;
        let settings = TopologySettings::default();
        assert!(
            topology::check(&cell.bus, settings).await.is_err(),
            "nothing is there yet"
        );
        topology::ensure(&cell.bus, settings).await.unwrap();
        let events = cell
            .bus
            .jetstream
            .get_stream("PREWARM_EVENTS")
            .await
            .unwrap();
        let mut config = events.cached_info().config.clone();
        config.max_age = Duration::from_secs(30 * 24 * 60 * 60);
        cell.bus
            .jetstream
            .update_stream(config.clone())
            .await
            .unwrap();
        topology::ensure(&cell.bus, settings).await.unwrap();
        topology::check(&cell.bus, settings).await.unwrap();
        let events = cell
            .bus
            .jetstream
            .get_stream("PREWARM_EVENTS")
            .await
            .unwrap();
        assert_eq!(events.cached_info().config.max_age, config.max_age);
    }
}
