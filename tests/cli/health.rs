//! `/readyz` tells the truth: what is taken away shows, with the reason, and what comes back does, too.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::stream;
use rustix::process::Signal;

use super::roles::get;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::process::free_port;
use crate::support::wait::eventually;

/// How long a change may take to show. A client that lost its broker comes back within some seconds; then a leader has
/// to be found, and workers register anew.
const LIMIT: Duration = Duration::from_secs(60);

const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf");

/// The shipped configuration of accounts, in which a worker has no JetStream, with one password for all.
fn accounts() -> String {
    let words = ACCOUNTS.split(|c: char| !c.is_ascii_alphanumeric() && !"$_".contains(c));
    let passwords: BTreeSet<&str> = words
        .filter_map(|word| word.strip_prefix('$'))
        .filter(|word| word.ends_with("_PASSWORD"))
        .collect();
    let given = passwords.iter().map(|name| format!("{name}: secret\n"));
    given.collect::<String>() + ACCOUNTS
}

/// A role whose health is served on a port of its own.
struct Watched {
    role: Role,
    port: u16,
}

impl Watched {
    fn start(call: Prewarm, nats: &NatsServer, user: &str, name: &str) -> Self {
        let port = free_port();
        let url = nats.url().replace("nats://", &format!("nats://{user}@"));
        let role = call
            .arg("--metrics-listen")
            .arg(format!("127.0.0.1:{port}"))
            .env("PREWARM_NATS_URL", url)
            .spawn(name);
        Self { role, port }
    }

    /// Waits until what is served at `path` has all of this.
    async fn says(&self, path: &str, wanted: &[&str]) {
        eventually(&format!("{path} to say {wanted:?}"), LIMIT, async || {
            let text = get(self.port, path).await?;
            if wanted.iter().all(|wanted| text.contains(wanted)) {
                Ok(())
            } else {
                Err(format!("{text}\n{}", self.role.log()))
            }
        })
        .await;
    }

    async fn ready(&self) {
        self.says("/readyz", &["HTTP/1.1 200"]).await;
    }

    /// Waits until it is not ready, for this reason. It lives, and a restart would mend nothing.
    async fn not_ready(&self, reason: &str) {
        self.says("/readyz", &["HTTP/1.1 503", reason]).await;
        self.says("/healthz", &["HTTP/1.1 200"]).await;
    }

    /// Waits until `/metrics` has this line.
    async fn counts(&self, line: &str) {
        self.says("/metrics", &[line]).await;
    }
}

fn dispatcher(nats: &NatsServer) -> Watched {
    Watched::start(
        prewarm(["dispatcher"]),
        nats,
        "core:secret",
        "the dispatcher",
    )
}

fn worker(nats: &NatsServer) -> Watched {
    let call = prewarm(["worker", "--node", "node-1", "--runtime", "simulated"]);
    Watched::start(call, nats, "node-1:secret", "the worker")
}

fn receiver(nats: &NatsServer, folder: &Path) -> Watched {
    let file = folder.join("webhooks.yaml");
    std::fs::write(
        &file,
        "sources: {harbor: {proof: none, registries: [r.example.com]}}",
    )
    .unwrap();
    let call = prewarm(["webhook", "--listen", "127.0.0.1:0", "--webhook-config"]);
    // Its own user, where the shipped configuration has one.
    let own = ACCOUNTS.contains("user: webhook");
    let user = if own { "webhook:secret" } else { "core:secret" };
    Watched::start(call.arg(file), nats, user, "the receiver")
}

#[tokio::test]
async fn a_broker_that_goes_and_comes_back_shows_in_every_role() {
    let folder = tempfile::tempdir().unwrap();
    let mut nats = NatsServer::start_with(NatsVersion::V2_15, &accounts()).await;
    let dispatcher = dispatcher(&nats);
    let (worker, receiver) = (worker(&nats), receiver(&nats, folder.path()));
    let roles = [&dispatcher, &worker, &receiver];
    for role in roles {
        role.ready().await;
        role.counts("prewarm_ready{condition=\"broker\"} 1").await;
    }
    nats.kill();
    let port = nats.port();
    let gone = format!("broker: the broker is not connected (nats://127.0.0.1:{port})");
    for role in roles {
        role.not_ready(&gone).await;
        role.counts("prewarm_ready{condition=\"broker\"} 0").await;
    }
    nats.restart().await;
    for role in roles {
        role.ready().await;
    }
}

#[tokio::test]
async fn a_broker_that_is_there_and_says_nothing_shows_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut nats = NatsServer::start_with(NatsVersion::V2_10, &accounts()).await;
    let dispatcher = dispatcher(&nats);
    let (worker, receiver) = (worker(&nats), receiver(&nats, folder.path()));
    for role in [&dispatcher, &worker, &receiver] {
        role.ready().await;
    }
    nats.process().signal(Signal::STOP);
    // These ask the broker each time; a worker, who may not, sees it when its pings are not answered.
    let silent = "topology: no answer within 2 s";
    tokio::join!(dispatcher.not_ready(silent), receiver.not_ready(silent));
    worker
        .not_ready("broker: the broker is not connected")
        .await;
    nats.process().signal(Signal::CONT);
    for role in [&dispatcher, &worker, &receiver] {
        role.ready().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_gone_or_another_shows_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let receiver = receiver(&nats, folder.path());
    // No dispatcher has been there.
    receiver
        .not_ready("topology: stream PREWARM_JOBS is not as prewarm needs it: it is missing")
        .await;
    let dispatcher = dispatcher(&nats);
    dispatcher.ready().await;
    receiver.ready().await;
    let jetstream = async_nats::jetstream::new(nats.client().await);
    jetstream.delete_stream("KV_prewarm_rules").await.unwrap();
    dispatcher
        .not_ready("topology: stream KV_prewarm_rules is not as prewarm needs it: it is missing")
        .await;
    receiver.ready().await;
    // That it asks leaves nothing behind.
    let name = "PREWARM_JOBS";
    let mut requests = jetstream.get_stream(name).await.unwrap();
    assert_eq!(requests.info().await.unwrap().state.last_sequence, 0);
    jetstream.delete_stream(name).await.unwrap();
    receiver.not_ready("it is missing").await;
    let other = stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["prewarm.>".to_owned()],
        ..stream::Config::default()
    };
    jetstream.delete_stream("PREWARM_TASKS").await.unwrap();
    jetstream.delete_stream("PREWARM_EVENTS").await.unwrap();
    jetstream.create_stream(other).await.unwrap();
    receiver
        .not_ready("it keeps prewarm.push, which is for PREWARM_JOBS to keep")
        .await;
}

#[tokio::test]
async fn a_worker_that_no_dispatcher_knows_is_not_ready() {
    let nats = NatsServer::start_with(NatsVersion::V2_15, &accounts()).await;
    let worker = worker(&nats);
    worker.not_ready("registration: ").await;
    let mut dispatcher = dispatcher(&nats);
    worker.ready().await;
    // It has its consumer, and goes on with what it has been given.
    dispatcher.role.terminate().await;
    worker.ready().await;
}
