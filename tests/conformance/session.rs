//! What a scenario can do and see, on either back end.

use std::time::Duration;

use crate::broker::{
    ConsumerConfig, Demands, Millis, Refusal, Retention, Start, Stored, StreamConfig,
};
use crate::model::Model;
use crate::real::Real;

/// A released pull lives in one like this.
pub const TASKS: &str = "TASKS";
/// Requests of users.
pub const JOBS: &str = "JOBS";
/// Facts, with a short memory for ids.
pub const EVENTS: &str = "EVENTS";
/// A bucket; its keys are subjects.
pub const BUCKET: &str = "BUCKET";

/// How long ids are remembered in [`EVENTS`].
pub const SHORT_WINDOW: Millis = 4_000;
/// How long they are elsewhere.
const LONG_WINDOW: Millis = 120_000;

/// The streams every scenario has.
pub const STREAMS: [StreamConfig; 4] = [
    stream(TASKS, Retention::Limits, Some(1), LONG_WINDOW),
    stream(JOBS, Retention::WorkQueue, None, LONG_WINDOW),
    stream(EVENTS, Retention::Limits, None, SHORT_WINDOW),
    stream(BUCKET, Retention::Limits, Some(1), LONG_WINDOW),
];

const fn stream(
    name: &'static str,
    retention: Retention,
    per_subject: Option<usize>,
    duplicate_window: Millis,
) -> StreamConfig {
    StreamConfig {
        name,
        retention,
        per_subject,
        duplicate_window,
    }
}

/// The content of a message; a deleted key's is no value but the marker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Text(String),
    Marker,
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A message as a stream keeps it: sequence, subject, content.
pub type Kept = (u64, String, Body);

/// Names a request for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pull(pub u64);

/// What a request for messages brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    Message(Message),
    /// Its time is over; so many messages did not come.
    Expired(u32),
    ConsumerDeleted,
    NoConsumer,
}

/// A delivered message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub sequence: u64,
    pub subject: String,
    pub deliveries: u32,
    pub receipt: Receipt,
}

/// What an answer needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    pub stream: &'static str,
    pub consumer: String,
    pub sequence: u64,
    /// The server's reply subject; the model has none.
    pub reply: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Ack,
    Nak(Option<Millis>),
    InProgress,
}

/// Where a scenario runs.
pub enum BackEnd {
    Model(Model),
    Real(Box<Real>),
}

/// One scenario's run.
pub struct Session {
    back_end: BackEnd,
}

/// Asks the back end, whichever it is. The model answers at once.
macro_rules! ask {
    ($session:ident . $method:ident ( $($argument:expr),* )) => {
        match &mut $session.back_end {
            BackEnd::Model(model) => model.$method($($argument),*),
            BackEnd::Real(real) => real.$method($($argument),*).await,
        }
    };
}

impl Session {
    pub const fn new(back_end: BackEnd) -> Self {
        Self { back_end }
    }

    /// The time since the session began.
    pub fn now(&self) -> Millis {
        match &self.back_end {
            BackEnd::Model(model) => model.now(),
            BackEnd::Real(real) => real.now(),
        }
    }

    pub async fn publish_with(
        &mut self,
        stream: &'static str,
        subject: &str,
        body: Body,
        demands: Demands,
    ) -> Result<Stored, Refusal> {
        ask!(self.publish(stream, subject, body, demands))
    }

    /// Publishes and returns the sequence.
    pub async fn publish(&mut self, stream: &'static str, subject: &str) -> u64 {
        let sent = self.publish_with(stream, subject, subject.into(), Demands::default());
        let stored = sent.await.unwrap();
        assert!(!stored.duplicate, "{subject} has no id");
        stored.sequence
    }

    /// Publishes with an id; says the sequence and whether the id was known.
    pub async fn publish_id(
        &mut self,
        stream: &'static str,
        subject: &str,
        id: &str,
    ) -> (u64, bool) {
        let demands = Demands {
            message_id: Some(id.to_owned()),
            last_subject_sequence: None,
        };
        let sent = self.publish_with(stream, subject, subject.into(), demands);
        let stored = sent.await.unwrap();
        (stored.sequence, stored.duplicate)
    }

    /// Publishes if the subject's last sequence is this; returns the new one.
    pub async fn publish_after(
        &mut self,
        stream: &'static str,
        subject: &str,
        last: u64,
    ) -> Result<u64, Refusal> {
        self.put_after(stream, subject, subject.into(), last).await
    }

    /// [`Session::publish_after`] with a content.
    pub async fn put_after(
        &mut self,
        stream: &'static str,
        subject: &str,
        body: Body,
        last: u64,
    ) -> Result<u64, Refusal> {
        let demands = Demands {
            message_id: None,
            last_subject_sequence: Some(last),
        };
        let sent = self.publish_with(stream, subject, body, demands).await;
        sent.map(|stored| stored.sequence)
    }

    /// Removes what is under the filter, if given only what was stored before a sequence.
    pub async fn purge(
        &mut self,
        stream: &'static str,
        filter: &str,
        before: Option<u64>,
    ) -> usize {
        ask!(self.purge(stream, filter, before))
    }

    /// Removes one message by its sequence; whether it was there.
    pub async fn remove(&mut self, stream: &'static str, sequence: u64) -> bool {
        ask!(self.remove(stream, sequence))
    }

