//! Taking pushes from the broker and doing what [`super::pushes`] decides, as long as this dispatcher leads.
//!
//! As everywhere in a leadership nothing is tried twice: what fails ends the leadership, and the pushes that
//! were not acknowledged are delivered to the next.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Messages};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt as _;
use tokio::task::JoinSet;

use super::arrivals::take_from_jobs;
use super::clock::Clock;
use super::lead::Permission;
use super::pushes::{Effect, Input, MAX_RULES, Pushes};
use super::resolve::Resolver;
use crate::bus::Bus;
use crate::bus::read::Reading;
use crate::bus::topology::MAX_WAITING_REQUESTS;
use crate::domain::failure::Failure;
use crate::domain::image::Digest;
use crate::domain::name::JobName;
use crate::domain::status::{JobPhase, Outcome};
use crate::domain::time::Timestamp;
use crate::wire::event::{CONTENT_TYPE, Event, JobEvent, Problem};
use crate::wire::manifest;
use crate::wire::manifest::rule::PushRule;
use crate::wire::push::Push;
use crate::wire::record::JobRecord;
use crate::wire::subject::JobVerb;

/// The durable consumer of pushes, shared by all dispatchers of a cell.
const PUSHES_CONSUMER: &str = "pushes";
/// How long a push may be in the hands of a dispatcher before another one gets it; longer than the
/// registry may take to answer.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Pushes in the hands of a dispatcher at once: as many as the stream holds, because those that are put
/// back with a delay count as well, and must not hold the others up.
const MAX_IN_HAND: i64 = MAX_WAITING_REQUESTS;
/// How often a submission may turn out to be the copy of one that is long forgotten.
const MAX_COPIES: u32 = 16;

/// Takes pushes until something fails; returns what did.
pub(super) async fn take(bus: Bus, resolver: Resolver, permission: Permission) -> String {
    match Pusher::begin(bus, resolver, permission).await {
        Ok(mut pusher) => pusher.go_on().await,
        Err(reason) => reason,
    }
}

struct Pusher {
    bus: Bus,
    clock: Clock,
    state: Pushes,
    rules: Reading,
    messages: Messages,
    in_hand: HashMap<u64, Acker>,
    resolver: Resolver,
    answers: JoinSet<(u64, Result<Digest, Failure>)>,
    permission: Permission,
}

