//! A nats-server. Scenarios share one; each has streams and subjects of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self};
use prewarm::bus::Bus;
use prewarm::bus::pull::{Answer as Said, PullTimes, Pulled, Puller};
use prewarm::wire::subject::Subjects;
use tokio::sync::Mutex;

use crate::broker::{ConsumerConfig, Demands, Millis, Refusal, Retention, Start, Stored};
use crate::session::{
    Answer, BUCKET, Body, JOBS, Kept, LONG, Message, Pull, Receipt, STREAMS, Seen,
};
use crate::support::nats::{NatsServer, taken_in};
use crate::support::wait::{eventually, within};

struct Request {
    stream: &'static str,
    consumer: String,
    puller: Puller,
    /// So many it may still bring.
    left: u32,
}

pub struct Real {
    /// Begins the name of everything this scenario has.
    name: &'static str,
    bus: Bus,
    server: Arc<Mutex<NatsServer>>,
    began: Instant,
    made: Vec<&'static str>,
    requests: BTreeMap<u64, Request>,
    opened: u64,
}

impl Real {
    pub fn new(
        name: &'static str,
        client: async_nats::Client,
        server: Arc<Mutex<NatsServer>>,
    ) -> Self {
        Self {
            name,
            bus: Bus::new(client, Subjects::default()),
            server,
            began: Instant::now(),
            made: Vec::new(),
            requests: BTreeMap::new(),
            opened: 0,
        }
    }

    pub fn now(&self) -> Millis {
        self.began.elapsed().as_millis() as Millis
    }

    fn stream_name(&self, stream: &str) -> String {
        match stream {
            BUCKET => format!("KV_{}", self.name),
            other => format!("{}_{other}", self.name),
        }
    }

    fn prefix(&self, stream: &str) -> String {
        match stream {
            BUCKET => format!("$KV.{}.", self.name),
            other => format!("{}.{other}.", self.name),
        }
    }

    fn subject(&self, stream: &str, subject: &str) -> String {
        format!("{}{subject}", self.prefix(stream))
    }

    fn plain(&self, stream: &str, subject: &str) -> String {
        let plain = subject.strip_prefix(&self.prefix(stream));
        plain.expect("a subject of this scenario").to_owned()
    }

    /// The stream, made as [`prewarm::bus::topology`] makes its like.
    async fn stream(&mut self, stream: &'static str) -> Stream<()> {
        let name = self.stream_name(stream);
        if !self.made.contains(&stream) {
            let wanted = STREAMS.into_iter().find(|config| config.name == stream);
            let wanted = wanted.expect("a stream of the scenarios");
            let is_bucket = stream == BUCKET;
            let config = Config {
                name: name.clone(),
                subjects: vec![self.subject(stream, ">")],
                storage: StorageType::File,
                retention: match wanted.retention {
                    Retention::Limits => RetentionPolicy::Limits,
                    Retention::WorkQueue => RetentionPolicy::WorkQueue,
                },
                max_messages_per_subject: wanted.per_subject.map_or(-1, |most| most as i64),
                duplicate_window: Duration::from_millis(wanted.duplicate_window),
                discard: if is_bucket {
                    DiscardPolicy::New
                } else {
                    DiscardPolicy::Old
                },
                allow_rollup: is_bucket,
                deny_delete: is_bucket,
                allow_direct: is_bucket,
                ..Config::default()
            };
            self.bus.jetstream.create_stream(config).await.unwrap();
            self.made.push(stream);
        }
        self.bus.jetstream.get_stream_no_info(&name).await.unwrap()
    }

