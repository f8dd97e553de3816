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
    /// Delivered and unanswered: when each is delivered again.
    pending: BTreeMap<u64, Millis>,
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
            deliveries: BTreeMap::new(),
            requests: VecDeque::new(),
        }
    }

    pub(super) fn ack_wait(&self) -> Millis {
        self.config.ack_wait
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
        self.pending.remove(&sequence).is_some()
    }

    pub(super) fn redeliver_at(&mut self, sequence: u64, at: Millis) {
        if let Some(due) = self.pending.get_mut(&sequence) {
            *due = at;
        }
    }

    /// Says whether the consumer outlives the server.
    pub(super) fn restart(&mut self) -> bool {
        self.requests.clear();
        !self.config.memory
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        let expires = self.requests.iter().map(|request| request.expires).min();
        let due = self.pending.values().min().copied();
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
        while let Some(request) = self.requests.front().map(|request| request.id) {
            let Some(sequence) = self.next_message(now, messages) else {
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
            sent.push(Sent::Delivery { request, delivery });
            if let Some(front) = self.requests.front_mut() {
                front.left -= 1;
                if front.left == 0 {
                    self.requests.pop_front();
                }
            }
        }
        sent
    }

    /// What is due again comes before what is new.
    fn next_message<P>(
        &mut self,
        now: Millis,
        messages: &BTreeMap<u64, Message<P>>,
    ) -> Option<u64> {
        let due = self.pending.iter().filter(|(_, due)| **due <= now);
        if let Some((sequence, _)) = due.min_by_key(|(sequence, due)| (**due, **sequence)) {
            return Some(*sequence);
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
