//! A model of JetStream, as far as prewarm relies on it: synchronous, in virtual time.
//!
//! What it claims is held against real servers in `tests/conformance`. What is not modelled here,
//! prewarm must not rely on: it is not random (faults are injected by whoever calls it), has one
//! server, and keeps no bytes of its own (a payload is whatever the caller says).

mod consumer;
mod subject;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

#[allow(unused_imports, reason = "two test crates use this")]
pub use consumer::{ConsumerConfig, Delivery, End, Sent, Start};
pub use subject::matches;

use consumer::Consumer;

/// Virtual time in milliseconds.
pub type Millis = u64;

/// What becomes of messages that were acked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// They stay.
    Limits,
    /// They go.
    WorkQueue,
}

/// A stream as it is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamConfig {
    pub name: &'static str,
    pub retention: Retention,
    /// Most messages of one subject; the oldest gives way.
    pub per_subject: Option<usize>,
    /// How long a message's id is remembered.
    pub duplicate_window: Millis,
}

/// What a publisher demands: one of these at most. Which of two is looked at first is one thing to 2.10 and another to
/// 2.15, so that nothing may rest on it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Demands {
    /// `Nats-Msg-Id`.
    pub message_id: Option<String>,
    /// `Nats-Expected-Last-Subject-Sequence`.
    pub last_subject_sequence: Option<u64>,
}

/// The broker's word that it keeps a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    pub sequence: u64,
    /// The id was known: this is the sequence of the first one, and nothing was stored.
    pub duplicate: bool,
}

/// Why the broker refuses. The numbers are JetStream's error codes (`server/errors.json`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// 10014.
    NoConsumer,
    /// 10071: the subject's last sequence is another one.
    WrongLastSequence,
}

/// A message as the stream keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message<P> {
    pub subject: Arc<str>,
    pub payload: P,
}

struct Stream<P> {
    config: StreamConfig,
    messages: BTreeMap<u64, Message<P>>,
    by_subject: BTreeMap<Arc<str>, BTreeSet<u64>>,
    last: u64,
    /// The ids remembered, by the time they are forgotten at.
    ids: VecDeque<(Millis, String)>,
    sequences: BTreeMap<String, u64>,
    consumers: BTreeMap<String, Consumer>,
}

/// All streams of a server. A bucket is a stream with one message for each subject (NATS ADR-8).
pub struct Broker<P> {
    streams: BTreeMap<&'static str, Stream<P>>,
}

impl<P: Clone> Broker<P> {
    pub fn new(streams: impl IntoIterator<Item = StreamConfig>) -> Self {
        let stream = |config: StreamConfig| {
            let stream = Stream {
                messages: BTreeMap::new(),
                by_subject: BTreeMap::new(),
                last: 0,
                ids: VecDeque::new(),
                sequences: BTreeMap::new(),
                consumers: BTreeMap::new(),
                config,
            };
            (stream.config.name, stream)
        };
        Self {
            streams: streams.into_iter().map(stream).collect(),
        }
    }

    fn stream(&self, name: &str) -> &Stream<P> {
        self.streams.get(name).expect("a stream of the model")
    }

    fn stream_mut(&mut self, name: &str) -> &mut Stream<P> {
        self.streams.get_mut(name).expect("a stream of the model")
    }

    /// Stores a message, if what is demanded holds.
    pub fn publish(
        &mut self,
        now: Millis,
        stream: &str,
        subject: &str,
        payload: P,
        demands: &Demands,
    ) -> Result<Stored, Refusal> {
        self.stream_mut(stream)
            .publish(now, subject, payload, demands)
    }

    /// Removes the messages under this filter, if given only those before a sequence; how many.
    pub fn purge(&mut self, stream: &str, filter: &str, before: Option<u64>) -> usize {
        self.stream_mut(stream).purge(filter, before)
    }

