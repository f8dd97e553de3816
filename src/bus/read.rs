//! Reading what a stream or bucket holds, from the first message to the last.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures::StreamExt as _;

use super::Bus;

/// Wait for the next message after which the broker is asked again what is left: messages may be
/// purged or grow too old while they are read, and nobody says so.
const NEXT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often in a row it is asked before reading fails.
const MAX_ASKED_AGAIN: u32 = 5;

/// Reading from the broker failed. Trying again, from the start, may help.
#[derive(Debug, thiserror::Error)]
#[error("cannot read stream {stream}: {reason}")]
pub struct ReadError {
    /// The stream.
    pub stream: String,
    /// What the client saw.
    pub reason: String,
}

impl ReadError {
    fn new(stream: &str, reason: impl std::fmt::Display) -> Self {
        Self {
            stream: stream.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The messages of a stream in order, and how many there were when reading began.
pub struct Reading {
    bus: Bus,
    stream: String,
    filter: String,
    /// The sequence of the message read last.
    last: u64,
    /// The messages; they go on with what is stored later.
    pub messages: Ordered,
    /// Messages that were there when reading began and have not been read.
    pub left: u64,
}

impl Bus {
    /// Begins to read a stream's messages under a subject filter.
    ///
    /// # Errors
    /// The stream is missing, or the broker does not answer.
    pub async fn read(
        &self,
        stream: &str,
        filter: String,
        from: DeliverPolicy,
    ) -> Result<Reading, ReadError> {
        let failed = |reason: &dyn std::fmt::Display| ReadError::new(stream, reason);
        let handle = self
            .jetstream
            .get_stream_no_info(stream)
            .await
            .map_err(|e| failed(&e))?;
        let config = OrderedConfig {
            filter_subject: filter.clone(),
            deliver_policy: from,
            ..Default::default()
        };
        let consumer = handle
            .create_consumer(config)
            .await
            .map_err(|e| failed(&e))?;
        let left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|e| failed(&e))?;
        Ok(Reading {
            bus: self.clone(),
            stream: stream.to_owned(),
            filter,
            last: 0,
            messages,
            left,
        })
    }

    /// Hands every message that is stored now to `each`.
    ///
    /// # Errors
    /// As [`Bus::read`].
    pub async fn read_all(
        &self,
        stream: &str,
        filter: String,
        from: DeliverPolicy,
        mut each: impl FnMut(Message),
    ) -> Result<(), ReadError> {
        let mut reading = self.read(stream, filter, from).await?;
        while let Some(message) = reading.next_stored().await? {
            each(message);
        }
        Ok(())
    }
}

impl Reading {
    /// The next message that was stored when reading began; `None` after the last.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn next_stored(&mut self) -> Result<Option<Message>, ReadError> {
        for _ in 0..MAX_ASKED_AGAIN {
            if self.left == 0 {
                return Ok(None);
            }
            let next = tokio::time::timeout(NEXT_MESSAGE_TIMEOUT, self.messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(ReadError::new(&self.stream, error)),
                Ok(None) => return Err(ReadError::new(&self.stream, "the consumer ended")),
                Err(_) => {
                    let start_sequence = self.last + 1;
                    let from = DeliverPolicy::ByStartSequence { start_sequence };
                    let last = self.last;
                    *self = self
                        .bus
                        .clone()
                        .read(&self.stream, self.filter.clone(), from)
                        .await?;
                    self.last = last;
                    continue;
                }
            };
            let info = message
                .info()
                .map_err(|e| ReadError::new(&self.stream, e))?;
            self.last = info.stream_sequence;
            self.left = info.pending;
            return Ok(Some(message));
        }
        Err(ReadError::new(&self.stream, "no message came in time"))
    }
}
