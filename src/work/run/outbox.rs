//! The task that sends: answers, heartbeats, progress, and events that the broker has to keep.
//!
//! One task for all, so that what the state says in an order is sent in that order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Arrived;
use super::observe::{Observer, Seen};
use crate::bus::Bus;
use crate::domain::trace::TRACEPARENT;
use crate::wire::event::CONTENT_TYPE;
use crate::wire::subject::PullKey;
use crate::work::effect::{EventToStore, StoreHandle};
use crate::work::input::Input;

/// Most messages that wait to be sent. When the broker is away for so long that they are more, events
/// count as not stored and are stored again later; the rest is dropped, and nothing depends on it.
const MAX_WAITING: usize = 1_024;
/// Most events that wait for the broker's word at once.
const MAX_UNSTORED: usize = 256;
/// How long the last messages may take at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

enum Outgoing {
    Publish {
        subject: Subject,
        payload: Bytes,
    },
    Store(Arc<EventToStore>),
    /// Nothing follows.
    Last,
}

/// Where a message is left to be sent.
#[derive(Clone, Debug)]
pub(super) struct Outbox(mpsc::Sender<Outgoing>);

impl Outbox {
    /// Starts the task; it ends with [`Outbox::close`].
    pub(super) fn start(
        bus: Bus,
        arrivals: mpsc::Sender<Arrived>,
        observer: Arc<dyn Observer>,
    ) -> (Self, JoinHandle<()>) {
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        let sending = tokio::spawn(send(bus, waiting, arrivals, observer));
        (Self(sender), sending)
    }

    /// Sends a message that may be lost.
    pub(super) fn say(&self, subject: String, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            Ok(payload) => self.publish(subject.into(), payload.into()),
            Err(error) => tracing::error!(subject, %error, "a message cannot be written as JSON"),
        }
    }

    /// Sends a body that may be lost.
    pub(super) fn publish(&self, subject: Subject, payload: Bytes) {
        let outgoing = Outgoing::Publish { subject, payload };
        if self.0.try_send(outgoing).is_err() {
            tracing::debug!("the broker takes nothing; a message that may be lost is dropped");
        }
    }

    /// Sends an event that the broker has to keep, and reports whether it does; `false` if there is no
    /// room for it now.
    pub(super) fn store(&self, event: Arc<EventToStore>) -> bool {
        self.0.try_send(Outgoing::Store(event)).is_ok()
    }

    /// Sends what waits, and nothing after it.
    pub(super) async fn close(self, task: JoinHandle<()>) {
        let close = async {
            let _ = self.0.send(Outgoing::Last).await;
            let _ = task.await;
        };
        if tokio::time::timeout(CLOSE_LIMIT, close).await.is_err() {
            tracing::warn!(
                "the broker did not take the last messages; it delivers tasks again after the ack wait"
            );
        }
    }
}

async fn send(
    bus: Bus,
    mut waiting: mpsc::Receiver<Outgoing>,
    arrivals: mpsc::Sender<Arrived>,
    observer: Arc<dyn Observer>,
) {
    let mut unstored = FuturesUnordered::new();
    loop {
        let answer = tokio::select! {
            outgoing = waiting.recv(), if unstored.len() < MAX_UNSTORED => match outgoing {
                None | Some(Outgoing::Last) => break,
                Some(Outgoing::Publish { subject, payload }) => {
                    if let Err(error) = bus.client.publish(subject, payload).await {
                        tracing::warn!(%error, "a message was not sent");
                    }
                    continue;
                }
                Some(Outgoing::Store(event)) => match publish(&bus, &event).await {
                    Ok(kept) => {
                        let sent = Instant::now();
                        unstored.push(async move { (event.store, sent, kept.await) });
                        continue;
                    }
                    Err(error) => not_stored(event.store, &error),
                },
            },
            Some((store, sent, kept)) = unstored.next() => match kept {
                Ok(_) => {
                    observer.saw(Seen::Stored(sent.elapsed()));
                    Input::Stored(store)
                }
                Err(error) => not_stored(store, &error),
            },
        };
        if matches!(answer, Input::NotStored(_)) {
            observer.saw(Seen::NotStored);
        }
        if arrivals.send(Arrived::Input(answer)).await.is_err() {
            break;
        }
    }
    if let Err(error) = bus.client.flush().await {
        tracing::warn!(%error, "the last messages were not sent");
    }
}

fn not_stored(store: StoreHandle, error: &dyn std::fmt::Display) -> Input {
    tracing::warn!(%error, "the broker did not keep an event; one that ends an attempt is stored again");
    Input::NotStored(store)
}

async fn publish(bus: &Bus, stored: &EventToStore) -> Result<PublishAckFuture, StoreError> {
    let EventToStore {
        message_id,
        at,
        event,
        traceparent,
        ..
    } = stored;
    let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
    let prefix = bus.subjects.prefix().to_string();
    let payload = serde_json::to_vec(&event.clone().into_event(&prefix, *at))?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, message_id.as_str());
    headers.insert("content-type", CONTENT_TYPE);
    if let Some(traceparent) = traceparent {
        headers.insert(TRACEPARENT, traceparent.to_string());
    }
    let subject = bus.subjects.task_event(&key);
    Ok(bus.store(subject, headers, payload.into()).await?)
}

#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error("it cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Publish(#[from] PublishError),
}
