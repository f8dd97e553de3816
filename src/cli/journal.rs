//! Reading what the broker keeps, in order: events, and the records in its buckets.
//!
//! Both are streams, read with ordered consumers: they need no acks, hold a bounded number of messages
//! in flight, and come back by themselves after a reconnection.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::exit::Failure;
use crate::bus::Bus;
use crate::domain::time::Timestamp;

/// Longest wait for a message that is known to be there.
const STORED_LIMIT: Duration = Duration::from_secs(10);
/// Wait for one after which the broker is asked again what there is.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Pause before reading anew from a broker that was lost.
const READ_AGAIN: Duration = Duration::from_millis(500);
/// Most messages read before they are asked for.
const MAX_READ_AHEAD: usize = 256;

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
    /// Its subject.
    pub subject: String,
    /// Whether it says that its key was deleted (a bucket's message only).
    pub deleted: bool,
    /// Its body.
    pub payload: Bytes,
}

/// Messages in the order they were stored, read by a task of its own: waiting for the next one may be
/// given up at any time.
pub struct Journal {
    read: mpsc::Receiver<Result<Read, Failure>>,
    /// Whether nothing that was stored before we began is left to read.
    caught_up: bool,
    reader: AbortHandle,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

enum Read {
    Entry(Entry),
    /// Everything that was stored when reading began has been sent.
    CaughtUp,
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

/// Listens to what the broker does not keep.
///
/// # Errors
/// The connection is closed.
pub async fn subscribe(bus: &Bus, subject: String) -> Result<async_nats::Subscriber, Failure> {
    let subscribed = bus.client.subscribe(subject).await;
    subscribed.map_err(|error| unanswered("a subscription", &error))
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
        // Of a bucket every key counts, also one that is written again and so comes later.
        let end = match from {
            From::Last => u64::MAX,
            From::Oldest | From::After(_) | From::Time(_) => {
                stream.cached_info().state.last_sequence
            }
        };
        let mut reader = Reader {
            stream: stream.clone(),
            subjects,
            from,
            end,
            awaited: HashSet::new(),
        };
        if from == From::Last {
            reader.awaited = reader.keys().await?;
        }
        let (messages, pending) = reader.consume().await?;
        let pending = pending.max(reader.awaited.len() as u64);
        let (sender, read) = mpsc::channel(MAX_READ_AHEAD);
        let task = tokio::spawn(async move { reader.run(messages, pending, &sender).await });
        Ok(Self {
            read,
            caught_up: pending == 0,
            reader: task.abort_handle(),
        })
    }

    /// The next message that is there already; `None` after the last one.
    ///
    /// # Errors
    /// The broker refuses to be read, or does not send what it has.
    pub async fn next_stored(&mut self) -> Result<Option<Entry>, Failure> {
        if self.caught_up {
            return Ok(None);
        }
        match tokio::time::timeout(STORED_LIMIT, self.receive()).await {
            Ok(Ok(Read::Entry(entry))) => Ok(Some(entry)),
            Ok(Ok(Read::CaughtUp)) => {
                self.caught_up = true;
                Ok(None)
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(
                Failure::unreachable("the broker stopped sending what it keeps")
                    .advise("try again: what was being read may just have been deleted"),
            ),
        }
    }

    /// The next message, whenever it comes; a broker that is lost is waited for.
    ///
    /// # Errors
    /// The broker refuses to be read.
    pub async fn next(&mut self) -> Result<Entry, Failure> {
        loop {
            match self.receive().await? {
                Read::Entry(entry) => return Ok(entry),
                Read::CaughtUp => self.caught_up = true,
            }
        }
    }

    async fn receive(&mut self) -> Result<Read, Failure> {
        let closed = || Failure::unreachable("the connection with the broker was closed");
        self.read.recv().await.ok_or_else(closed)?
    }
}

type Sender = mpsc::Sender<Result<Read, Failure>>;

struct Reader {
    stream: Stream,
    subjects: Vec<String>,
    /// Where reading goes on.
    from: From,
    /// The last message that counts as stored before: more may come faster than they are read.
    end: u64,
    /// Of a bucket: the keys that were there at the beginning and have not been read. The broker's count of
    /// what is pending is no measure of that: it may pass 0 while a key that is written again is still to come.
    awaited: HashSet<String>,
}

impl Reader {
    /// A consumer from where reading goes on, and how many messages wait for it.
    async fn consume(&self) -> Result<(Ordered, u64), Failure> {
        let deliver_policy = match self.from {
            From::Oldest => DeliverPolicy::All,
            From::Last => DeliverPolicy::LastPerSubject,
            From::After(sequence) => DeliverPolicy::ByStartSequence {
                start_sequence: sequence + 1,
            },
            From::Time(time) => {
                let nanos = i128::from(time.as_millis()) * 1_000_000;
                match async_nats::datetime::from_nanos(nanos) {
                    Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                    Err(_) => DeliverPolicy::All,
                }
            }
        };
        let config = OrderedConfig {
            deliver_policy,
            filter_subjects: self.subjects.clone(),
            replay_policy: ReplayPolicy::Instant,
            ..OrderedConfig::default()
        };
        let failed =
            |error: &dyn std::fmt::Display| unanswered("a request to read its messages", error);
        let consumer = self
            .stream
            .create_consumer(config)
            .await
            .map_err(|error| failed(&error))?;
        let pending = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| failed(&error))?;
        Ok((messages, pending))
    }

