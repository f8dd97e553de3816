//! What the broker can do at all: the messages of one job, bare.
//!
//! As many consumers of the same kind, each asked for tasks; one message to each, written with the
//! sequence expected; for each of them two events with ids, kept and confirmed, then the ack; and one
//! reader of all events. No state, no JSON, no task per node: whoever does the same work cannot be
//! faster than this by much.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::{Config, OrderedConfig};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream;
use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::cell::{Cell, LIMIT, job};
use crate::support::wait::within;

/// Connections of the nodes, as `prewarm simulate` has by default.
const CONNECTIONS: u32 = 8;
/// Consumers made at once.
const AT_ONCE: usize = 64;
const TASKS: &str = "FLOOR_TASKS";
const EVENTS: &str = "FLOOR_EVENTS";

pub(crate) struct Floor {
    cell: async_nats::jetstream::Context,
    publisher: Client,
    nodes: Vec<Client>,
    count: u32,
    task: Bytes,
    started: Bytes,
    ended: Bytes,
}

impl Floor {
    /// Makes streams and consumers, and takes the messages from a real job.
    pub(crate) async fn prepare(cell: &Cell, count: u32) -> Self {
        let mut tasks = cell.client.subscribe("prewarm.task.>").await.unwrap();
        let mut events = cell.client.subscribe("prewarm.event.task.>").await.unwrap();
        cell.run(&job("sample", "sample", count), count.into())
            .await;
        let task = tasks.next().await.unwrap().payload;
        let (mut started, mut ended) = (None, None);
        while started.is_none() || ended.is_none() {
            let event = within(LIMIT, "events", events.next())
                .await
                .unwrap()
                .payload;
            let text = String::from_utf8_lossy(&event);
            if text.contains("dev.prewarm.task.started") {
                started = Some(event);
            } else if text.contains("dev.prewarm.task.succeeded") {
                ended = Some(event);
            }
        }
        let config = |name: &str, subject: &str, per_subject| stream::Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            max_messages_per_subject: per_subject,
            max_consumers: 100_000,
            duplicate_window: Duration::from_secs(120),
            ..stream::Config::default()
        };
        let made = cell
            .jetstream
            .create_stream(config(TASKS, "floor.task.>", 1));
        let stream = made.await.unwrap();
        let events = config(EVENTS, "floor.event.>", -1);
        cell.jetstream.create_stream(events).await.unwrap();
        futures::stream::iter((0..count).map(|node| {
            let config = Config {
                durable_name: Some(format!("node-{node}")),
                filter_subject: format!("floor.task.{node}.>"),
                ack_policy: AckPolicy::Explicit,
                memory_storage: true,
                num_replicas: 1,
                ..Config::default()
            };
            stream.create_consumer(config)
        }))
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, async |made| made.await.map(drop))
        .await
        .unwrap();
        let mut nodes = Vec::new();
        for _ in 0..CONNECTIONS {
            nodes.push(cell.nats.client().await);
        }
        Self {
            cell: cell.jetstream.clone(),
            publisher: cell.nats.client().await,
            nodes,
            count,
            task,
            started: started.unwrap(),
            ended: ended.unwrap(),
        }
    }

    /// From the first publish to the last event read.
    pub(crate) async fn run(&self, run: usize) -> Duration {
        let mut ends = Vec::new();
        for (connection, client) in (0..).zip(&self.nodes) {
            let node = self.node(connection, client.clone(), run).await;
            ends.push(tokio::spawn(node));
        }
        let mut acks = self.publisher.subscribe("floor.acks").await.unwrap();
        let events = self.cell.get_stream(EVENTS).await.unwrap();
        let reader = OrderedConfig {
            deliver_policy: DeliverPolicy::New,
            ..OrderedConfig::default()
        };
        let consumer = events.create_consumer(reader).await.unwrap();
        let mut events = consumer.messages().await.unwrap();
        let began = Instant::now();
        let publish = async {
            for node in 0..self.count {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
                let subject = format!("floor.task.{node}.job-{run}.image");
                let sent = self.publisher.publish_with_reply_and_headers(
                    subject,
                    "floor.acks",
                    headers,
                    self.task.clone(),
                );
                sent.await.unwrap();
            }
            for _ in 0..self.count {
                acks.next().await.unwrap();
            }
        };
        let read = async {
            for _ in 0..self.count * 2 {
                events.next().await.unwrap().unwrap();
            }
            began.elapsed()
        };
        let both = async { tokio::join!(publish, read) };
        let ((), took) = within(LIMIT, "the floor", both).await;
        for end in ends {
            within(LIMIT, "every ack of the floor", end).await.unwrap();
        }
        let stream = self.cell.get_stream(TASKS).await.unwrap();
        stream.purge().await.unwrap();
        took
    }

    /// What the nodes of one connection do.
    async fn node(
        &self,
        connection: u32,
        client: Client,
        run: usize,
    ) -> impl Future<Output = ()> + use<> {
        let inbox = format!("floor.in.{run}.{connection}");
        let mine = (connection..self.count).step_by(CONNECTIONS as usize);
        let subscriber = client.subscribe(format!("{inbox}.>")).await.unwrap();
        for node in mine.clone() {
            // From 30 to 45 s, as workers ask for.
            let heartbeat = 30_000_000_000 + u64::from(node % 16) * 1_000_000_000;
            let body =
                format!(r#"{{"batch":3,"expires":120000000000,"idle_heartbeat":{heartbeat}}}"#);
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{TASKS}.node-{node}");
            let reply = format!("{inbox}.pull.{node}");
            client
                .publish_with_reply(subject, reply, body.into())
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        let tells = Tells {
            client,
            inbox,
            started: self.started.clone(),
            ended: self.ended.clone(),
            run,
        };
        tells.until(subscriber, mine.count())
    }

    pub(crate) async fn remove(self) {
        self.cell.delete_stream(TASKS).await.unwrap();
        self.cell.delete_stream(EVENTS).await.unwrap();
    }
}

struct Tells {
    client: Client,
    inbox: String,
    started: Bytes,
    ended: Bytes,
    run: usize,
}

impl Tells {
    /// Answers deliveries with events, and their confirmations with acks, until as many are done.
    async fn until(self, mut subscriber: Subscriber, count: usize) {
        let mut replies = std::collections::HashMap::new();
        let mut acked = 0;
        let confirmed = format!("{}.end.", self.inbox);
        while acked < count {
            let message = subscriber.next().await.unwrap();
            if let Some(node) = message.subject.strip_prefix(confirmed.as_str()) {
                let reply: async_nats::Subject = replies.remove(node).unwrap();
                self.client.publish(reply, "+ACK".into()).await.unwrap();
                acked += 1;
            } else if let Some(reply) = message.reply {
                let node = message.subject.split('.').nth(2).unwrap().to_owned();
                self.tell("start", &node, &self.started).await;
                self.tell("end", &node, &self.ended).await;
                replies.insert(node, reply);
            }
        }
        self.client.flush().await.unwrap();
    }

    async fn tell(&self, what: &str, node: &str, body: &Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{}.{node}.{what}", self.run));
        headers.insert("content-type", "application/cloudevents+json");
        let subject = format!("floor.event.job-{}.{node}.image", self.run);
        let reply = format!("{}.{what}.{node}", self.inbox);
        let sent =
            self.client
                .publish_with_reply_and_headers(subject, reply, headers, body.clone());
        sent.await.unwrap();
    }
}
