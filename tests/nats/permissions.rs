//! What the user of one node may do, with the configuration that is shipped: nothing in the name of another.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::{Client, ConnectOptions, Event, Subject};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::wait::{eventually, within};
use crate::worker_cell::{Cell, LIMIT, task};

on_every_generation!(
    a_node_cannot_speak_for_another,
    the_reply_subject_of_a_request_reaches_nothing_of_another_node,
);

/// The shipped accounts, with the user of a second node beside the first, made as the file says.
fn two_nodes() -> String {
    let accounts = include_str!("../../deploy/nats/accounts.conf");
    let (_, user) = accounts.split_once("users: [{user: node-1").unwrap();
    let (user, _) = user.split_once("}}]").unwrap();
    let first = format!("{{user: node-1{user}}}}}");
    assert_eq!(accounts.matches(&first).count(), 1, "{first}");
    let second = first
        .replace("node-1", "node-2")
        .replace("$NODE_1_PASSWORD", "node");
    let both = accounts.replace(&first, &format!("{first}, {second}"));
    format!("CORE_PASSWORD: core\nNODE_1_PASSWORD: node\n{both}")
}

struct Login {
    client: Client,
    refusals: mpsc::UnboundedReceiver<String>,
}

impl Login {
    async fn of(server: &NatsServer, user: &str, password: &str) -> Self {
        let (told, refusals) = mpsc::unbounded_channel();
        let client = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            .custom_inbox_prefix(format!("_INBOX.{user}"))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    // Nobody listens any more once the test has ended.
                    let _ = told.send(error.to_string());
                }
                std::future::ready(())
            })
            .connect(server.url())
            .await
            .unwrap();
        Self { client, refusals }
    }

    async fn refused(&mut self, what: &str) {
        let waited = format!("the broker to refuse {what}");
        let refusal = within(LIMIT, &waited, self.refusals.recv()).await.unwrap();
        let refusal = refusal.to_lowercase();
        assert!(
            refusal.contains("permissions violation") && refusal.contains(&what.to_lowercase()),
            "{what}: {refusal}"
        );
    }
}

async fn a_node_cannot_speak_for_another(version: NatsVersion) {
    let server = NatsServer::start_with(version, &two_nodes()).await;
    let mut other = Login::of(&server, "node-2", "node").await;
    for subject in [
        "$JS.API.CONSUMER.MSG.NEXT.PREWARM_TASKS.node-1",
        "$JS.ACK.PREWARM_TASKS.node-1.1.1.1.1.0",
        "$JS.ACK._.hash.PREWARM_TASKS.node-1.1.1.1.1.0",
        "prewarm.event.task.base.node-1.000000000000",
        "prewarm.event.job.base.completed",
        "prewarm.worker.node-1",
        "prewarm.heartbeat.node-1",
        "prewarm.progress.base.node-1.000000000000",
        "prewarm.task.node-2.base.000000000000",
        "prewarm.job.submit",
        "prewarm.push",
        "prewarm.revoke.node-1",
        "$KV.prewarm_nodes.node-1",
        "$JS.API.STREAM.PURGE.PREWARM_TASKS",
        "$JS.API.CONSUMER.CREATE.PREWARM_TASKS",
    ] {
        other.client.publish(subject, "x".into()).await.unwrap();
        other.refused(subject).await;
    }
    for subject in ["_INBOX.node-1.>", "prewarm.revoke.node-1", "prewarm.>", ">"] {
        let _subscribed = other.client.subscribe(subject).await.unwrap();
        other.refused(subject).await;
    }
}

