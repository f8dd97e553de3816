//! A cell: a broker, a registry, a dispatcher, and nodes with a containerd and a worker each.

use std::time::Duration;

use prewarm::wire::record::JobRecord;
use serde_json::{Value, json};

use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Output, Prewarm, Role, prewarm};
use crate::support::registry::Registry;
use crate::support::wait::eventually;

/// How long anything may take that is not waiting for a time of ours to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Cell {
    pub(crate) nats: NatsServer,
    pub(crate) registry: Registry,
    pub(crate) dispatcher: Role,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) containerd: Containerd,
    pub(crate) worker: Role,
}

impl Cell {
    pub(crate) async fn start(version: NatsVersion) -> Self {
        let (nats, registry) = tokio::join!(NatsServer::start(version), Registry::start());
        Self::start_with(nats, registry).await
    }

    pub(crate) async fn start_with(nats: NatsServer, registry: Registry) -> Self {
        let mut dispatcher = dispatcher(&nats);
        // Before, there is no stream that would keep what is published.
        dispatcher.logs("leading", LIMIT).await;
        Self {
            nats,
            registry,
            dispatcher,
        }
    }

    /// A call of the program that talks to this cell's broker.
    pub(crate) fn prewarm(&self, args: &[&str]) -> Prewarm {
        prewarm(args).env("PREWARM_NATS_URL", self.nats.url())
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        self.prewarm(args).limit(2 * LIMIT).run().await
    }

    /// A node of its own containerd that may pull from `registry` over plain HTTP, registered.
    pub(crate) async fn node(
        &self,
        name: &str,
        version: ContainerdVersion,
        registry: &str,
    ) -> Node {
        let containerd = Containerd::start(version).await;
        containerd.allow_registry(registry);
        let worker = worker(&self.nats, name, &containerd);
        self.present(name).await;
        Node {
            name: name.to_owned(),
            containerd,
            worker,
        }
    }

    /// Waits until the dispatcher counts the node as there.
    pub(crate) async fn present(&self, name: &str) {
        eventually(&format!("node {name} to be present"), LIMIT, async || {
            let output = self.run(&["get", "node", name, "-o", "json"]).await;
            if output.stdout.contains("\"Present\"") {
                Ok(())
            } else {
                Err(format!("{output:?}"))
            }
        })
        .await;
    }

    /// Publishes a job the way any client does: `nats pub prewarm.job.submit`.
    pub(crate) async fn publish(&self, name: &str, spec: Value) {
        let manifest = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec,
        });
        let client = self.nats.client().await;
        client
            .publish("prewarm.job.submit", manifest.to_string().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    pub(crate) async fn record(&self, job: &str) -> Result<JobRecord, String> {
        let output = self.run(&["get", "job", job, "-o", "json"]).await;
        serde_json::from_str(&output.stdout).map_err(|_| format!("{output:?}"))
    }

    /// Waits until the job has ended.
    pub(crate) async fn ended(&self, job: &str) -> JobRecord {
        eventually(&format!("job {job} to end"), 2 * LIMIT, async || {
            let record = self.record(job).await?;
            if record.status.outcome.is_some() {
                Ok(record)
            } else {
                Err(format!(
                    "{:?}; dispatcher:\n{}",
                    record.status,
                    self.dispatcher.log()
                ))
            }
        })
        .await
    }
}

pub(crate) fn dispatcher(nats: &NatsServer) -> Role {
    dispatcher_call(nats).spawn("the dispatcher")
}

pub(crate) fn dispatcher_call(nats: &NatsServer) -> Prewarm {
    prewarm(["dispatcher"])
        .env("PREWARM_METRICS_LISTEN", "off")
        .env("PREWARM_NATS_URL", nats.url())
        .env("PREWARM_LOG", "info,prewarm=debug")
}

pub(crate) fn worker(nats: &NatsServer, name: &str, containerd: &Containerd) -> Role {
    worker_call(nats, name, containerd).spawn(&format!("the worker of {name}"))
}

pub(crate) fn worker_call(nats: &NatsServer, name: &str, containerd: &Containerd) -> Prewarm {
    prewarm(["worker", "--min-free-disk", "0"])
        .env("PREWARM_METRICS_LISTEN", "off")
        .env("PREWARM_NATS_URL", nats.url())
        .env("PREWARM_LOG", "info,prewarm=debug")
        .env("PREWARM_NODE", name)
        .env("PREWARM_LABELS", "pool=test")
        .env("PREWARM_CONTAINERD_ADDRESS", containerd.socket())
        .env("PREWARM_REGISTRY_CONFIG_DIR", containerd.certs_dir())
}