    /// Removes one message by its sequence; whether it was there.
    pub fn remove(&mut self, stream: &str, sequence: u64) -> bool {
        let stream = self.stream_mut(stream);
        let was_there = stream.messages.contains_key(&sequence);
        stream.remove(sequence);
        was_there
    }

    /// The sequence of the newest message ever stored.
    pub fn last_sequence(&self, stream: &str) -> u64 {
        self.stream(stream).last
    }

    /// The newest message of a subject.
    pub fn last_by_subject(&self, stream: &str, subject: &str) -> Option<(u64, &Message<P>)> {
        let stream = self.stream(stream);
        let sequence = *stream.by_subject.get(subject)?.last()?;
        Some((sequence, &stream.messages[&sequence]))
    }

    /// The messages from a sequence on, in order.
    pub fn messages(&self, stream: &str, from: u64) -> impl Iterator<Item = (u64, &Message<P>)> {
        let messages = self.stream(stream).messages.range(from..);
        messages.map(|(sequence, message)| (*sequence, message))
    }

    /// The newest message of each subject, in order of sequence.
    pub fn last_per_subject(&self, stream: &str) -> Vec<(u64, &Message<P>)> {
        let stream = self.stream(stream);
        let newest = stream.by_subject.values().filter_map(BTreeSet::last);
        let newest: BTreeSet<u64> = newest.copied().collect();
        let message = |sequence| (sequence, &stream.messages[&sequence]);
        newest.into_iter().map(message).collect()
    }

    /// Makes a consumer; nothing happens if there is one of that name.
    pub fn create_consumer(&mut self, stream: &str, name: &str, config: ConsumerConfig) {
        let stream = self.stream_mut(stream);
        if !stream.consumers.contains_key(name) {
            let consumer = Consumer::new(config);
            stream.consumers.insert(name.to_owned(), consumer);
        }
    }

    /// Deletes a consumer; whoever waits at it is told.
    pub fn delete_consumer(&mut self, stream: &str, name: &str) -> Vec<Sent<P>> {
        let Some(consumer) = self.stream_mut(stream).consumers.remove(name) else {
            return Vec::new();
        };
        consumer.end_all()
    }

    pub fn has_consumer(&self, stream: &str, name: &str) -> bool {
        self.stream(stream).consumers.contains_key(name)
    }

    /// Asks for messages. `request` names whoever asks.
    pub fn pull(
        &mut self,
        now: Millis,
        stream: &str,
        consumer: &str,
        request: u64,
        batch: u32,
        expires: Millis,
    ) -> Result<(), Refusal> {
        let consumers = &mut self.stream_mut(stream).consumers;
        let consumer = consumers.get_mut(consumer).ok_or(Refusal::NoConsumer)?;
        consumer.pull(request, batch, now + expires);
        Ok(())
    }

    /// Nobody listens to a request any more.
    pub fn drop_pull(&mut self, stream: &str, consumer: &str, request: u64) {
        if let Some(consumer) = self.stream_mut(stream).consumers.get_mut(consumer) {
            consumer.drop_pull(request);
        }
    }

    /// Everything a consumer has to send now.
    pub fn send(&mut self, now: Millis, stream: &str, consumer: &str) -> Vec<Sent<P>> {
        let Stream {
            messages,
            consumers,
            ..
        } = self.stream_mut(stream);
        match consumers.get_mut(consumer) {
            Some(consumer) => consumer.send(now, messages),
            None => Vec::new(),
        }
    }

    /// When a consumer may have something to send without anybody doing anything.
    pub fn next_deadline(&self, stream: &str, consumer: &str) -> Option<Millis> {
        self.stream(stream).consumers.get(consumer)?.next_deadline()
    }

    /// A message is done with. Whoever delivered it last does not matter.
    pub fn ack(&mut self, stream: &str, consumer: &str, sequence: u64) {
        let stream = self.stream_mut(stream);
        let Some(consumer) = stream.consumers.get_mut(consumer) else {
            return;
        };
        if consumer.ack(sequence) && stream.config.retention == Retention::WorkQueue {
            stream.remove(sequence);
        }
    }