async fn consumer(cell: &Cell, node: &str) -> PullConsumer {
    let tasks = cell.bus.subjects.tasks_stream();
    let stream = cell.bus.jetstream.get_stream(tasks).await.unwrap();
    let config = pull::Config {
        durable_name: Some(node.to_owned()),
        filter_subject: format!("prewarm.task.{node}.>"),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.unwrap()
}

/// What was delivered, acked, is in hand, and waits.
async fn state(consumer: &mut PullConsumer) -> (u64, u64, usize, u64) {
    let info = consumer.info().await.unwrap();
    (
        info.delivered.consumer_sequence,
        info.ack_floor.consumer_sequence,
        info.num_ack_pending,
        info.num_pending,
    )
}

/// A body for the next-message subject that asks for one task, or for word that there is none.
const ONE_OR_NONE: &str = r#"{"batch":1,"no_wait":true}"#;

fn next(node: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.PREWARM_TASKS.{node}")
}

fn event(node: &str) -> String {
    format!("prewarm.event.task.base.{node}.000000000000")
}

impl Login {
    async fn ask(&self, subject: &str, reply: &str, body: &str) {
        let (subject, reply, body) = (subject.to_owned(), reply.to_owned(), body.to_owned());
        let asked = self.client.publish_with_reply(subject, reply, body.into());
        asked.await.unwrap();
    }

    /// Everything that node-2 may ask, with the answers to go there. Its consumer answers with a task, which looks
    /// like an ack, and with no body when there is none; a stream answers; the server does, where nobody is.
    async fn ask_all(&self, cell: &Cell, number: usize, reply: &str) {
        let task = format!("prewarm.task.node-2.base.{number:012}");
        let stored = cell.bus.jetstream.publish(task, "+ACK".into()).await;
        stored.unwrap().await.unwrap();
        for _ in ["the task", "none"] {
            self.ask(&next("node-2"), reply, ONE_OR_NONE).await;
        }
        self.ask(&event("node-2"), reply, "+ACK").await;
        self.ask("prewarm.worker.node-2", reply, "{}").await;
        let ack = "$JS.ACK.PREWARM_TASKS.node-2.1.1.1.1.0";
        self.ask(ack, reply, "+ACK").await;
    }
}

/// Whoever asks chooses where the answer goes, and permissions do not look at that. An empty answer that
/// went to the ack subject of another node's task would ack it.
async fn the_reply_subject_of_a_request_reaches_nothing_of_another_node(version: NatsVersion) {
    let server = NatsServer::start_with(version, &two_nodes()).await;
    let core = ConnectOptions::with_user_and_password("core".to_owned(), "core".to_owned());
    let core = core.connect(server.url()).await.unwrap();
    let victim = Login::of(&server, "node-1", "node").await;
    let mut other = Login::of(&server, "node-2", "node").await;
    let cell = Cell::on(server, core.clone(), Duration::from_secs(30)).await;
    let mut consumer_of_victim = consumer(&cell, "node-1").await;
    let mut consumer_of_other = consumer(&cell, "node-2").await;
    for image in ["first", "second"] {
        cell.release(&task("base", image)).await;
    }
    // The victim has one task in hand, and another waits.
    let mut inbox = victim.client.subscribe("_INBOX.node-1.mine").await.unwrap();
    victim
        .ask(&next("node-1"), "_INBOX.node-1.mine", ONE_OR_NONE)
        .await;
    let delivered = within(LIMIT, "the victim's task", inbox.next()).await;
    let ack: Subject = delivered.unwrap().reply.unwrap();
    assert!(ack.starts_with("$JS.ACK.PREWARM_TASKS.node-1."), "{ack}");
    let before = state(&mut consumer_of_victim).await;
    assert_eq!((before.2, before.3), (1, 1));
    let mut heard = core.subscribe("prewarm.*.node-1").await.unwrap();
    let progress = "prewarm.progress.base.node-1.000000000000";
    let mut seen = core.subscribe(progress).await.unwrap();
    core.flush().await.unwrap();

    // Answers there are: the task, the word that there is none, and the stream's.
    let mut own = other.client.subscribe("_INBOX.node-2.mine").await.unwrap();
    other.ask_all(&cell, 0, "_INBOX.node-2.mine").await;
    for _ in 0..3 {
        within(LIMIT, "an answer to the other", own.next()).await;
    }
    let (next, event) = (next("node-1"), event("node-1"));
    let (worker, heartbeat) = ("prewarm.worker.node-1", "prewarm.heartbeat.node-1");
    let targets = [&next, &event, worker, heartbeat, progress];
    for (number, target) in (1..).zip(targets) {
        other.ask_all(&cell, number, target).await;
        // However they end, they have left.
        let what = format!("the answers to {target}");
        let delivered = async || {
            let delivered = state(&mut consumer_of_other).await.0;
            delivered > number as u64
        };
        eventually(&what, LIMIT, delivered).await;
    }
    other.ask_all(&cell, targets.len() + 1, &ack).await;
    other.refused(&ack).await;
    other.client.flush().await.unwrap();

    // Behind all of it comes the victim's own word, which is heard first.
    let word = victim.client.publish(heartbeat, "the victim".into());
    word.await.unwrap();
    let word = within(LIMIT, "the victim's heartbeat", heard.next()).await;
    assert_eq!(word.unwrap().payload, "the victim");
    assert!(seen.next().now_or_never().is_none(), "progress of node-1");
    assert_eq!(state(&mut consumer_of_victim).await, before);
    assert!(told(&cell, "node-2").await, "its own were kept");
    assert!(!told(&cell, "node-1").await, "none of node-1");
    // The victim's own ack is taken.
    victim.client.publish(ack, "+ACK".into()).await.unwrap();
    victim.client.flush().await.unwrap();
    let acked = async || state(&mut consumer_of_victim).await.2 == 0;
    eventually("the victim's ack", LIMIT, acked).await;
}

/// Whether an event of this node is kept.
async fn told(cell: &Cell, node: &str) -> bool {
    let events = cell.bus.subjects.events_stream();
    let events = cell.bus.jetstream.get_stream(events).await.unwrap();
    let last = events.get_last_raw_message_by_subject(&event(node)).await;
    last.is_ok()
}