    pub async fn publish(
        &mut self,
        stream: &'static str,
        subject: &str,
        body: Body,
        demands: Demands,
    ) -> Result<Stored, Refusal> {
        self.stream(stream).await;
        let mut headers = HeaderMap::new();
        let text = match body {
            Body::Text(text) => text,
            Body::Marker => {
                headers.insert("KV-Operation", "DEL");
                String::new()
            }
        };
        let mut message = PublishMessage::build()
            .headers(headers)
            .payload(text.into());
        if let Some(id) = demands.message_id {
            message = message.message_id(id);
        }
        if let Some(sequence) = demands.last_subject_sequence {
            message = message.expected_last_subject_sequence(sequence);
        }
        let subject = self.subject(stream, subject);
        let sent = self
            .bus
            .jetstream
            .send_publish(subject, message)
            .await
            .unwrap();
        match sent.await {
            Ok(ack) => Ok(Stored {
                sequence: ack.sequence,
                duplicate: ack.duplicate,
            }),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Err(Refusal::WrongLastSequence)
            }
            Err(error) => panic!("publishing failed: {error}"),
        }
    }

    pub async fn purge(
        &mut self,
        stream: &'static str,
        filter: &str,
        before: Option<u64>,
    ) -> usize {
        let filter = self.subject(stream, filter);
        let purge = self.stream(stream).await.purge().filter(filter);
        let purged = match before {
            Some(sequence) => purge.sequence(sequence).await,
            None => purge.await,
        };
        purged.unwrap().purged as usize
    }

    /// Removes a message as `dispatch::perform` withdraws a task.
    pub async fn remove(&mut self, stream: &'static str, sequence: u64) -> bool {
        self.stream(stream).await;
        let subject = format!("STREAM.MSG.DELETE.{}", self.stream_name(stream));
        let body = serde_json::json!({"seq": sequence, "no_erase": true});
        let answer: Response<serde_json::Value> =
            self.bus.jetstream.request(subject, &body).await.unwrap();
        match answer {
            Response::Ok(_) => true,
            Response::Err { error } => {
                assert!(error.to_string().contains("no message found"), "{error}");
                false
            }
        }
    }

    pub async fn kept(&mut self, stream: &'static str, from: u64) -> Vec<Kept> {
        if stream == JOBS {
            // A work queue has no second consumer.
            return self.kept_one_by_one(stream, from).await;
        }
        let from = DeliverPolicy::ByStartSequence {
            start_sequence: from,
        };
        self.read(stream, from).await
    }

    async fn kept_one_by_one(&mut self, stream: &'static str, from: u64) -> Vec<Kept> {
        let last = self.last_sequence(stream).await;
        let handle = self.stream(stream).await;
        let mut kept = Vec::new();
        for sequence in from..=last {
            if let Ok(message) = handle.get_raw_message(sequence).await {
                let subject = self.plain(stream, &message.subject);
                kept.push((sequence, subject, body(&message.payload, &message.headers)));
            }
        }
        kept
    }

    pub async fn newest(&mut self, stream: &'static str) -> Vec<Kept> {
        self.read(stream, DeliverPolicy::LastPerSubject).await
    }

    async fn read(&mut self, stream: &'static str, from: DeliverPolicy) -> Vec<Kept> {
        self.stream(stream).await;
        let (name, filter) = (self.stream_name(stream), self.subject(stream, ">"));
        let mut kept = Vec::new();
        let each = |message: jetstream::Message| {
            let sequence = message.info().unwrap().stream_sequence;
            let headers = message.headers.clone().unwrap_or_default();
            let subject = self.plain(stream, &message.subject);
            kept.push((sequence, subject, body(&message.payload, &headers)));
        };
        self.bus.read_all(&name, filter, from, each).await.unwrap();
        kept
    }

    pub async fn last(&mut self, stream: &'static str, subject: &str) -> Option<(u64, Body)> {
        let subject = self.subject(stream, subject);
        let handle = self.stream(stream).await;
        let message = handle
            .get_last_raw_message_by_subject(&subject)
            .await
            .ok()?;
        Some((message.sequence, body(&message.payload, &message.headers)))
    }

    pub async fn last_sequence(&mut self, stream: &'static str) -> u64 {
        let info = self.stream(stream).await.get_info().await.unwrap();
        info.state.last_sequence
    }

    pub async fn create_consumer(
        &mut self,
        stream: &'static str,
        name: &str,
        config: ConsumerConfig,
    ) {
        let mut filters = config.filters.iter();
        let filters: Vec<String> = filters.by_ref().map(|f| self.subject(stream, f)).collect();
        let one = filters.len() == 1;
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            filter_subject: if one {
                filters[0].clone()
            } else {
                String::new()
            },
            filter_subjects: if one { Vec::new() } else { filters },
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_millis(config.ack_wait),
            max_deliver: -1,
            max_ack_pending: config.max_ack_pending.map_or(0, |most| most as i64),
            memory_storage: config.memory,
            num_replicas: usize::from(config.memory),
            deliver_policy: match config.start {
                Start::All => DeliverPolicy::All,
                Start::At(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            },
            ..pull::Config::default()
        };
        self.stream(stream)
            .await
            .create_consumer(config)
            .await
            .unwrap();
    }

    pub async fn delete_consumer(&mut self, stream: &'static str, name: &str) {
        let handle = self.stream(stream).await;
        if self
            .requests
            .values()
            .any(|request| request.consumer == name && request.left > 0)
        {
            eventually("the request to wait at the consumer", LONG, async || {
                let info = handle.consumer_info(name).await;
                info.is_ok_and(|info| info.num_waiting > 0)
            })
            .await;
        }
        handle.delete_consumer(name).await.unwrap();
    }

    pub async fn has_consumer(&mut self, stream: &'static str, name: &str) -> bool {
        self.stream(stream).await.consumer_info(name).await.is_ok()
    }

    pub async fn pull(
        &mut self,
        stream: &'static str,
        consumer: &str,
        batch: u32,
        expires: Millis,
    ) -> Pull {
        self.stream(stream).await;
        let expires = Duration::from_millis(expires);
        let times = PullTimes {
            expires,
            // How long the broker may be silent is not its own affair, and is not tested here.
            idle_heartbeat: Duration::ZERO,
        };
        let mut puller = Puller::new(self.bus.client.clone(), Some(times));
        puller
            .request(&self.stream_name(stream), consumer, batch)
            .await
            .unwrap();
        taken_in(&self.bus.client).await;
        self.opened += 1;
        let request = Request {
            stream,
            consumer: consumer.to_owned(),
            puller,
            left: batch,
        };
        self.requests.insert(self.opened, request);
        Pull(self.opened)
    }

    pub async fn next(&mut self, pull: Pull) -> Seen {
        let request = self
            .requests
            .get_mut(&pull.0)
            .expect("a request that is open");
        let (stream, consumer) = (request.stream, request.consumer.clone());
        let pulled = within(LONG * 2, "what a request brings", request.puller.next()).await;
        request.left = match pulled {
            Pulled::Delivery(_) => request.left - 1,
            _ => 0,
        };
        match pulled {
            Pulled::Delivery(delivery) => {
                let sequence = sequence(&delivery.reply);
                Seen::Message(Message {
                    sequence,
                    subject: self.plain(stream, &delivery.subject),
                    deliveries: delivery.deliveries,
                    receipt: Receipt {
                        stream,
                        consumer,
                        sequence,
                        reply: delivery.reply.to_string(),
                    },
                })
            }
            Pulled::Expired { undelivered } => Seen::Expired(undelivered),
            Pulled::Lost { reason } if reason.starts_with("503") => Seen::NoConsumer,
            Pulled::Lost { reason } if reason.contains("Consumer Deleted") => Seen::ConsumerDeleted,
            other => panic!("a request brought {other:?}"),
        }
    }

    pub async fn drop_pull(&mut self, pull: Pull) {
        self.requests.remove(&pull.0);
        taken_in(&self.bus.client).await;
    }

    /// Answers, and waits for the server's word that it has read the answer.
    pub async fn answer(&mut self, receipt: &Receipt, answer: Answer) {
        let said = match answer {
            Answer::Ack => Said::Ack,
            Answer::Nak(delay) => Said::Nak(delay.map(Duration::from_millis)),
            Answer::InProgress => Said::InProgress,
        };
        if receipt.reply.is_empty() {
            // Of what was never delivered; servers do not confirm that they have read this.
            let (stream, sequence) = (self.stream_name(receipt.stream), receipt.sequence);
            let consumer = &receipt.consumer;
            let subject = format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{sequence}.0.0");
            self.bus.client.publish(subject, said.body()).await.unwrap();
            assert!(self.has_consumer(receipt.stream, consumer).await);
            return;
        }
        let confirmed = self.bus.client.request(receipt.reply.clone(), said.body());
        within(LONG, "an answer to be read", confirmed)
            .await
            .unwrap();
    }

    pub async fn restart(&mut self) {
        self.requests.clear();
        self.server.lock().await.restart().await;
        let jetstream = self.bus.jetstream.clone();
        eventually("the server to answer again", LONG, async || {
            jetstream.query_account().await
        })
        .await;
    }
}

fn body(payload: &[u8], headers: &HeaderMap) -> Body {
    if headers.get("KV-Operation").is_some() {
        return Body::Marker;
    }
    Body::Text(String::from_utf8(payload.to_vec()).unwrap())
}

/// The stream's sequence in an ack subject (ADR-15); see [`prewarm::bus::pull`] for its forms.
fn sequence(reply: &str) -> u64 {
    let tokens: Vec<&str> = reply.split('.').collect();
    let at = if tokens.len() == 9 { 5 } else { 7 };
    tokens[at].parse().unwrap()
}
