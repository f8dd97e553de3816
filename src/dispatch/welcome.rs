//! Answering a worker that announces itself: its consumer is made, and it is told where.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::stream::Stream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::perform::PerformError;
use crate::bus::Bus;
use crate::domain::name::NodeName;
use crate::wire::worker::{ACK_WAIT_SECONDS, RegistrationReply};

/// Consumers made at once, so that a fleet that registers does not flood the broker's API, which
/// drops everything it has when it has too much.
const AT_ONCE: usize = 32;

/// How long a cluster may take to say whether a consumer is there. One whose server died is there and says nothing.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take until a consumer that is to be deleted is gone.
const DELETE_LIMIT: Duration = Duration::from_millis(500);
/// How long the broker may take to say that it is. While it is still there and its server is dead, nobody says anything.
const GONE_LIMIT: Duration = Duration::from_millis(100);
/// How long a cluster may take with each try to make a consumer. It may choose a server for it that has died, which the
/// others know after minutes only (`orphMax` of nats-server's events.go), and then nobody answers; the next try may meet
/// another. Where the tasks are on one server, it is the one that answers or none, and is given time.
const TRIES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_millis(750),
    Duration::from_secs(1),
    Duration::from_secs(1),
];
/// How long all of it may take: a worker that waits for longer asks again, and two that make the same consumer would be in
/// each other's way.
const ANSWER_WITHIN: Duration = Duration::from_millis(4_500);

/// Whether a node's consumer is there.
enum Found {
    Answers,
    Silent,
    Nowhere,
}

/// It may have waited for its turn or for the broker.
fn late(node: &NodeName) -> String {
    let seconds = ANSWER_WITHIN.as_secs_f64();
    format!("the consumer of {node} was not made within {seconds} s; ask again")
}

/// Makes consumers, a bounded number at a time.
#[derive(Clone)]
pub(super) struct Welcomer {
    bus: Bus,
    tasks: Stream<()>,
    look_limit: Duration,
    tries: &'static [Duration],
    at_once: Arc<Semaphore>,
}

impl Welcomer {
    pub(super) async fn new(bus: Bus, tasks: Stream<()>) -> Result<Self, PerformError> {
        let found = bus.jetstream.get_stream(bus.subjects.tasks_stream()).await;
        let found = found.map_err(|error| PerformError::new("the stream of the tasks", error))?;
        let replicas = found.cached_info().config.num_replicas;
        let (look_limit, tries): (_, &[_]) = if replicas > 1 {
            (LOOK_LIMIT, &TRIES)
        } else {
            (ANSWER_WITHIN, &[ANSWER_WITHIN])
        };
        Ok(Self {
            bus,
            tasks,
            look_limit,
            tries,
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Makes the node's consumer if it is missing, or in any case, then answers. It outlives the leadership, which may end
    /// several times while a cluster chooses leaders: a worker that gets no answer waits for as long as a request may take.
    pub(super) fn welcome(
        &self,
        node: NodeName,
        remake: bool,
        start_sequence: u64,
        reply: async_nats::Subject,
    ) {
        let this = self.clone();
        tokio::spawn(async move {
            let making = async {
                // The semaphore is never closed.
                let _permit = this.at_once.acquire().await;
                this.make_consumer(&node, remake, start_sequence).await
            };
            let made = timeout(ANSWER_WITHIN, making).await;
            let made = made.unwrap_or_else(|_| Err(late(&node)));
            let answer = match made {
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
        let mut is_in_the_way = remake;
        if !remake {
            match self.look_for(&name).await {
                Ok(Found::Answers) => return Ok(()),
                Ok(Found::Nowhere) => {}
                Ok(Found::Silent) => is_in_the_way = true,
                Err(error) => return Err(format!("the consumer of {node}: {error}")),
            }
        }
        let config = Config {
            durable_name: Some(name.clone()),
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
        for limit in self.tries.iter().copied() {
            if std::mem::replace(&mut is_in_the_way, true) {
                let _ = timeout(DELETE_LIMIT, self.delete_consumer(&name)).await;
            }
            if let Ok(made) = timeout(limit, self.tasks.create_consumer(config.clone())).await {
                return made
                    .map(drop)
                    .map_err(|error| format!("the consumer of {node}: {error}"));
            }
            // On a busy broker it may have been made, and the answer be late.
            let look = timeout(GONE_LIMIT, self.tasks.consumer_info(&name));
            if matches!(look.await, Ok(Ok(_))) {
                return Ok(());
            }
        }
        Err(format!("the consumer of {node}: no server made it"))
    }

    /// Deletes a consumer and waits until it is gone, whether or not somebody is left to say that it was deleted.
    async fn delete_consumer(&self, name: &str) {
        let mut deleted = std::pin::pin!(self.tasks.delete_consumer(name));
        while timeout(GONE_LIMIT, &mut deleted).await.is_err() {
            let look = timeout(GONE_LIMIT, self.tasks.consumer_info(name));
            if let Ok(Err(error)) = look.await
                && error.kind() == ConsumerInfoErrorKind::NotFound
            {
                return;
            }
        }
    }

    async fn look_for(&self, name: &str) -> Result<Found, ConsumerInfoError> {
        match timeout(self.look_limit, self.tasks.consumer_info(name)).await {
            Ok(Ok(_)) => Ok(Found::Answers),
            Ok(Err(error)) => match error.kind() {
                ConsumerInfoErrorKind::NotFound => Ok(Found::Nowhere),
                ConsumerInfoErrorKind::Offline | ConsumerInfoErrorKind::TimedOut => {
                    Ok(Found::Silent)
                }
                _ => Err(error),
            },
            Err(_) => Ok(Found::Silent),
        }
    }
}
