//! What the users of each role may do, with the configuration that is shipped: nothing in the name of another.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, Subject};
use futures::{FutureExt as _, StreamExt as _};
use prewarm::bus::Bus;
use prewarm::bus::topology::{TopologySettings, ensure};
use prewarm::wire::subject::Subjects;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::support::nats::{NatsServer, NatsVersion, taken_in};
use crate::support::parts;
use crate::support::prewarm::prewarm;
use crate::support::shipped::two_nodes;
use crate::support::wait::{eventually, within};
use crate::worker_cell::{Cell, LIMIT, task};

on_every_generation!(
    a_node_cannot_speak_for_another,
    a_node_is_added_without_the_broker_and_revoked_with_it,
    a_receiver_and_a_pipeline_do_their_own_work_only,
    credentials_are_changed_while_both_count,
    the_reply_subject_of_a_request_reaches_nothing_of_another_node,
);

/// The two ways in which the accounts are shipped.
#[derive(Clone, Copy, Debug)]
enum Accounts {
    /// deploy/nats/accounts.conf, with passwords.
    File,
    /// Those of `prewarm accounts`, with credentials.
    Signed,
}

const BOTH: [Accounts; 2] = [Accounts::File, Accounts::Signed];

/// What `prewarm accounts` writes.
struct Signed(TempDir);

impl Signed {
    async fn new() -> Self {
        let signed = Self(parts::temp_dir());
        signed.call(&["init"], &[]).await;
        signed.call(&["node"], &["node-1", "node-2"]).await;
        signed
    }

    async fn call(&self, command: &[&str], names: &[&str]) {
        let folder = self.0.path().as_os_str();
        let mut call = prewarm(["accounts"]);
        for word in command {
            call = call.arg(word);
        }
        call = call.arg(folder);
        for name in names {
            call = call.arg(name);
        }
        let output = call.run().await;
        assert_eq!(output.code, 0, "{output:?}");
    }

    /// What the servers include.
    fn accounts(&self) -> String {
        std::fs::read_to_string(self.0.path().join("accounts.conf")).unwrap()
    }

    fn file(&self, user: &str) -> PathBuf {
        let folder = if user.starts_with("node-") {
            "nodes"
        } else {
            ""
        };
        self.0.path().join(folder).join(format!("{user}.creds"))
    }
}

/// Where the users of one server have their proofs.
enum Proofs {
    Passwords,
    Files(Signed),
}

impl Proofs {
    async fn options(&self, user: &str) -> ConnectOptions {
        match self {
            Self::Passwords => {
                let password = if user.starts_with("node-") {
                    "node"
                } else {
                    user
                };
                ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            }
            Self::Files(signed) => ConnectOptions::with_credentials_file(signed.file(user))
                .await
                .unwrap(),
        }
    }
}

impl Accounts {
    async fn start(self, version: NatsVersion) -> (NatsServer, Proofs) {
        let (text, proofs) = match self {
            Self::File => (two_nodes(), Proofs::Passwords),
            Self::Signed => {
                let signed = Signed::new().await;
                (signed.accounts(), Proofs::Files(signed))
            }
        };
        (NatsServer::start_with(version, &text).await, proofs)
    }
}

struct Login {
    client: Client,
    refusals: mpsc::UnboundedReceiver<String>,
}

