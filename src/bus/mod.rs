//! The broker: connection, topology, and the few ways messages are stored and taken.
//!
//! Nothing here decides anything about jobs or pulls; it carries what the rooms above decided.

pub mod connect;
pub mod leaders;
mod login;
pub mod pull;
pub mod read;
mod tls;
pub mod topology;

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;

use crate::wire::subject::Subjects;

/// How long one request to the broker may take before it counts as unanswered.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the broker, with the names of one cell.
#[derive(Clone, Debug)]
pub struct Bus {
    /// The connection itself: core NATS.
    pub client: Client,
    /// JetStream over it.
    pub jetstream: jetstream::Context,
    /// The subjects, streams and buckets of the cell.
    pub subjects: Subjects,
}

impl Bus {
    /// Wraps a connection.
    #[must_use]
    pub fn new(client: Client, subjects: Subjects) -> Self {
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(REQUEST_TIMEOUT);
        Self {
            client,
            jetstream,
            subjects,
        }
    }

    /// Publishes a message that a stream keeps; await the result for the broker's word that it does.
    ///
    /// # Errors
    /// The message could not be sent, or the broker does not answer.
    pub async fn store(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PublishAckFuture, PublishError> {
        let message = PublishMessage::build().headers(headers).payload(payload);
        self.jetstream.send_publish(subject, message).await
    }
}