impl Pusher {
    /// Reads all rules before the first push is taken.
    async fn begin(bus: Bus, resolver: Resolver, permission: Permission) -> Result<Self, String> {
        let bucket = bus.subjects.rules_bucket();
        let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.>"));
        let rules = bus
            .read(&stream, filter, DeliverPolicy::LastPerSubject)
            .await
            .map_err(|error| error.to_string())?;
        let mut pusher = Self {
            messages: messages(&bus).await?,
            bus,
            clock: Clock::new(),
            state: Pushes::default(),
            rules,
            in_hand: HashMap::new(),
            resolver: resolver.beside(),
            answers: JoinSet::new(),
            permission,
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
                rule = self.rules.messages.next() => match rule {
                    Some(Ok(message)) => self.rule(&message).await,
                    Some(Err(error)) => Err(format!("the push rules ended: {error}")),
                    None => Err("the push rules ended".to_owned()),
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
                push: Box::new(push),
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
            if !self.permission.is_valid() {
                return Err("the lease was not renewed in time".to_owned());
            }
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
            Effect::Submit {
                sequence,
                rule,
                manifest,
            } => self.submit(sequence, &rule, &manifest).await,
            Effect::Reject {
                sequence,
                job,
                problems,
            } => self.reject(sequence, job, problems).await,
            Effect::Acknowledge { sequence } => self.answer(sequence, AckKind::Ack).await,
            Effect::Retry { sequence, delay } => {
                self.answer(sequence, AckKind::Nak(Some(delay))).await
            }
        }
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

    /// Stores a job's manifest, unless the job is there with the same content and has not failed.
    ///
    /// The message's id names what is asked. If the broker knows it, it was asked before, and by this
    /// very push if it was stored after the push was; else it counts until it was looked at, and no more
    /// if its job is gone since.
    async fn submit(
        &mut self,
        sequence: u64,
        rule: &JobName,
        manifest: &serde_json::Value,
    ) -> Result<(), String> {
        let submission = manifest::read(manifest).map_err(|rejection| rejection.to_string())?;
        let body = manifest.to_string();
        let hash = Digest::of(body.as_bytes());
        let subject = self.bus.subjects.job(JobVerb::Submit);
        let mut copy_of = None;
        for _ in 0..MAX_COPIES {
            let record = self.record(&submission.name).await?;
            if let Some(record) = &record
                && record.spec == submission.spec
                && stands(record)
            {
                tracing::debug!(job = %submission.name, %rule, "a push changes nothing: its job is there");
                return Ok(());
            }
            let before = record.map_or(0, |record| record.metadata.request_sequence);
            let before = copy_of.unwrap_or(before);
            let mut headers = HeaderMap::new();
            let id = format!("push.{}.{before}", hash.hex());
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
            let stored = self
                .store(subject.clone(), headers, body.clone().into())
                .await?;
            if !stored.duplicate {
                tracing::info!(job = %submission.name, %rule, "a push became a job");
                return Ok(());
            }
            if stored.sequence > sequence || self.waits(stored.sequence).await? {
                tracing::debug!(job = %submission.name, %rule, "a push changes nothing: its job was asked for");
                return Ok(());
            }
            copy_of = Some(stored.sequence);
        }
        Err(format!("the job {} comes and goes", submission.name))
    }

    /// Whether a request is still to be looked at.
    async fn waits(&mut self, sequence: u64) -> Result<bool, String> {
        let name = self.bus.subjects.jobs_stream();
        let failed =
            |error: &dyn std::fmt::Display| format!("looking for request {sequence}: {error}");
        let stream = self.bus.jetstream.get_stream_no_info(name).await;
        let stream = stream.map_err(|error| failed(&error))?;
        match stream.get_raw_message(sequence).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn record(&mut self, name: &JobName) -> Result<Option<JobRecord>, String> {
        let bucket = self.bus.subjects.jobs_bucket();
        let failed =
            |error: &dyn std::fmt::Display| format!("reading the record of job {name}: {error}");
        let stream = self
            .bus
            .jetstream
            .get_stream_no_info(format!("KV_{bucket}"))
            .await
            .map_err(|error| failed(&error))?;
        let subject = format!("$KV.{bucket}.{}", name.token());
        match stream.get_last_raw_message_by_subject(&subject).await {
            // A marker of a deletion has no value.
            Ok(message) => Ok(serde_json::from_slice(&message.payload).ok()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn reject(
        &mut self,
        sequence: u64,
        job: Option<JobName>,
        problems: Vec<Problem>,
    ) -> Result<(), String> {
        tracing::warn!(
            sequence,
            ?problems,
            "a push was not understood, or its rule makes no job of it"
        );
        let event = JobEvent::rejected(job, sequence, problems);
        let subject = self
            .bus
            .subjects
            .job_event(event.job.as_ref(), event.event.token());
        let about = event
            .job
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        let event = Event::new(
            "job.rejected",
            format!("rejected.{sequence}.{about}"),
            format!("/{}/dispatcher", self.bus.subjects.prefix()),
            about,
            self.clock.now(),
            event,
        );
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, event.id.as_str());
        headers.insert("Content-Type", CONTENT_TYPE);
        let body = serde_json::to_vec(&event).map_err(|error| error.to_string())?;
        self.store(subject, headers, body).await.map(drop)
    }

    async fn store(
        &mut self,
        subject: String,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<PublishAck, String> {
        let failed = |error: &dyn std::fmt::Display| format!("storing on {subject}: {error}");
        let stored = self.bus.store(subject.clone(), headers, body.into()).await;
        let stored = stored.map_err(|error| failed(&error))?;
        stored.await.map_err(|error| failed(&error))
    }
}

/// Whether nothing would be gained by another run.
fn stands(record: &JobRecord) -> bool {
    let status = &record.status;
    match status.phase {
        JobPhase::Completed | JobPhase::Cancelled => status.outcome == Some(Outcome::Succeeded),
        JobPhase::Resolving | JobPhase::Running | JobPhase::Idle | JobPhase::Paused => true,
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
