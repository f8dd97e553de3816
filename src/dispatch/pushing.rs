//! Taking pushes from the broker and doing what [`super::pushes`] decides, as long as this dispatcher leads.
//!
//! As everywhere in a leadership nothing is tried twice: what fails ends the leadership, and the pushes that
//! were not acknowledged are delivered to the next.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Messages};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::arrivals::{Arrival, take_from_jobs, traced};
use super::clock::Clock;
use super::input::Request;
use super::pushes::{Effect, Input, MAX_RULES, Pushes};
use super::resolve::Resolver;
use crate::bus::Bus;
use crate::bus::read::Reading;
use crate::bus::topology::MAX_WAITING_REQUESTS;
use crate::domain::failure::Failure;
use crate::domain::image::Digest;
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::telemetry::trace;
use crate::wire::manifest::rule::PushRule;
use crate::wire::push::Push;

/// The durable consumer of pushes, shared by all dispatchers of a cell.
const PUSHES_CONSUMER: &str = "pushes";
/// How long a push may be in the hands of a dispatcher before another one gets it; longer than the
/// registry may take to answer.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Pushes in the hands of a dispatcher at once: as many as the stream holds, because those that are put
/// back with a delay count as well, and must not hold the others up.
const MAX_IN_HAND: i64 = MAX_WAITING_REQUESTS;

/// Takes pushes until something fails; returns what did. What comes of them goes to who leads.
pub(super) async fn take(bus: Bus, resolver: Resolver, leader: mpsc::Sender<Arrival>) -> String {
    match Pusher::begin(bus, resolver, leader).await {
        Ok(mut pusher) => pusher.go_on().await,
        Err(reason) => reason,
    }
}

struct Pusher {
    clock: Clock,
    state: Pushes,
    rules: Reading,
    messages: Messages,
    in_hand: HashMap<u64, Acker>,
    resolver: Resolver,
    answers: JoinSet<(u64, Result<Digest, Failure>)>,
    leader: mpsc::Sender<Arrival>,
}

impl Pusher {
    /// Reads all rules before the first push is taken.
    async fn begin(
        bus: Bus,
        resolver: Resolver,
        leader: mpsc::Sender<Arrival>,
    ) -> Result<Self, String> {
        let bucket = bus.subjects.rules_bucket();
        let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.>"));
        let rules = bus
            .read(&stream, filter, DeliverPolicy::LastPerSubject)
            .await
            .map_err(|error| error.to_string())?;
        let mut pusher = Self {
            messages: messages(&bus).await?,
            clock: Clock::new(),
            state: Pushes::default(),
            rules,
            in_hand: HashMap::new(),
            resolver: resolver.beside(),
            answers: JoinSet::new(),
            leader,
        };
        while let Some(message) = pusher
            .rules
            .next_stored()
            .await
            .map_err(|error| error.to_string())?
        {
            pusher.rule(&message).await?;
        }
        tracing::info!(rules = pusher.state.rules(), "taking pushes");
        Ok(pusher)
    }

