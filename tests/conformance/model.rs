//! The simulation's model, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::broker::{Broker, ConsumerConfig, Demands, End, Millis, Refusal, Sent, Stored};
use crate::session::{Answer, Body, Kept, Message, Pull, Receipt, STREAMS, Seen};

struct Request {
    stream: &'static str,
    consumer: String,
    brought: VecDeque<Seen>,
}

pub struct Model {
    broker: Broker<Body>,
    now: Millis,
    consumers: BTreeSet<(&'static str, String)>,
    requests: BTreeMap<u64, Request>,
}

impl Model {
    pub fn new() -> Self {
        Self {
            broker: Broker::new(STREAMS),
            now: 0,
            consumers: BTreeSet::new(),
            requests: BTreeMap::new(),
        }
    }

    pub const fn now(&self) -> Millis {
        self.now
    }

    /// Lets every consumer send what it has, as a server does by itself.
    fn serve(&mut self) {
        for (stream, consumer) in self.consumers.clone() {
            let sent = self.broker.send(self.now, stream, &consumer);
            self.bring(sent);
        }
    }

    fn bring(&mut self, sent: Vec<Sent<Body>>) {
        for sent in sent {
            let (request, is_delivery) = match &sent {
                Sent::Delivery { request, .. } => (*request, true),
                Sent::End { request, .. } => (*request, false),
            };
            let Some(open) = self.requests.get_mut(&request) else {
                assert!(!is_delivery, "delivered to a request that was dropped");
                continue;
            };
            open.brought.push_back(match sent {
                Sent::Delivery { delivery, .. } => Seen::Message(Message {
                    sequence: delivery.sequence,
                    subject: delivery.subject,
                    deliveries: delivery.deliveries,
                    receipt: Receipt {
                        stream: open.stream,
                        consumer: open.consumer.clone(),
                        sequence: delivery.sequence,
                        reply: String::new(),
                    },
                }),
                Sent::End {
                    undelivered,
                    end: End::Expired,
                    ..
                } => Seen::Expired(undelivered),
                Sent::End {
                    end: End::ConsumerDeleted,
                    ..
                } => Seen::ConsumerDeleted,
            });
        }
    }

    pub fn publish(
        &mut self,
        stream: &'static str,
        subject: &str,
        body: Body,
        demands: Demands,
    ) -> Result<Stored, Refusal> {
        let now = self.now;
        let stored = self.broker.publish(now, stream, subject, body, &demands);
        self.serve();
        stored
    }

    pub fn purge(&mut self, stream: &'static str, filter: &str, before: Option<u64>) -> usize {
        let purged = self.broker.purge(stream, filter, before);
        self.serve();
        purged
    }

    pub fn remove(&mut self, stream: &'static str, sequence: u64) -> bool {
        let removed = self.broker.remove(stream, sequence);
        self.serve();
        removed
    }

    pub fn kept(&mut self, stream: &'static str, from: u64) -> Vec<Kept> {
        let messages = self.broker.messages(stream, from);
        messages
            .map(|(sequence, message)| {
                (
                    sequence,
                    message.subject.to_string(),
                    message.payload.clone(),
                )
            })
            .collect()
    }

    pub fn newest(&mut self, stream: &'static str) -> Vec<Kept> {
        let messages = self.broker.last_per_subject(stream).into_iter();
        messages
            .map(|(sequence, message)| {
                (
                    sequence,
                    message.subject.to_string(),
                    message.payload.clone(),
                )
            })
            .collect()
    }

    pub fn last(&mut self, stream: &'static str, subject: &str) -> Option<(u64, Body)> {
        let last = self.broker.last_by_subject(stream, subject);
        last.map(|(sequence, message)| (sequence, message.payload.clone()))
    }

    pub fn last_sequence(&mut self, stream: &'static str) -> u64 {
        self.broker.last_sequence(stream)
    }

    pub fn create_consumer(&mut self, stream: &'static str, name: &str, config: ConsumerConfig) {
        self.broker.create_consumer(stream, name, config);
        self.consumers.insert((stream, name.to_owned()));
    }

    pub fn delete_consumer(&mut self, stream: &'static str, name: &str) {
        let sent = self.broker.delete_consumer(stream, name);
        self.bring(sent);
    }

    pub fn has_consumer(&mut self, stream: &'static str, name: &str) -> bool {
        self.broker.has_consumer(stream, name)
    }

    pub fn pull(
        &mut self,
        stream: &'static str,
        consumer: &str,
        batch: u32,
        expires: Millis,
    ) -> Pull {
        let id = self.requests.len() as u64;
        let mut request = Request {
            stream,
            consumer: consumer.to_owned(),
            brought: VecDeque::new(),
        };
        let asked = self
            .broker
            .pull(self.now, stream, consumer, id, batch, expires);
        if asked == Err(Refusal::NoConsumer) {
            request.brought.push_back(Seen::NoConsumer);
        }
        self.requests.insert(id, request);
        self.serve();
        Pull(id)
    }

    pub fn next(&mut self, pull: Pull) -> Seen {
        loop {
            let request = self
                .requests
                .get_mut(&pull.0)
                .expect("a request that is open");
            if let Some(seen) = request.brought.pop_front() {
                return seen;
            }
            let deadlines = self
                .consumers
                .iter()
                .filter_map(|(stream, consumer)| self.broker.next_deadline(stream, consumer));
            self.now = deadlines
                .min()
                .expect("something that will happen")
                .max(self.now);
            self.serve();
        }
    }

    pub fn drop_pull(&mut self, pull: Pull) {
        let request = self.requests.get(&pull.0).expect("a request");
        self.broker
            .drop_pull(request.stream, &request.consumer, pull.0);
        self.requests
            .get_mut(&pull.0)
            .expect("a request")
            .brought
            .clear();
    }

    pub fn answer(&mut self, receipt: &Receipt, answer: Answer) {
        let Receipt {
            stream,
            consumer,
            sequence,
            ..
        } = receipt;
        match answer {
            Answer::Ack => self.broker.ack(stream, consumer, *sequence),
            Answer::Nak(delay) => {
                let delay = delay.unwrap_or(0);
                self.broker
                    .nak(self.now, stream, consumer, *sequence, delay);
            }
            Answer::InProgress => self
                .broker
                .in_progress(self.now, stream, consumer, *sequence),
        }
        self.serve();
    }

    pub fn restart(&mut self) {
        self.broker.restart();
        self.requests.clear();
    }
}