    /// Everything a stream holds, in order.
    pub async fn kept(&mut self, stream: &'static str) -> Vec<Kept> {
        self.kept_from(stream, 1).await
    }

    /// What a stream holds from a sequence on.
    pub async fn kept_from(&mut self, stream: &'static str, from: u64) -> Vec<Kept> {
        ask!(self.kept(stream, from))
    }

    /// The sequences of what a stream holds.
    pub async fn sequences(&mut self, stream: &'static str) -> Vec<u64> {
        let kept = self.kept(stream).await;
        kept.into_iter().map(|(sequence, ..)| sequence).collect()
    }

    /// The newest message of each subject, in order of sequence.
    pub async fn newest(&mut self, stream: &'static str) -> Vec<Kept> {
        ask!(self.newest(stream))
    }

    /// The newest message of one subject.
    pub async fn last(&mut self, stream: &'static str, subject: &str) -> Option<(u64, Body)> {
        ask!(self.last(stream, subject))
    }

    /// The sequence of the newest message that ever was.
    pub async fn last_sequence(&mut self, stream: &'static str) -> u64 {
        ask!(self.last_sequence(stream))
    }

    pub async fn consume_with(&mut self, stream: &'static str, name: &str, config: ConsumerConfig) {
        ask!(self.create_consumer(stream, name, config));
    }

    /// Makes a consumer as a node's: from a sequence on, in memory.
    pub async fn consume(&mut self, name: &str, filter: &str, start: u64, ack_wait: Millis) {
        let config = ConsumerConfig {
            filters: vec![filter.to_owned()],
            ack_wait,
            start: Start::At(start),
            max_ack_pending: None,
            memory: true,
        };
        self.consume_with(TASKS, name, config).await;
    }

    /// Makes the consumer of requests: one at a time, on disk.
    pub async fn consume_requests(&mut self, filters: &[&str], ack_wait: Millis) {
        let config = ConsumerConfig {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ack_wait,
            start: Start::All,
            max_ack_pending: Some(1),
            memory: false,
        };
        self.consume_with(JOBS, "dispatcher", config).await;
    }

    pub async fn delete_consumer(&mut self, stream: &'static str, name: &str) {
        ask!(self.delete_consumer(stream, name));
    }

    pub async fn has_consumer(&mut self, stream: &'static str, name: &str) -> bool {
        ask!(self.has_consumer(stream, name))
    }

    /// Asks for messages; the request is at the broker then.
    pub async fn pull(
        &mut self,
        stream: &'static str,
        consumer: &str,
        batch: u32,
        expires: Millis,
    ) -> Pull {
        ask!(self.pull(stream, consumer, batch, expires))
    }

    /// Waits for what a request brings next.
    pub async fn next(&mut self, pull: Pull) -> Seen {
        ask!(self.next(pull))
    }

    /// Nobody listens to a request any more.
    pub async fn drop_pull(&mut self, pull: Pull) {
        ask!(self.drop_pull(pull));
    }

    pub async fn answer(&mut self, receipt: &Receipt, answer: Answer) {
        ask!(self.answer(receipt, answer));
    }

    pub async fn ack(&mut self, message: &Message) {
        self.answer(&message.receipt, Answer::Ack).await;
    }

    pub async fn nak(&mut self, message: &Message, delay: Option<Millis>) {
        self.answer(&message.receipt, Answer::Nak(delay)).await;
    }

    pub async fn in_progress(&mut self, message: &Message) {
        self.answer(&message.receipt, Answer::InProgress).await;
    }

    /// The server stops and starts again.
    pub async fn restart(&mut self) {
        ask!(self.restart());
    }

    /// Takes the next message: one request for one.
    pub async fn take(&mut self, stream: &'static str, consumer: &str) -> Message {
        let pull = self
            .pull(stream, consumer, 1, LONG.as_millis() as Millis)
            .await;
        self.message(pull).await
    }

    /// The next thing a request brings has to be a message.
    pub async fn message(&mut self, pull: Pull) -> Message {
        match self.next(pull).await {
            Seen::Message(message) => message,
            other => panic!("no message but {other:?}"),
        }
    }

    /// The sequences of all that is delivered until nothing comes any more.
    pub async fn drain(&mut self, stream: &'static str, consumer: &str) -> Vec<Message> {
        let pull = self.pull(stream, consumer, 100, QUIET).await;
        let mut messages = Vec::new();
        loop {
            match self.next(pull).await {
                Seen::Message(message) => messages.push(message),
                Seen::Expired(_) => return messages,
                other => panic!("neither message nor end but {other:?}"),
            }
        }
    }

    /// Nothing is delivered for a moment.
    pub async fn is_quiet(&mut self, stream: &'static str, consumer: &str) {
        assert_eq!(self.drain(stream, consumer).await, [], "it is delivered");
    }

    /// So much time goes by: a request that nothing answers ends.
    pub async fn pass(&mut self, time: Millis) {
        self.consume("nobody", "nothing", 1, LONG.as_millis() as Millis)
            .await;
        let pull = self.pull(TASKS, "nobody", 1, time).await;
        assert_eq!(self.next(pull).await, Seen::Expired(1));
    }
}

/// A request or an ack wait that ends only if something is wrong.
pub const LONG: Duration = Duration::from_secs(60);
/// How long nothing has to come before nothing will. Servers redeliver within a few milliseconds.
const QUIET: Millis = 300;
