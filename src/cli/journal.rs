//! Reading what the broker keeps, in order: events, and the records in its buckets.
//!
//! Both are streams, read with ordered consumers: they need no acks, hold a bounded number of messages
//! in flight, and come back by themselves after a reconnection.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::StreamExt as _;
use serde::de::DeserializeOwned;

use super::exit::Failure;
use crate::bus::Bus;
use crate::domain::time::Timestamp;

/// Longest wait for a message that is known to be there.
const STORED_LIMIT: Duration = Duration::from_secs(5);

/// Where reading begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// The oldest message that is kept.
    Oldest,
    /// The first message after this sequence.
    After(u64),
    /// The first message stored at this time or later.
    Time(Timestamp),
    /// The last message of every subject, then what follows.
    Last,
}

/// One message as read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// How many messages that are there already follow.
    pub pending: u64,
    /// Its subject.
    pub subject: String,
    /// Whether it says that its key was deleted (a bucket's message only).
    pub deleted: bool,
    /// Its body.
    pub payload: Bytes,
}

/// Messages in the order they were stored.
pub struct Journal {
    messages: Ordered,
    floor: u64,
    since: Option<Timestamp>,
    /// Whether nothing that was stored before we began is left to read.
    caught_up: bool,
}

/// The stream called `name`.
///
/// # Errors
/// The broker does not answer, or has no such stream.
pub async fn stream(bus: &Bus, name: &str) -> Result<Stream, Failure> {
    bus.jetstream.get_stream(name).await.map_err(|error| {
        if let GetStreamErrorKind::JetStream(error) = error.kind()
            && error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND
        {
            return not_set_up();
        }
        unanswered(&format!("a look at the stream {name}"), &error)
    })
}

/// Nothing of ours is on this broker.
#[must_use]
pub fn not_set_up() -> Failure {
    Failure::unreachable("no dispatcher has set this broker up")
        .advise("start one with `prewarm dispatcher` or `prewarm up`")
}

/// The broker did not do what was asked, or said nothing.
#[must_use]
pub fn unanswered(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::unreachable(format!("the broker did not answer {what}: {error}")).advise(
        "check that JetStream is on and that this user may use it: `prewarm check` looks at both",
    )
}

impl Journal {
    /// Reads `stream` from a place on, only `subjects` if there are any.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn open(stream: &Stream, subjects: Vec<String>, from: From) -> Result<Self, Failure> {
        let (deliver_policy, floor, since) = match from {
            From::Oldest => (DeliverPolicy::All, 0, None),
            From::Last => (DeliverPolicy::LastPerSubject, 0, None),
            From::After(sequence) => {
                let start_sequence = sequence + 1;
                (
                    DeliverPolicy::ByStartSequence { start_sequence },
                    start_sequence,
                    None,
                )
            }
            From::Time(time) => {
                let nanos = i128::from(time.as_millis()) * 1_000_000;
                let policy = match async_nats::datetime::from_nanos(nanos) {
                    Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                    Err(_) => DeliverPolicy::All,
                };
                (policy, 0, Some(time))
            }
        };
        let config = OrderedConfig {
            deliver_policy,
            filter_subjects: subjects,
            replay_policy: ReplayPolicy::Instant,
            ..OrderedConfig::default()
        };
        let failed =
            |error: &dyn std::fmt::Display| unanswered("a request to read its messages", error);
        let consumer = stream
            .create_consumer(config)
            .await
            .map_err(|error| failed(&error))?;
        let caught_up = consumer.cached_info().num_pending == 0;
        let messages = consumer.messages().await.map_err(|error| failed(&error))?;
        Ok(Self {
            messages,
            floor,
            since,
            caught_up,
        })
    }

    /// The next message that is there already; `None` after the last one.
    ///
    /// # Errors
    /// The broker refuses to be read.
    pub async fn next_stored(&mut self) -> Result<Option<Entry>, Failure> {
        if self.caught_up {
            return Ok(None);
        }
        match tokio::time::timeout(STORED_LIMIT, self.next()).await {
            Ok(entry) => entry.map(Some),
            Err(_) => Err(
                Failure::unreachable("the broker stopped sending what it keeps")
                    .advise("try again: what was being read may just have been deleted"),
            ),
        }
    }

    /// The next message, whenever it comes.
    ///
    /// # Errors
    /// The broker refuses to be read.
    pub async fn next(&mut self) -> Result<Entry, Failure> {
        loop {
            let message = match self.messages.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(unanswered("while its messages were read", &error)),
                None => {
                    return Err(Failure::unreachable(
                        "the connection with the broker was closed",
                    ));
                }
            };
            let info = message
                .info()
                .map_err(|error| unanswered("with a message that can be read", &error))?;
            if info.pending == 0 {
                self.caught_up = true;
            }
            let millis = info.published.unix_timestamp_nanos() / 1_000_000;
            let too_early = self
                .since
                .is_some_and(|since| millis < i128::from(since.as_millis()));
            // A consumer that is made anew before its first message begins at the stream's first.
            if info.stream_sequence < self.floor || too_early {
                continue;
            }
            let deleted = message.headers.as_ref().is_some_and(|headers| {
                headers
                    .get("KV-Operation")
                    .is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
            });
            return Ok(Entry {
                sequence: info.stream_sequence,
                pending: info.pending,
                subject: message.subject.to_string(),
                deleted,
                payload: message.payload.clone(),
            });
        }
    }
}

