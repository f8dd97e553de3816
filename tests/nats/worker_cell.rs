//! A cell with one worker, in which the test is the dispatcher.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::{Client, jetstream};
use futures::StreamExt as _;
use prewarm::bus::Bus;
use prewarm::bus::pull::PullTimes;
use prewarm::bus::topology::{self, TopologySettings};
use prewarm::domain::job::{ImagePullPolicy, PullPolicy};
use prewarm::domain::name::NodeName;
use prewarm::image::Runtime;
use prewarm::image::simulated::{Simulated, SimulatedConfig};
use prewarm::wire::event::{Event, PullState, TaskEvent};
use prewarm::wire::subject::{PullKey, Subjects};
use prewarm::wire::task::{PullTask, Run};
use prewarm::wire::worker::{Heartbeat, PullId, Registration, RegistrationReply, Revocation};
use prewarm::work::run::{WorkerError, WorkerSettings, run};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::nats::{NatsServer, NatsVersion, taken_in};
use crate::support::wait::{eventually, within};

/// Longest wait for anything that should happen by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The one node of the cell.
pub(crate) fn node() -> NodeName {
    "node-1".parse().unwrap()
}

/// A task of this job for this image, on the one node.
pub(crate) fn task(job: &str, image: &str) -> PullTask {
    PullTask {
        job: job.parse().unwrap(),
        run: Run {
            uid: "u".to_owned(),
            generation: 1,
            round: 1,
        },
        node: node(),
        image: image.parse().unwrap(),
        digest: None,
        platform: None,
        image_pull_policy: ImagePullPolicy::IfNotPresent,
        pull_policy: PullPolicy::default(),
        priority: 0,
        pull_secrets: vec![],
        pin: false,
        unpack: true,
        expires_at: None,
        released_at: None,
        labels: [].into(),
        annotations: [].into(),
        traceparent: None,
    }
}

pub(crate) fn pull_id(task: &PullTask) -> PullId {
    PullId {
        job: task.job.clone(),
        run: task.run.clone(),
        image: task.image.token(),
    }
}

/// A simulated runtime whose pulls take this long, and never fail.
pub(crate) fn pulls_take(latency: &str) -> Simulated {
    Simulated::new(SimulatedConfig {
        node: node().to_string(),
        latency: latency.parse().unwrap(),
        ..SimulatedConfig::default()
    })
}

