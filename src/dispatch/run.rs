//! The role `dispatcher`: sets the broker up, keeps or waits for the lease, and leads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Operation;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::clock::uptime;
use super::follow::Standby;
use super::lead::{Ended, Permission, lead};
use super::lease::{DEFAULT_LEASE, Effect, Entry, Input, Lease};
use super::observe::{LeaseRequest, Observer, Seen};
use super::resolve::Resolver;
use super::state::Settings;
use crate::bus::Bus;
use crate::bus::topology::{self, TopologyError, TopologySettings};
use crate::image::registry::Registry;

/// The lease's key in `prewarm_leases`.
const LEASE_KEY: &str = "dispatcher";
/// Pause before the broker is set up again after it did not answer.
const TOPOLOGY_RETRY: Duration = Duration::from_secs(2);
/// Pause before leading again after a leadership failed, doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Time between two looks for lost tasks.
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// Longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// What an operator sets of a dispatcher.
#[derive(Clone, Debug)]
pub struct DispatcherSettings {
    /// Names this process; no other and no later one has the same.
    pub instance: String,
    /// Streams and buckets.
    pub topology: TopologySettings,
    /// Limits across all jobs.
    pub limits: Settings,
    /// How to ask registries what tags mean; `None`: nodes resolve for themselves.
    pub registry: Option<Registry>,
    /// Time without a renewal after which another dispatcher may lead.
    pub lease: Duration,
    /// Time between two looks for tasks that somebody removed from the task stream.
    pub audit_every: Duration,
}

impl DispatcherSettings {
    /// The contract's defaults.
    #[must_use]
    pub fn new(instance: String) -> Self {
        Self {
            instance,
            topology: TopologySettings::default(),
            limits: Settings::default(),
            registry: None,
            lease: DEFAULT_LEASE,
            audit_every: AUDIT_EVERY,
        }
    }
}

/// Why a dispatcher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// The broker cannot hold the cell.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// Runs until the token is cancelled; hands the lease over then.
///
/// # Errors
/// The broker cannot hold a cell, which waiting does not mend.
pub async fn run(
    bus: Bus,
    settings: DispatcherSettings,
    shutdown: CancellationToken,
) -> Result<(), DispatcherError> {
    run_observed(bus, settings, Arc::new(()), shutdown).await
}

