//! Pull consumers with explicit acks.

use std::collections::{BTreeMap, VecDeque};

use super::{Message, Millis, matches};

/// Where a consumer begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At the stream's first message.
    All,
    /// At this sequence.
    At(u64),
}

/// A consumer as it is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerConfig {
    /// Any of these.
    pub filters: Vec<String>,
    pub ack_wait: Millis,
    pub start: Start,
    /// Most messages delivered and unanswered at once.
    pub max_ack_pending: Option<usize>,
    /// Whether it goes with the server.
    pub memory: bool,
}

/// A message on its way to whoever asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery<P> {
    pub sequence: u64,
    pub subject: String,
    pub payload: P,
    /// This time included.
    pub deliveries: u32,
}

/// Why a request brings nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// 408: its time was over.
    Expired,
    /// 409 Consumer Deleted.
    ConsumerDeleted,
}

/// What the server says to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sent<P> {
    Delivery {
        request: u64,
        delivery: Delivery<P>,
    },
    End {
        request: u64,
        undelivered: u32,
        end: End,
    },
}

struct Request {
    id: u64,
    left: u32,
    expires: Millis,
}

pub(super) struct Consumer {
    config: ConsumerConfig,
    /// The first sequence not looked at yet.
    next: u64,
    /// Delivered and unanswered: when each is to be delivered again.
    pending: BTreeMap<u64, Millis>,
    /// Of those, the ones whose time has come, in the order it came.
    due: VecDeque<u64>,
    deliveries: BTreeMap<u64, u32>,
    requests: VecDeque<Request>,
}

impl Consumer {
    pub(super) fn new(config: ConsumerConfig) -> Self {
        let next = match config.start {
            Start::All => 1,
            Start::At(sequence) => sequence,
        };
        Self {
            config,
            next,
            pending: BTreeMap::new(),
            due: VecDeque::new(),
            deliveries: BTreeMap::new(),
            requests: VecDeque::new(),
        }
    }

    pub(super) fn pull(&mut self, id: u64, batch: u32, expires: Millis) {
        self.requests.push_back(Request {
            id,
            left: batch,
            expires,
        });
    }

    pub(super) fn drop_pull(&mut self, id: u64) {
        self.requests.retain(|request| request.id != id);
    }

    pub(super) fn end_all<P>(self) -> Vec<Sent<P>> {
        let end = |request: Request| Sent::End {
            request: request.id,
            undelivered: request.left,
            end: End::ConsumerDeleted,
        };
        self.requests.into_iter().map(end).collect()
    }

    /// Takes an answer; says whether the message was waited for.
    pub(super) fn ack(&mut self, sequence: u64) -> bool {
        self.deliveries.remove(&sequence);
        self.due.retain(|due| *due != sequence);
        self.pending.remove(&sequence).is_some()
    }

    /// The time has come for what was not answered, and nothing but an ack or a delayed nack takes
    /// that back.
    fn notice_due(&mut self, now: Millis) {
        let mut due: Vec<(Millis, u64)> = self
            .pending
            .iter()
            .filter(|(sequence, at)| **at <= now && !self.due.contains(sequence))
            .map(|(sequence, at)| (*at, *sequence))
            .collect();
        due.sort_unstable();
        self.due
            .extend(due.into_iter().map(|(_, sequence)| sequence));
    }

    pub(super) fn nak(&mut self, now: Millis, sequence: u64, delay: Millis) {
        self.notice_due(now);
        if let Some(at) = self.pending.get_mut(&sequence) {
            *at = now + delay;
            if delay > 0 {
                self.due.retain(|due| *due != sequence);
            }
            self.notice_due(now);
        }
    }

    pub(super) fn in_progress(&mut self, now: Millis, sequence: u64) {
        self.notice_due(now);
        if let Some(at) = self.pending.get_mut(&sequence) {
            *at = now + self.config.ack_wait;
        }
    }

    /// Says whether the consumer outlives the server.
    pub(super) fn restart(&mut self) -> bool {
        self.requests.clear();
        !self.config.memory
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        let expires = self.requests.iter().map(|request| request.expires).min();
        let waiting = self
            .pending
            .iter()
            .filter(|(sequence, _)| !self.due.contains(sequence));
        let due = waiting.map(|(_, at)| *at).min();
        let due = due.filter(|_| !self.requests.is_empty());
        expires.into_iter().chain(due).min()
    }

    pub(super) fn send<P: Clone>(
        &mut self,
        now: Millis,
        messages: &BTreeMap<u64, Message<P>>,
    ) -> Vec<Sent<P>> {
        let mut sent = Vec::new();
        self.requests.retain(|request| {
            let expired = request.expires <= now;
            if expired {
                sent.push(Sent::End {
                    request: request.id,
                    undelivered: request.left,
                    end: End::Expired,
                });
            }
            !expired
        });
        self.notice_due(now);
        while let Some(mut request) = self.requests.pop_front() {
            let Some(sequence) = self.next_message(messages) else {
                self.requests.push_front(request);
                break;
            };
            let message = &messages[&sequence];
            self.pending.insert(sequence, now + self.config.ack_wait);
            let deliveries = self.deliveries.entry(sequence).or_insert(0);
            *deliveries += 1;
            let delivery = Delivery {
                sequence,
                subject: message.subject.to_string(),
                payload: message.payload.clone(),
                deliveries: *deliveries,
            };
            sent.push(Sent::Delivery {
                request: request.id,
                delivery,
            });
            // Requests take turns.
            request.left -= 1;
            if request.left > 0 {
                self.requests.push_back(request);
            }
        }
        sent
    }

    /// What is due again comes before what is new.
    fn next_message<P>(&mut self, messages: &BTreeMap<u64, Message<P>>) -> Option<u64> {
        if let Some(sequence) = self.due.pop_front() {
            return Some(sequence);
        }
        let most = self.config.max_ack_pending.unwrap_or(usize::MAX);
        if self.pending.len() >= most {
            return None;
        }
        let filters = &self.config.filters;
        let wanted = |message: &Message<P>| filters.iter().any(|f| matches(f, &message.subject));
        let mut rest = messages.range(self.next..);
        let found = rest
            .find(|(_, message)| wanted(message))
            .map(|(sequence, _)| *sequence);
        let last = messages
            .last_key_value()
            .map_or(0, |(sequence, _)| *sequence);
        self.next = self.next.max(found.unwrap_or(last) + 1);
        found
    }
}
