//! Reading what a stream or bucket holds, from the first message to the last.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use futures::StreamExt as _;
use tokio::time::Instant;

use super::Bus;

/// Longest wait for the next message while more are known to come.
const NEXT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which it is looked whether what was to come is still there.
const SILENCE: Duration = Duration::from_millis(500);

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
    name: String,
    stream: Stream<()>,
    filter: String,
    /// The sequence before the first message that may come next.
    seen: u64,
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
        let seen = match from {
            DeliverPolicy::ByStartSequence { start_sequence } => start_sequence.saturating_sub(1),
            _ => 0,
        };
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
            name: stream.to_owned(),
            stream: handle,
            filter,
            seen,
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
        if self.left == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + NEXT_MESSAGE_TIMEOUT;
        let message = loop {
            match tokio::time::timeout(SILENCE, self.messages.next()).await {
                Ok(Some(Ok(message))) => break message,
                Ok(Some(Err(error))) => return Err(ReadError::new(&self.name, error)),
                Ok(None) => return Err(ReadError::new(&self.name, "the consumer ended")),
                Err(_) if is_empty(&self.stream, &self.filter, self.seen + 1).await => {
                    self.left = 0;
                    return Ok(None);
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(ReadError::new(&self.name, "no message came in time"));
                }
                Err(_) => {}
            }
        };
        // Not a mere count: messages may be purged while they are read.
        (self.left, self.seen) = match message.info() {
            Ok(info) => (info.pending, info.stream_sequence),
            Err(error) => return Err(ReadError::new(&self.name, error)),
        };
        Ok(Some(message))
    }
}

/// Whether a stream holds nothing under the filter from this sequence on. What was to come and has been purged is
/// announced by no message.
async fn is_empty(stream: &Stream<()>, filter: &str, from: u64) -> bool {
    let next = stream.get_first_raw_message_by_subject(filter, from).await;
    next.is_err_and(|error| error.kind() == RawMessageErrorKind::NoMessageFound)
}