/// [`run`], with somebody who hears what the dispatcher sees.
///
/// # Errors
/// As [`run`].
pub async fn run_observed(
    bus: Bus,
    settings: DispatcherSettings,
    observer: Arc<dyn Observer>,
    shutdown: CancellationToken,
) -> Result<(), DispatcherError> {
    while let Err(error) = topology::ensure(&bus, settings.topology).await {
        if !error.is_passing() {
            return Err(error.into());
        }
        tracing::warn!(%error, "the broker is not set up yet; trying again");
        tokio::select! {
            () = tokio::time::sleep(TOPOLOGY_RETRY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let lease = Lease::new(settings.instance.clone(), settings.lease, uptime());
    let (answers, inbox) = mpsc::channel(1);
    let keeper = Keeper {
        resolver: Resolver::new(settings.registry.clone()),
        bus,
        settings,
        lease,
        answers,
        permission: Permission::default(),
        leadership: None,
        standby: None,
        retry: FIRST_RETRY,
        observer,
    };
    keeper.run(inbox, shutdown).await;
    Ok(())
}

struct Leadership {
    task: JoinHandle<Result<(), Ended>>,
    yielded: CancellationToken,
}

struct Keeper {
    bus: Bus,
    settings: DispatcherSettings,
    resolver: Resolver,
    lease: Lease,
    /// Carries the one answer that is open at a time.
    answers: mpsc::Sender<Input>,
    permission: Permission,
    leadership: Option<Leadership>,
    /// Reads along while another leads.
    standby: Option<Standby>,
    retry: Duration,
    observer: Arc<dyn Observer>,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Input>, shutdown: CancellationToken) {
        let mut stopping = false;
        let mut input = Input::Tick;
        loop {
            self.observer.saw(Seen::KeeperTurned);
            if self.handle(input).await {
                return;
            }
            if !stopping && self.leadership.is_none() && self.standby.is_none() {
                self.standby = Some(Standby::begin(self.bus.clone()));
            }
            let wait = self
                .lease
                .next_deadline()
                .map(|at| at.saturating_sub(uptime()));
            input = tokio::select! {
                Some(answer) = inbox.recv() => answer,
                () = sleep(wait) => Input::Tick,
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    Input::Stop
                }
                ended = ending(&mut self.leadership) => {
                    self.lead_again(&ended, &shutdown).await;
                    Input::Tick
                }
            };
        }
    }

    /// Takes one input; says whether all is over.
    async fn handle(&mut self, input: Input) -> bool {
        let mut effects = Vec::new();
        self.lease.handle(uptime(), input, &mut effects);
        self.permission.extend_to(self.lease.acts_until());
        for effect in effects {
            match effect {
                Effect::Look => self.ask(look),
                Effect::Write { expected, holder } => {
                    self.ask(move |bus| write(bus, expected, holder));
                }
                Effect::Lead => {
                    self.retry = FIRST_RETRY;
                    self.begin();
                }
                Effect::Yield => self.end().await,
                Effect::Stopped => return true,
            }
        }
        false
    }

    fn ask<F>(&self, request: impl FnOnce(Bus) -> F)
    where
        F: Future<Output = Input> + Send + 'static,
    {
        let answer = request(self.bus.clone());
        let (answers, limit) = (self.answers.clone(), self.lease.request_limit());
        let (late, asked) = if self.lease.is_looking() {
            (Input::NotLooked, LeaseRequest::Look)
        } else {
            (Input::Unclear, LeaseRequest::Write)
        };
        let observer = Arc::clone(&self.observer);
        tokio::spawn(async move {
            let began = Instant::now();
            let answer = tokio::time::timeout(limit, answer).await.unwrap_or(late);
            let answered = !matches!(answer, Input::NotLooked | Input::Unclear);
            observer.saw(Seen::Asked(asked, answered.then(|| began.elapsed())));
            // The keeper is gone: nobody waits for the answer.
            let _ = answers.send(answer).await;
        });
    }

    fn begin(&mut self) {
        let yielded = CancellationToken::new();
        let task = tokio::spawn(lead(
            self.bus.clone(),
            (self.settings.limits, self.settings.audit_every),
            self.resolver.clone(),
            (self.permission.clone(), Arc::clone(&self.observer)),
            self.standby.take(),
            yielded.clone(),
        ));
        self.leadership = Some(Leadership { task, yielded });
    }

    /// Ends the leadership and waits for what is on its way, but no longer than the lease allows.
    async fn end(&mut self) {
        let Some(leadership) = self.leadership.take() else {
            return;
        };
        leadership.yielded.cancel();
        let mut task = leadership.task;
        if tokio::time::timeout(self.settings.lease / 2, &mut task)
            .await
            .is_err()
        {
            task.abort();
        }
        self.observer.saw(Seen::Leads(false));
        tracing::info!("no longer leading");
    }

    async fn lead_again(&mut self, ended: &str, shutdown: &CancellationToken) {
        self.observer.saw(Seen::Leads(false));
        self.observer.saw(Seen::LeadershipFailed);
        tracing::warn!(
            reason = ended,
            pause_millis = u64::try_from(self.retry.as_millis()).unwrap_or(u64::MAX),
            "the leadership ended; reading everything back"
        );
        tokio::select! {
            () = tokio::time::sleep(self.retry) => {}
            () = shutdown.cancelled() => return,
        }
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        if self.lease.may_act(uptime()) {
            self.begin();
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Waits until the leadership, if there is one, has ended by itself.
async fn ending(leadership: &mut Option<Leadership>) -> String {
    let Some(current) = leadership else {
        return std::future::pending().await;
    };
    let ended = match (&mut current.task).await {
        Ok(Ok(())) => "it was told to".to_owned(),
        Ok(Err(ended)) => ended.to_string(),
        Err(panic) => format!("a defect: {panic}"),
    };
    *leadership = None;
    ended
}

async fn look(bus: Bus) -> Input {
    let bucket = bus.subjects.leases_bucket();
    let Ok(stream) = bus
        .jetstream
        .get_stream_no_info(format!("KV_{bucket}"))
        .await
    else {
        return Input::NotLooked;
    };
    let subject = format!("$KV.{bucket}.{LEASE_KEY}");
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => {
            let operation = message
                .headers
                .get("KV-Operation")
                .map(|value| value.as_str().parse());
            let deleted = matches!(operation, Some(Ok(Operation::Delete | Operation::Purge)));
            let holder = String::from_utf8(message.payload.to_vec()).ok();
            let holder = holder.filter(|holder| !deleted && !holder.is_empty());
            Input::Looked(Some(Entry {
                revision: message.sequence,
                holder,
            }))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Input::Looked(None)
        }
        Err(_) => Input::NotLooked,
    }
}

async fn write(bus: Bus, expected: u64, holder: Option<String>) -> Input {
    use async_nats::jetstream::context::PublishErrorKind;
    let subject = format!("$KV.{}.{LEASE_KEY}", bus.subjects.leases_bucket());
    let message = PublishMessage::build()
        .expected_last_subject_sequence(expected)
        .payload(holder.unwrap_or_default().into());
    let answer = match bus.jetstream.send_publish(subject, message).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(ack) => Input::Written {
            revision: ack.sequence,
        },
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Input::Refused,
        Err(_) => Input::Unclear,
    }
}
