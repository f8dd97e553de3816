//! What the user of one node may do, with the configuration that is shipped: nothing in the name of another.

use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::mpsc;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::wait::within;
use crate::worker_cell::LIMIT;

on_every_generation!(a_node_cannot_speak_for_another,);

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