    /// The subjects that hold a message now.
    async fn keys(&self) -> Result<HashSet<String>, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| unanswered("a request to list its keys", error);
        let mut keys = HashSet::new();
        for subject in &self.subjects {
            let listed = self.stream.info_with_subjects(subject).await;
            let listed = listed.map_err(|error| failed(&error))?;
            let listed: Vec<(String, usize)> =
                listed.try_collect().await.map_err(|error| failed(&error))?;
            keys.extend(listed.into_iter().map(|(key, _)| key));
        }
        Ok(keys)
    }

    /// How many messages that count as stored are to come, where the broker counts `pending`.
    async fn left(&mut self, pending: u64) -> Result<u64, Failure> {
        if pending == 0 && !self.awaited.is_empty() {
            // What was removed meanwhile never comes.
            let keys = self.keys().await?;
            self.awaited.retain(|key| keys.contains(key));
        }
        Ok(pending.max(self.awaited.len() as u64))
    }

    /// Sends what it reads until nobody listens; `pending` messages were there at the beginning.
    async fn run(&mut self, mut messages: Ordered, mut pending: u64, sender: &Sender) {
        loop {
            let next = match pending {
                0 => Ok(messages.next().await),
                _ => tokio::time::timeout(ASK_AGAIN, messages.next()).await,
            };
            let Ok(Some(Ok(message))) = next else {
                // A broker that restarted has forgotten the consumer, and the client gives up on it; and
                // what was deleted or replaced while it was read never comes.
                let was_pending = pending;
                (messages, pending) = self.again().await;
                if pending == 0 {
                    self.awaited.clear();
                }
                if was_pending > 0 && pending == 0 && sender.send(Ok(Read::CaughtUp)).await.is_err()
                {
                    return;
                }
                continue;
            };
            let read = match self.entry(&message) {
                Ok((entry, pending)) => self.left(pending).await.map(|left| (entry, left)),
                Err(failure) => Err(failure),
            };
            match read {
                Ok((entry, left)) => {
                    let caught_up = (pending > 0 && left == 0).then_some(Read::CaughtUp);
                    pending = left;
                    for read in entry.map(Read::Entry).into_iter().chain(caught_up) {
                        if sender.send(Ok(read)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(failure) => {
                    // Nobody who no longer listens misses it.
                    let _ = sender.send(Err(failure)).await;
                    return;
                }
            }
        }
    }

    /// Reads on from where it was, as soon as the broker lets us.
    async fn again(&self) -> (Ordered, u64) {
        loop {
            match self.consume().await {
                Ok(begun) => return begun,
                Err(failure) => {
                    tracing::debug!(%failure, "cannot read on yet");
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        }
    }

    /// What a message says, unless it was read before or is too old, and how many stored ones follow.
    fn entry(&mut self, message: &Message) -> Result<(Option<Entry>, u64), Failure> {
        let info = message
            .info()
            .map_err(|error| unanswered("with a message that can be read", &error))?;
        let millis = info.published.unix_timestamp_nanos() / 1_000_000;
        // The client's consumer, made anew before its first message, begins at the stream's first.
        let unwanted = match self.from {
            From::After(sequence) => info.stream_sequence <= sequence,
            From::Time(since) => millis < i128::from(since.as_millis()),
            From::Oldest | From::Last => false,
        };
        let left = if info.stream_sequence >= self.end {
            0
        } else {
            info.pending
        };
        if unwanted {
            return Ok((None, left));
        }
        self.from = From::After(info.stream_sequence);
        self.awaited.remove(message.subject.as_str());
        let deleted = message.headers.as_ref().is_some_and(|headers| {
            headers
                .get("KV-Operation")
                .is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
        });
        let entry = Entry {
            sequence: info.stream_sequence,
            subject: message.subject.to_string(),
            deleted,
            payload: message.payload.clone(),
        };
        Ok((Some(entry), left))
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