    /// A message is to be delivered again, at once or after the delay.
    pub fn nak(&mut self, now: Millis, stream: &str, consumer: &str, sequence: u64, delay: Millis) {
        if let Some(consumer) = self.stream_mut(stream).consumers.get_mut(consumer) {
            consumer.nak(now, sequence, delay);
        }
    }

    /// A message is worked on: the ack wait begins anew, unless it is over.
    pub fn in_progress(&mut self, now: Millis, stream: &str, consumer: &str, sequence: u64) {
        if let Some(consumer) = self.stream_mut(stream).consumers.get_mut(consumer) {
            consumer.in_progress(now, sequence);
        }
    }

    /// The server stops and starts: messages, buckets and file consumers stay; memory consumers go,
    /// and so do all requests and the ids of messages that are gone.
    pub fn restart(&mut self) {
        for stream in self.streams.values_mut() {
            stream.consumers.retain(|_, consumer| consumer.restart());
            let (messages, sequences) = (&stream.messages, &mut stream.sequences);
            sequences.retain(|_, sequence| messages.contains_key(sequence));
            stream.ids.retain(|(_, id)| sequences.contains_key(id));
        }
    }
}

impl<P: Clone> Stream<P> {
    fn publish(
        &mut self,
        now: Millis,
        subject: &str,
        payload: P,
        demands: &Demands,
    ) -> Result<Stored, Refusal> {
        assert!(
            demands.message_id.is_none() || demands.last_subject_sequence.is_none(),
            "servers differ in what they look at first"
        );
        while self.ids.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = self.ids.pop_front() {
                self.sequences.remove(&id);
            }
        }
        let known = demands.message_id.as_ref();
        if let Some(sequence) = known.and_then(|id| self.sequences.get(id)) {
            return Ok(Stored {
                sequence: *sequence,
                duplicate: true,
            });
        }
        let last = self.by_subject.get(subject).and_then(BTreeSet::last);
        let expected = demands.last_subject_sequence;
        if expected.is_some_and(|expected| expected != last.copied().unwrap_or(0)) {
            return Err(Refusal::WrongLastSequence);
        }
        self.last += 1;
        let sequence = self.last;
        if let Some(id) = &demands.message_id {
            self.ids
                .push_back((now + self.config.duplicate_window, id.clone()));
            self.sequences.insert(id.clone(), sequence);
        }
        let subject: Arc<str> = subject.into();
        let of_subject = self.by_subject.entry(subject.clone()).or_default();
        of_subject.insert(sequence);
        let over = self
            .config
            .per_subject
            .is_some_and(|most| of_subject.len() > most);
        let oldest = over.then(|| of_subject.first().copied()).flatten();
        self.messages.insert(sequence, Message { subject, payload });
        if let Some(oldest) = oldest {
            self.remove(oldest);
        }
        Ok(Stored {
            sequence,
            duplicate: false,
        })
    }

    fn purge(&mut self, filter: &str, before: Option<u64>) -> usize {
        let before = before.unwrap_or(u64::MAX);
        let subjects = self.by_subject.iter();
        let matching = subjects.filter(|(subject, _)| matches(filter, subject));
        let sequences = matching.flat_map(|(_, sequences)| sequences.range(..before));
        let sequences: Vec<u64> = sequences.copied().collect();
        for sequence in &sequences {
            self.remove(*sequence);
        }
        sequences.len()
    }

    fn remove(&mut self, sequence: u64) {
        let Some(message) = self.messages.remove(&sequence) else {
            return;
        };
        if let Some(of_subject) = self.by_subject.get_mut(&message.subject) {
            of_subject.remove(&sequence);
            if of_subject.is_empty() {
                self.by_subject.remove(&message.subject);
            }
        }
        for consumer in self.consumers.values_mut() {
            consumer.ack(sequence);
        }
    }
}