/// One change of a bucket: the key, and its record unless it was deleted.
#[derive(Clone, Debug)]
pub struct Change<T> {
    /// The key.
    pub key: String,
    /// The record; `None`: deleted.
    pub record: Option<T>,
}

/// A bucket's records and how they change.
pub struct Bucket {
    journal: Journal,
    name: String,
}

impl Bucket {
    /// Reads the bucket called `name`, all of it or one key.
    ///
    /// # Errors
    /// The broker does not answer or has no such bucket.
    pub async fn open(bus: &Bus, name: &str, key: Option<&str>) -> Result<Self, Failure> {
        // ADR-8 of NATS: a bucket is a stream called KV_<bucket> with subjects $KV.<bucket>.<key>.
        let stream = stream(bus, &format!("KV_{name}")).await?;
        let subject = format!("$KV.{name}.{}", key.unwrap_or(">"));
        let journal = Journal::open(&stream, vec![subject], From::Last).await?;
        Ok(Self {
            journal,
            name: name.to_owned(),
        })
    }

    /// The next record that is there already; `None` after the last one. Deletions are passed over.
    ///
    /// # Errors
    /// The broker refuses to be read, or a record is not ours.
    pub async fn next_stored<T: DeserializeOwned>(&mut self) -> Result<Option<Change<T>>, Failure> {
        match self.journal.next_stored().await? {
            Some(entry) => self.read(&entry).map(Some),
            None => Ok(None),
        }
    }

    /// The next change, whenever it comes.
    ///
    /// # Errors
    /// As [`Bucket::next_stored`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Change<T>, Failure> {
        let entry = self.journal.next().await?;
        self.read(&entry)
    }

    fn read<T: DeserializeOwned>(&self, entry: &Entry) -> Result<Change<T>, Failure> {
        let key = entry.subject.strip_prefix(&format!("$KV.{}.", self.name));
        let key = key.unwrap_or(&entry.subject).to_owned();
        if entry.deleted {
            return Ok(Change { key, record: None });
        }
        match serde_json::from_slice(&entry.payload) {
            Ok(record) => Ok(Change {
                key,
                record: Some(record),
            }),
            Err(error) => Err(Failure::unreachable(format!(
                "the record {key} of the bucket {} cannot be read: {error}",
                self.name
            ))
            .advise("another version of prewarm wrote it: use that version, or the newest")),
        }
    }
}

/// All records of a bucket, sorted by key, or just the one under `key`.
///
/// # Errors
/// As [`Bucket::open`] and [`Bucket::next_stored`].
pub async fn records<T: DeserializeOwned>(
    bus: &Bus,
    bucket: &str,
    key: Option<&str>,
) -> Result<Vec<T>, Failure> {
    let mut bucket = Bucket::open(bus, bucket, key).await?;
    let mut records = std::collections::BTreeMap::new();
    while let Some(change) = bucket.next_stored().await? {
        match change.record {
            Some(record) => records.insert(change.key, record),
            None => records.remove(&change.key),
        };
    }
    Ok(records.into_values().collect())
}
