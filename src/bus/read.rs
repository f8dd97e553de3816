//! Reading what a stream or bucket holds, from the first message to the last.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::stream::{
    LastRawMessageError, LastRawMessageErrorKind, RawMessageErrorKind, Stream,
};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::Bus;

/// Longest wait for the next message while more are known to come.
const NEXT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker may take to make a consumer before it is asked for one more, of which the first that is made is
/// taken. In a cluster it may choose a server that has died for one, which it knows after minutes only (`orphMax` of
/// nats-server's events.go), and nobody answers then; the next may be on another. The last wait is for a broker that has
/// much to do.
const TRIES: [Duration; 5] = [
    Duration::from_millis(400),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1_600),
    Duration::from_secs(5),
];
/// How long a request for messages stays open. The broker's silence is noticed by it: the client makes its consumer anew
/// when it heard nothing for twice as long.
const REQUEST_EXPIRES: Duration = Duration::from_secs(4);
/// Silence after which it is looked whether what was to come is still there.
const SILENCE: Duration = Duration::from_millis(500);
/// Silences after which another consumer is asked for what has to come: the server of the one before may have died.
const SILENCES: u32 = 4;

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
    messages: Ordered,
    /// Messages that were there when reading began and have not been read.
    left: u64,
    /// The last message that was there by the word of the stream's leader. A consumer may be on a server that has yet to
    /// catch up with it, and then gets the rest as its server does.
    last: u64,
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
        let last = last(&handle, &filter).await.map_err(|e| failed(&e))?;
        let opened = open(&handle, filter.clone(), from).await;
        let (messages, left) = opened.map_err(|e| failed(&e))?;
        Ok(Reading {
            name: stream.to_owned(),
            stream: handle,
            filter,
            seen,
            messages,
            left,
            last,
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
    /// The next message, whenever it is stored; nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The client gave the consumer up.
    pub async fn next(&mut self) -> Result<Message, ReadError> {
        let next = self.messages.next().await;
        let message = match next {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(ReadError::new(&self.name, error)),
            None => return Err(ReadError::new(&self.name, "the consumer ended")),
        };
        if let Ok(info) = message.info() {
            (self.left, self.seen) = (info.pending, info.stream_sequence);
        }
        Ok(message)
    }

    /// From now on "stored when reading began" means what is stored now.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn to_the_end(&mut self) -> Result<(), ReadError> {
        let last = last(&self.stream, &self.filter).await;
        self.last = last.map_err(|error| ReadError::new(&self.name, error))?;
        Ok(())
    }

    /// Reads on after the last message that came, by another consumer.
    ///
    /// # Errors
    /// As [`Bus::read`].
    pub async fn again(&mut self) -> Result<(), ReadError> {
        let start_sequence = self.seen + 1;
        let from = DeliverPolicy::ByStartSequence { start_sequence };
        let opened = open(&self.stream, self.filter.clone(), from).await;
        (self.messages, self.left) = opened.map_err(|error| ReadError::new(&self.name, error))?;
        Ok(())
    }

    /// Whether a message is stored that has not come; not when the broker does not say.
    pub async fn is_behind(&mut self) -> bool {
        let next = self
            .stream
            .get_first_raw_message_by_subject(&self.filter, self.seen + 1);
        next.await.is_ok()
    }

    /// The next message that was stored when reading began; `None` after the last.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn next_stored(&mut self) -> Result<Option<Message>, ReadError> {
        if self.left == 0 && self.seen >= self.last {
            return Ok(None);
        }
        let deadline = Instant::now() + NEXT_MESSAGE_TIMEOUT;
        let mut silences = 0;
        let message = loop {
            match tokio::time::timeout(SILENCE, self.messages.next()).await {
                Ok(Some(Ok(message))) => break message,
                Ok(Some(Err(error))) => return Err(ReadError::new(&self.name, error)),
                Ok(None) => return Err(ReadError::new(&self.name, "the consumer ended")),
                Err(_) if is_empty(&self.stream, &self.filter, self.seen + 1).await => {
                    (self.left, self.last) = (0, 0);
                    return Ok(None);
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(ReadError::new(&self.name, "no message came in time"));
                }
                Err(_) => silences += 1,
            }
            if silences == SILENCES {
                silences = 0;
                self.again().await?;
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

/// The sequence of the last message under a filter, 0 if there is none, by the stream's leader.
async fn last(stream: &Stream<()>, filter: &str) -> Result<u64, LastRawMessageError> {
    match stream.get_last_raw_message_by_subject(filter).await {
        Ok(message) => Ok(message.sequence),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// The messages from there on, and how many of them are stored.
async fn open(
    stream: &Stream<()>,
    filter_subject: String,
    deliver_policy: DeliverPolicy,
) -> Result<(Ordered, u64), String> {
    let config = OrderedConfig {
        filter_subject,
        deliver_policy,
        max_expires: REQUEST_EXPIRES,
        ..Default::default()
    };
    let consumer = ordered(stream, &config).await?;
    let left = consumer.cached_info().num_pending;
    let messages = consumer.messages().await;
    Ok((messages.map_err(|error| error.to_string())?, left))
}

async fn ordered(
    stream: &Stream<()>,
    config: &OrderedConfig,
) -> Result<Consumer<OrderedConfig>, String> {
    let mut tries = FuturesUnordered::new();
    for limit in TRIES {
        tries.push(stream.create_consumer(config.clone()));
        if let Ok(Some(made)) = tokio::time::timeout(limit, tries.next()).await {
            return made.map_err(|error| error.to_string());
        }
    }
    Err("no server made a consumer".to_owned())
}

/// Whether a stream holds nothing under the filter from this sequence on. What was to come and has been purged is
/// announced by no message.
async fn is_empty(stream: &Stream<()>, filter: &str, from: u64) -> bool {
    let next = stream.get_first_raw_message_by_subject(filter, from).await;
    next.is_err_and(|error| error.kind() == RawMessageErrorKind::NoMessageFound)
}