impl Login {
    async fn of(server: &NatsServer, proofs: &Proofs, user: &str) -> Self {
        let (told, refusals) = mpsc::unbounded_channel();
        let client = proofs
            .options(user)
            .await
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

    /// Tries to publish and to listen where it may not.
    async fn is_kept_out(&mut self, publish: &[&str], subscribe: &[&str]) {
        for &subject in publish {
            let subject = subject.to_owned();
            self.client
                .publish(subject.clone(), "x".into())
                .await
                .unwrap();
            self.refused(&subject).await;
        }
        for &subject in subscribe {
            let _subscribed = self.client.subscribe(subject.to_owned()).await.unwrap();
            self.refused(subject).await;
        }
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
    for accounts in BOTH {
        let (server, proofs) = accounts.start(version).await;
        cannot_speak_for_another(&server, &proofs).await;
    }
}

async fn cannot_speak_for_another(server: &NatsServer, proofs: &Proofs) {
    let mut other = Login::of(server, proofs, "node-2").await;
    let publish = [
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
    ];
    let subscribe = ["_INBOX.node-1.>", "prewarm.revoke.node-1", "prewarm.>", ">"];
    other.is_kept_out(&publish, &subscribe).await;
}

/// What only a dispatcher or a person who operates the fleet may do.
const CORE_ONLY: [&str; 8] = [
    "prewarm.job.cancel",
    "prewarm.job.delete",
    "prewarm.api.delete",
    "prewarm.task.node-1.base.000000000000",
    "prewarm.event.job.base.completed",
    "prewarm.revoke.node-1",
    "$KV.prewarm_rules.base",
    "$JS.API.STREAM.PURGE.PREWARM_JOBS",
];

/// Whether a stream says that it has what this user published.
async fn is_kept(login: &Login, subject: &str, stream: &str) {
    let context = async_nats::jetstream::new(login.client.clone());
    let stored = context.publish(subject.to_owned(), "{}".into()).await;
    let what = format!("the broker to keep {subject}");
    let ack = within(LIMIT, &what, async { stored.unwrap().await }).await;
    assert_eq!(ack.unwrap().stream, stream);
}

async fn a_receiver_and_a_pipeline_do_their_own_work_only(version: NatsVersion) {
    for accounts in BOTH {
        let (server, proofs) = accounts.start(version).await;
        do_their_own_work_only(&server, &proofs).await;
    }
}

async fn do_their_own_work_only(server: &NatsServer, proofs: &Proofs) {
    let core = Login::of(server, proofs, "core").await;
    let bus = Bus::new(core.client.clone(), Subjects::default());
    ensure(&bus, TopologySettings::default()).await.unwrap();

    let mut receiver = Login::of(server, proofs, "webhook").await;
    is_kept(&receiver, "prewarm.push", "PREWARM_JOBS").await;
    receiver
        .is_kept_out(&CORE_ONLY, &["prewarm.>", "prewarm.event.>", ">"])
        .await;
    receiver
        .is_kept_out(
            &[
                "prewarm.job.submit",
                "prewarm.api.submit",
                "prewarm.api.get",
            ],
            &[],
        )
        .await;

    let mut pipeline = Login::of(server, proofs, "ci").await;
    is_kept(&pipeline, "prewarm.job.submit", "PREWARM_JOBS").await;
    pipeline
        .is_kept_out(&CORE_ONLY, &["prewarm.>", "prewarm.event.>", ">"])
        .await;
    pipeline
        .is_kept_out(&["prewarm.push", "prewarm.worker.node-1"], &[])
        .await;
    // And hears what becomes of jobs.
    let mut events = pipeline
        .client
        .subscribe("prewarm.event.job.base.*")
        .await
        .unwrap();
    // The answer says that the subscription before it counts; a flush would not.
    is_kept(&pipeline, "prewarm.job.submit", "PREWARM_JOBS").await;
    let told = "prewarm.event.job.base.completed";
    core.client.publish(told, "end".into()).await.unwrap();
    let heard = within(LIMIT, "the job's event", events.next())
        .await
        .unwrap();
    assert_eq!(heard.subject.as_str(), told);
}

/// RUNBOOK.md, "Changing credentials": a second user with the same rights, then the first one goes.
/// The password stays here, because a variable that nothing uses is one that nats-server does not load.
async fn credentials_are_changed_while_both_count(version: NatsVersion) {
    let before = two_nodes();
    let both = before.replace(
        "users: [{user: core, password: $CORE_PASSWORD}]",
        "users: [{user: core, password: $CORE_PASSWORD}, {user: core-2, password: $CORE_PASSWORD}]",
    );
    let after = before.replace(
        "users: [{user: core, password: $CORE_PASSWORD}]",
        "users: [{user: core-2, password: $CORE_PASSWORD}]",
    );
    assert!(both != before && after != before);
    let mut server = NatsServer::start_with(version, &before).await;
    let old = Login::of(&server, &Proofs::Passwords, "core").await;
    server.reload(&both);
    let new = eventually("the new user to be let in", LIMIT, async || {
        let options = ConnectOptions::with_user_and_password("core-2".into(), "core".into());
        options.connect(server.url()).await
    })
    .await;
    // Who was there has noticed nothing.
    taken_in(&old.client).await;
    assert_eq!(old.client.connection_state(), State::Connected);
    server.reload(&after);
    eventually("the old user to be cut off", LIMIT, async || {
        old.client.connection_state() != State::Connected
    })
    .await;
    let again = ConnectOptions::with_user_and_password("core".into(), "core".into());
    let refused = again.connect(server.url()).await.unwrap_err();
    assert_eq!(refused.kind(), ConnectErrorKind::AuthorizationViolation);
    taken_in(&new).await;
    assert_eq!(new.connection_state(), State::Connected);
}

/// RUNBOOK.md, "Credentials of many nodes": a node more changes nothing at the broker, and one that is revoked is cut off.
async fn a_node_is_added_without_the_broker_and_revoked_with_it(version: NatsVersion) {
    let signed = Signed::new().await;
    let before = signed.accounts();
    let mut server = NatsServer::start_with(version, &before).await;
    signed.call(&["node"], &["node-3.example"]).await;
    assert_eq!(signed.accounts(), before);
    let proofs = Proofs::Files(signed);
    let options = async |user: &str| {
        proofs
            .options(user)
            .await
            .custom_inbox_prefix("_INBOX.node-3_example")
    };
    let mut third = Login::of(&server, &proofs, "node-3.example").await;
    // Its subjects have its token.
    third
        .is_kept_out(
            &["prewarm.heartbeat.node-1", "prewarm.heartbeat.node-3"],
            &[],
        )
        .await;
    let core = proofs
        .options("core")
        .await
        .connect(server.url())
        .await
        .unwrap();
    let mut heard = core.subscribe("prewarm.heartbeat.*").await.unwrap();
    taken_in(&core).await;
    let own = "prewarm.heartbeat.node-3_example";
    third.client.publish(own, "x".into()).await.unwrap();
    let word = within(LIMIT, "its heartbeat", heard.next()).await;
    assert_eq!(word.unwrap().subject.as_str(), own);

    let Proofs::Files(signed) = &proofs else {
        unreachable!()
    };
    signed.call(&["revoke"], &["node-3.example"]).await;
    let after = signed.accounts();
    assert_ne!(after, before);
    server.reload(&after);
    eventually("the node to be cut off", LIMIT, async || {
        third.client.connection_state() != State::Connected
    })
    .await;
    let refused = options("node-3.example").await.connect(server.url()).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        ConnectErrorKind::AuthorizationViolation
    );
    // The others have noticed nothing; nor does the node that gets new ones.
    taken_in(&core).await;
    assert_eq!(core.connection_state(), State::Connected);
    options("node-1").await.connect(server.url()).await.unwrap();
    signed.call(&["node"], &["node-3.example"]).await;
    options("node-3.example")
        .await
        .connect(server.url())
        .await
        .unwrap();
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

async fn one_in_hand_and_one_waiting(consumer: &mut PullConsumer) -> (u64, u64, usize, u64) {
    eventually(
        "one task in hand and one that waits",
        LIMIT,
        async || match state(consumer).await {
            now if (now.2, now.3) == (1, 1) => Ok(now),
            other => Err(format!("{other:?}")),
        },
    )
    .await
}

/// A body for the next-message subject that waits for one task: half a minute, in nanoseconds.
const ONE: &str = r#"{"batch":1,"expires":30000000000}"#;
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
    for accounts in BOTH {
        let (server, proofs) = accounts.start(version).await;
        reply_subjects_reach_nothing(server, &proofs).await;
    }
}

async fn reply_subjects_reach_nothing(server: NatsServer, proofs: &Proofs) {
    let core = proofs.options("core").await;
    let core = core.connect(server.url()).await.unwrap();
    let victim = Login::of(&server, proofs, "node-1").await;
    let mut other = Login::of(&server, proofs, "node-2").await;
    let cell = Cell::on(server, core.clone(), Duration::from_secs(30)).await;
    let mut consumer_of_victim = consumer(&cell, "node-1").await;
    let mut consumer_of_other = consumer(&cell, "node-2").await;
    for image in ["first", "second"] {
        cell.release(&task("base", image)).await;
    }
    // The victim has one task in hand, and another waits.
    let mut inbox = victim.client.subscribe("_INBOX.node-1.mine").await.unwrap();
    victim.ask(&next("node-1"), "_INBOX.node-1.mine", ONE).await;
    let delivered = within(LIMIT, "the victim's task", inbox.next()).await;
    let ack: Subject = delivered.unwrap().reply.unwrap();
    assert!(ack.starts_with("$JS.ACK.PREWARM_TASKS.node-1."), "{ack}");
    let before = one_in_hand_and_one_waiting(&mut consumer_of_victim).await;
    let mut heard = core.subscribe("prewarm.*.node-1").await.unwrap();
    let progress = "prewarm.progress.base.node-1.000000000000";
    let mut seen = core.subscribe(progress).await.unwrap();
    taken_in(&core).await;

    // Answers there are: the task, the word that there is none, and the stream's.
    let mut own = other.client.subscribe("_INBOX.node-2.mine").await.unwrap();
    other.ask_all(&cell, 0, "_INBOX.node-2.mine").await;
    for _ in 0..3 {
        within(LIMIT, "an answer to the other", own.next()).await;
    }
    let (next_of_victim, event_of_victim) = (next("node-1"), event("node-1"));
    let (worker, heartbeat) = ("prewarm.worker.node-1", "prewarm.heartbeat.node-1");
    let targets = [
        &next_of_victim,
        &event_of_victim,
        worker,
        heartbeat,
        progress,
    ];
    for (number, target) in (1..).zip(targets) {
        other.ask_all(&cell, number, target).await;
        // However they end, they have left. A consumer that has not yet heard of its task says that there is none.
        let what = format!("the answers to {target}");
        let delivered = async || {
            let delivered = state(&mut consumer_of_other).await.0 > number as u64;
            if !delivered {
                other.ask(&next("node-2"), target, ONE_OR_NONE).await;
            }
            delivered
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