    async fn go_on(&mut self) -> String {
        loop {
            let done = tokio::select! {
                biased;
                rule = self.rules.next() => match rule {
                    Ok(message) => self.rule(&message).await,
                    Err(error) => Err(format!("the push rules ended: {error}")),
                },
                Some(answer) = self.answers.join_next(), if !self.answers.is_empty() => match answer {
                    Ok((sequence, answer)) => self.take(Input::Resolved { sequence, answer }).await,
                    Err(error) => Err(format!("asking what a tag means: {error}")),
                },
                message = self.messages.next() => match message {
                    Some(Ok(message)) => self.message(message).await,
                    Some(Err(error)) => Err(format!("the pushes ended: {error}")),
                    None => Err("the pushes ended".to_owned()),
                },
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    async fn rule(&mut self, message: &Message) -> Result<(), String> {
        let key = message.subject.rsplit('.').next().unwrap_or_default();
        let Ok(name) = JobName::from_token(key) else {
            tracing::warn!(key, "no push rule can have this key; it is passed over");
            return Ok(());
        };
        // The marker of a deleted key has no value.
        if message.payload.is_empty() {
            return self.take(Input::RuleGone(name)).await;
        }
        match serde_json::from_slice::<PushRule>(&message.payload) {
            Ok(rule) if rule.name == name => {
                if self.state.is_full_for(&name) {
                    tracing::error!(rule = %name, "only {MAX_RULES} push rules are looked at");
                }
                self.take(Input::Rule(Box::new(rule))).await
            }
            Ok(rule) => {
                tracing::error!(rule = %name, says = %rule.name, "a push rule lies under another name; it is passed over");
                Ok(())
            }
            Err(error) => {
                tracing::error!(rule = %name, %error, "a push rule cannot be read; it is passed over until it is applied again");
                self.take(Input::RuleGone(name)).await
            }
        }
    }

    async fn message(&mut self, message: Message) -> Result<(), String> {
        let Ok((sequence, delivery, stored)) = message.info().map(|info| {
            let stored = info.published.unix_timestamp_nanos() / 1_000_000;
            (info.stream_sequence, info.delivered, stored)
        }) else {
            return Ok(());
        };
        let stored = Timestamp::from_millis(i64::try_from(stored).unwrap_or(i64::MAX));
        let input = match Push::parse(&message.payload) {
            Ok(push) => Input::Push {
                sequence,
                delivery: u32::try_from(delivery).unwrap_or(u32::MAX),
                age: self.clock.now().since(stored),
                push: Box::new(Push {
                    trace: traced(message.headers.as_ref()).or_else(trace::new_trace),
                    ..push
                }),
            },
            Err(problems) => Input::Unreadable { sequence, problems },
        };
        let (_, acker) = message.split();
        self.in_hand.insert(sequence, acker);
        self.take(input).await
    }

    async fn take(&mut self, input: Input) -> Result<(), String> {
        let mut effects = Vec::new();
        self.state.handle(self.clock.now(), input, &mut effects);
        for effect in effects {
            self.perform(effect).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Resolve {
                sequence,
                image,
                pull_secrets,
            } => {
                let resolver = self.resolver.clone();
                self.answers.spawn(async move {
                    let answer = resolver.ask(&image, &pull_secrets).await;
                    (sequence, answer)
                });
                Ok(())
            }
            Effect::Ask { sequence, request } => self.ask(sequence, request).await,
            Effect::Acknowledge { sequence } => self.answer(sequence, AckKind::Ack).await,
            Effect::Retry { sequence, delay } => {
                self.answer(sequence, AckKind::Nak(Some(delay))).await
            }
        }
    }

    /// What is asked is done in its turn, with everything else that arrives at the leader.
    async fn ask(&mut self, sequence: u64, request: Request) -> Result<(), String> {
        let Some(acker) = self.in_hand.remove(&sequence) else {
            return Ok(());
        };
        if let Request::Unreadable { problems, .. } = &request {
            tracing::warn!(sequence, ?problems, "nothing comes of a push");
        }
        let asked = Arrival::Request {
            request,
            sequence,
            acker: Box::new(acker),
        };
        let sent = self.leader.send(asked).await;
        sent.map_err(|_| "nobody leads any more".to_owned())
    }

    async fn answer(&mut self, sequence: u64, kind: AckKind) -> Result<(), String> {
        match self.in_hand.remove(&sequence) {
            Some(acker) => acker
                .ack_with(kind)
                .await
                .map_err(|error| format!("answering a push: {error}")),
            None => Ok(()),
        }
    }
}

async fn messages(bus: &Bus) -> Result<Messages, String> {
    let config = PullConfig {
        durable_name: Some(PUSHES_CONSUMER.to_owned()),
        description: Some("prewarm: pushes of images".to_owned()),
        filter_subject: bus.subjects.push(),
        ack_wait: ACK_WAIT,
        max_ack_pending: MAX_IN_HAND,
        ..PullConfig::default()
    };
    take_from_jobs(bus, config).await
}
