//! Answering a worker that announces itself: its consumer is made, and it is told where.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Stream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bus::Bus;
use crate::domain::name::NodeName;
use crate::wire::worker::{ACK_WAIT_SECONDS, RegistrationReply};

/// Consumers made at once, so that a fleet that registers does not flood the broker's API, which
/// drops everything it has when it has too much.
const AT_ONCE: usize = 64;

/// Makes consumers, a bounded number at a time.
#[derive(Clone)]
pub(super) struct Welcomer {
    bus: Bus,
    tasks: Stream<()>,
    at_once: Arc<Semaphore>,
}

impl Welcomer {
    pub(super) fn new(bus: Bus, tasks: Stream<()>) -> Self {
        Self {
            bus,
            tasks,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Makes the node's consumer if it is missing, or in any case, then answers. A worker that gets
    /// no answer asks again.
    pub(super) fn welcome(
        &self,
        background: &mut JoinSet<()>,
        node: NodeName,
        remake: bool,
        start_sequence: u64,
        reply: async_nats::Subject,
    ) {
        let this = self.clone();
        background.spawn(async move {
            // The semaphore is never closed.
            let _permit = this.at_once.acquire().await;
            let answer = match this.make_consumer(&node, remake, start_sequence).await {
                Ok(()) => RegistrationReply {
                    stream: this.bus.subjects.tasks_stream(),
                    consumer: node.token(),
                    error: String::new(),
                },
                Err(error) => {
                    tracing::warn!(%node, error, "the node's consumer was not made");
                    RegistrationReply {
                        error,
                        ..RegistrationReply::default()
                    }
                }
            };
            if let Ok(body) = serde_json::to_vec(&answer) {
                let _ = this.bus.client.publish(reply, body.into()).await;
            }
        });
    }

    async fn make_consumer(
        &self,
        node: &NodeName,
        remake: bool,
        start_sequence: u64,
    ) -> Result<(), String> {
        let name = node.token();
        let failed = |error: &dyn std::fmt::Display| format!("the consumer of {node}: {error}");
        if remake {
            // There may be none: then there is nothing in the way.
            let _ = self.tasks.delete_consumer(&name).await;
        } else {
            match self.tasks.consumer_info(&name).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        let config = Config {
            durable_name: Some(name),
            description: Some(format!("prewarm: the tasks of node {node}")),
            filter_subject: self.bus.subjects.tasks_of_node(node),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(ACK_WAIT_SECONDS),
            max_deliver: -1,
            memory_storage: true,
            num_replicas: 1,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ..Config::default()
        };
        self.tasks
            .create_consumer(config)
            .await
            .map_err(|error| failed(&error))?;
        Ok(())
    }
}
