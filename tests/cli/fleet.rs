//! A fleet of one node whose pulls are pretended: real dispatcher, real worker, real broker.

use super::dispatcher::LIMIT;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Role, prewarm};
use crate::support::shipped;
use crate::support::wait::eventually;

/// A broker with the shipped accounts, a dispatcher, and the worker of `node-1`, which is in the pool `gpu`.
pub(crate) struct Fleet {
    nats: NatsServer,
    _dispatcher: Role,
    _worker: Role,
}

/// The configuration that is shipped, with a password for everyone, which is the user's own name.
pub(crate) fn shipped_accounts() -> String {
    shipped::accounts().replace(
        "NODE_1_PASSWORD: node
",
        "NODE_1_PASSWORD: node-1
",
    )
}

impl Fleet {
    /// One whose pulls fail this often, from 0 to 1.
    pub(crate) async fn start(failure_rate: &str) -> Self {
        let nats = NatsServer::start_with(NatsVersion::V2_15, &shipped_accounts()).await;
        let mut dispatcher = prewarm(["dispatcher", "--metrics-listen", "off"])
            .env("PREWARM_NATS_URL", url(&nats, "core"))
            .spawn("the dispatcher");
        dispatcher.logs("leading", LIMIT).await;
        let worker = prewarm([
            "worker",
            "--metrics-listen",
            "off",
            "--runtime",
            "simulated",
        ])
        .env("PREWARM_SIMULATED_LATENCY", "50ms")
        .env("PREWARM_SIMULATED_FAILURE_RATE", failure_rate)
        .env("PREWARM_NODE", "node-1")
        .env("PREWARM_LABELS", "pool=gpu")
        .env("PREWARM_NATS_URL", url(&nats, "node-1"))
        .spawn("the worker");
        let fleet = Self {
            nats,
            _dispatcher: dispatcher,
            _worker: worker,
        };
        eventually("the node to be there", LIMIT, async || {
            let node = prewarm(["get", "node", "node-1"])
                .env("NATS_URL", fleet.url("core"))
                .run()
                .await;
            if node.stdout.contains("Present") {
                Ok(())
            } else {
                Err(format!("{node:?}"))
            }
        })
        .await;
        fleet
    }

    /// The broker's address without a user.
    pub(crate) fn server(&self) -> String {
        self.nats.url()
    }

    /// The broker's address with a user and the password in it.
    pub(crate) fn url(&self, user: &str) -> String {
        url(&self.nats, user)
    }
}

fn url(nats: &NatsServer, user: &str) -> String {
    format!("nats://{user}:{user}@127.0.0.1:{}", nats.port())
}