/// A broker with a cell on it, where registrations are answered and everything is written down.
pub(crate) struct Cell {
    pub(crate) server: NatsServer,
    pub(crate) bus: Bus,
    ack_wait: Duration,
    registrations: Arc<Mutex<Vec<Registration>>>,
    heartbeats: Arc<Mutex<Vec<Heartbeat>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Cell {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Cell {
    /// A cell whose consumers have the contract's ack wait.
    pub(crate) async fn start(version: NatsVersion) -> Self {
        Self::with_ack_wait(version, Duration::from_secs(30)).await
    }

    pub(crate) async fn with_ack_wait(version: NatsVersion, ack_wait: Duration) -> Self {
        let server = NatsServer::start(version).await;
        let client = server.client().await;
        let mut cell = Self::on(server, client, ack_wait).await;
        cell.dispatch().await;
        cell
    }

    /// A cell on a server that runs, without anybody who answers.
    pub(crate) async fn on(server: NatsServer, client: Client, ack_wait: Duration) -> Self {
        let bus = Bus::new(client, Subjects::default());
        topology::ensure(&bus, TopologySettings::default())
            .await
            .unwrap();
        Self {
            server,
            bus,
            ack_wait,
            registrations: Arc::default(),
            heartbeats: Arc::default(),
            tasks: vec![],
        }
    }

    /// From now on registrations are answered.
    pub(crate) async fn dispatch(&mut self) {
        let subjects = &self.bus.subjects;
        let mut registering = self.bus.client.subscribe(subjects.workers()).await.unwrap();
        let mut beating = self
            .bus
            .client
            .subscribe(subjects.heartbeats())
            .await
            .unwrap();
        let (bus, ack_wait) = (self.bus.clone(), self.ack_wait);
        let (registrations, heartbeats) = (self.registrations.clone(), self.heartbeats.clone());
        self.tasks.push(tokio::spawn(async move {
            while let Some(message) = registering.next().await {
                let registration: Registration = serde_json::from_slice(&message.payload).unwrap();
                let reply = welcome(&bus, ack_wait, registration.consumer_lost).await;
                registrations.lock().unwrap().push(registration);
                let reply = serde_json::to_vec(&reply).unwrap();
                let to = message.reply.unwrap();
                bus.client.publish(to, reply.into()).await.unwrap();
            }
        }));
        self.tasks.push(tokio::spawn(async move {
            while let Some(message) = beating.next().await {
                let heartbeat = serde_json::from_slice(&message.payload).unwrap();
                heartbeats.lock().unwrap().push(heartbeat);
            }
        }));
        taken_in(&self.bus.client).await;
    }

    pub(crate) fn registrations(&self) -> Vec<Registration> {
        self.registrations.lock().unwrap().clone()
    }

    /// The `n`th registration, from 1.
    pub(crate) async fn registration(&self, n: usize) -> Registration {
        eventually(&format!("registration {n}"), LIMIT, async || {
            self.registrations().get(n - 1).cloned()
        })
        .await
    }

    pub(crate) fn heartbeats(&self) -> Vec<Heartbeat> {
        self.heartbeats.lock().unwrap().clone()
    }

    pub(crate) async fn release(&self, task: &PullTask) {
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let payload = serde_json::to_vec(task).unwrap();
        let subject = self.bus.subjects.task(&key);
        let stored = self.bus.jetstream.publish(subject, payload.into()).await;
        stored.unwrap().await.unwrap();
    }

    pub(crate) async fn revoke(&self, task: &PullTask) {
        self.say_revoked(Revocation {
            pulls: vec![pull_id(task)],
            unpin: vec![],
        })
        .await;
    }

    pub(crate) async fn say_revoked(&self, revocation: Revocation) {
        let payload = serde_json::to_vec(&revocation).unwrap();
        let subject = self.bus.subjects.revoke(&node());
        self.bus
            .client
            .publish(subject, payload.into())
            .await
            .unwrap();
    }

    /// Everything that was told of pulls, in order.
    pub(crate) async fn events(&self) -> Result<Vec<Event<TaskEvent>>, async_nats::Error> {
        let name = self.bus.subjects.events_stream();
        let mut stream = self.bus.jetstream.get_stream(name).await?;
        let last = stream.info().await?.state.last_sequence;
        let mut events = vec![];
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await?;
            events.push(serde_json::from_slice(&message.payload)?);
        }
        Ok(events)
    }

    /// Waits until a pull of this job has come this far.
    pub(crate) async fn told(&self, job: &str, state: PullState) -> Event<TaskEvent> {
        let what = format!("a pull of job {job} to be {state:?}");
        eventually(&what, LIMIT, async || {
            let events = self.events().await.map_err(|error| error.to_string())?;
            let of_job = |event: &&Event<TaskEvent>| event.data.job.as_str() == job;
            let found = events
                .iter()
                .find(|event| of_job(event) && event.data.state == state);
            found.cloned().ok_or_else(|| summary(&events))
        })
        .await
    }

    /// The node's consumer as the broker sees it.
    pub(crate) async fn consumer(&self) -> Result<jetstream::consumer::Info, async_nats::Error> {
        let stream = self
            .bus
            .jetstream
            .get_stream(self.bus.subjects.tasks_stream())
            .await?;
        let mut consumer: PullConsumer = stream.get_consumer(&node().token()).await?;
        Ok(consumer.info().await?.clone())
    }

    /// Waits until no delivered task is unanswered and none is left to deliver.
    pub(crate) async fn answered(&self) {
        eventually("every task to be acked", LIMIT, async || {
            let info = self.consumer().await.map_err(|error| error.to_string())?;
            if info.num_ack_pending == 0
                && info.num_pending == 0
                && info.delivered.consumer_sequence > 0
            {
                Ok(())
            } else {
                Err(format!("{info:?}"))
            }
        })
        .await;
    }
}

/// The states that were told, for the message of a failed test.
pub(crate) fn summary(events: &[Event<TaskEvent>]) -> String {
    let one = |event: &Event<TaskEvent>| {
        let TaskEvent {
            job,
            state,
            attempt,
            failure,
            ..
        } = &event.data;
        format!("{job} {state:?} {attempt} {failure:?}")
    };
    events.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What a dispatcher does with a registration: makes the consumer if it is missing, or anew.
async fn welcome(bus: &Bus, ack_wait: Duration, remake: bool) -> RegistrationReply {
    let stream = bus.subjects.tasks_stream();
    let consumer = node().token();
    let tasks = bus.jetstream.get_stream(&stream).await.unwrap();
    if remake {
        // It may well be gone.
        let _ = tasks.delete_consumer(&consumer).await;
    }
    let config = pull::Config {
        durable_name: Some(consumer.clone()),
        filter_subject: bus.subjects.tasks_of_node(&node()),
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    tasks.create_consumer(config).await.unwrap();
    RegistrationReply {
        stream,
        consumer,
        error: String::new(),
    }
}

/// A worker that ends with its value, or by [`Worker::stop`].
pub(crate) struct Worker {
    shutdown: DropGuard,
    running: JoinHandle<Result<(), WorkerError>>,
}

/// Times that let a test see what takes minutes.
pub(crate) fn settings() -> WorkerSettings {
    WorkerSettings {
        pull_times: Some(PullTimes {
            expires: Duration::from_secs(4),
            idle_heartbeat: Duration::from_secs(1),
        }),
        ..WorkerSettings::new(node())
    }
}

impl Worker {
    /// A worker with a connection of its own.
    pub(crate) async fn start(cell: &Cell, runtime: Simulated, settings: WorkerSettings) -> Self {
        Self::on(cell.server.client().await, runtime, settings)
    }

    pub(crate) fn on(client: Client, runtime: Simulated, settings: WorkerSettings) -> Self {
        let bus = Bus::new(client, Subjects::default());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(
            bus,
            Runtime::Simulated(runtime),
            settings,
            shutdown.clone(),
        ));
        Self {
            shutdown: shutdown.drop_guard(),
            running,
        }
    }

    /// SIGTERM, and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.disarm().cancel();
        within(LIMIT, "the worker's end", self.running)
            .await
            .unwrap()
            .unwrap();
    }

    /// kill -9.
    pub(crate) async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}
