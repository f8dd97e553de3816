//! One leadership: read everything back, then turn arrivals into effects until it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::arrivals::{Arrival, QUEUE, broken, listen};
use super::clock::{Clock, uptime};
use super::follow::Standby;
use super::input::{Effect, Input, ReplyToken};
use super::load::{Loaded, load};
use super::observe::{Observer, Seen};
use super::perform::{Performer, purge_subject};
use super::pushing;
use super::resolve::Resolver;
use super::state::{Dispatcher, Settings};
use crate::bus::Bus;
use crate::bus::leaders::Leaders;
use crate::domain::time::Timestamp;
use crate::wire::worker::RegistrationReply;

/// How long the broker may take to confirm an effect. A stream that is busy with ten thousand consumers keeps its
/// publishers waiting for longer than a request may take ([`crate::bus::REQUEST_TIMEOUT`]), while the lease is renewed
/// in time: to end the leadership then and to read everything back would only make it busier. Whoever loses the lease
/// or the connection does not wait for this.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);
/// How long effects may take before the state is told that it could not listen meanwhile.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Arrivals taken together before their effects are done.
const BATCH: usize = 256;
/// How often it is looked whether the connection was lost meanwhile.
const CONNECTION_LOOKED_AT: Duration = Duration::from_millis(500);
/// How often it is counted how many of everything there are.
const COUNTED_AT: Duration = Duration::from_secs(1);
/// Longest sleep; a timer further away is looked at again then.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Until when effects may be begun, shared between the keeper of the lease and who leads.
#[derive(Clone, Debug, Default)]
pub(super) struct Permission(Arc<AtomicU64>);

impl Permission {
    pub(super) fn extend_to(&self, until: Option<Duration>) {
        let millis = until.map_or(0, |until| {
            u64::try_from(until.as_millis()).unwrap_or(u64::MAX)
        });
        self.0.store(millis, Ordering::Release);
    }

    pub(super) fn is_valid(&self) -> bool {
        uptime().as_millis() < u128::from(self.0.load(Ordering::Acquire))
    }
}

/// Why a leadership ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Ended(String);

fn ended(reason: impl std::fmt::Display) -> Ended {
    Ended(reason.to_string())
}

/// Leads until the token is cancelled or something fails.
pub(super) async fn lead(
    bus: Bus,
    (settings, audit_every): (Settings, Duration),
    resolver: Resolver,
    (permission, observer): (Permission, Arc<dyn Observer>),
    standby: Option<Standby>,
    yielded: CancellationToken,
) -> Result<(), Ended> {
    let watched = (permission, Arc::clone(&observer));
    let mut leader = tokio::select! {
        leader = Leader::begin(bus, (settings, audit_every), resolver, watched, standby) => leader?,
        () = yielded.cancelled() => return Ok(()),
    };
    // Whoever ends this waits for it, but not for ever: what is said after that would stand for ever.
    if yielded.is_cancelled() {
        return Ok(());
    }
    observer.saw(Seen::Leads(true));
    let end = leader.go_on(&yielded).await;
    leader.turn_away().await;
    end
}

struct Leader {
    clock: Clock,
    state: Dispatcher,
    performer: Performer,
    permission: Permission,
    observer: Arc<dyn Observer>,
    arrivals: mpsc::Receiver<Arrival>,
    next_reply: u64,
    audit_every: Duration,
    client: async_nats::Client,
    /// How often the client had connected when the cell was read back.
    connects: u64,
    /// Ends when a stream has got another leader than it had then.
    moved: BoxFuture<'static, String>,
    /// Ends the listeners with the leadership.
    _sources: tokio::task::JoinSet<()>,
}

impl Leader {
    async fn begin(
        mut bus: Bus,
        (settings, audit_every): (Settings, Duration),
        resolver: Resolver,
        (permission, observer): (Permission, Arc<dyn Observer>),
        standby: Option<Standby>,
    ) -> Result<Self, Ended> {
        let clock = Clock::new();
        let client = bus.client.clone();
        let connects = connects(&client);
        let since = clock.now();
        let leaders = leaders(&bus).await;
        let follower = match standby {
            Some(standby) => standby.end().await,
            None => None,
        };
        let followed = follower.is_some();
        let loaded = load(&bus, settings, since, follower).await;
        let loaded = loaded.map_err(ended)?;
        let Loaded {
            state,
            revisions,
            events,
            newest_task,
            markers,
        } = loaded;
        for marker in markers {
            let bucket = if marker.starts_with(&format!("$KV.{}.", bus.subjects.jobs_bucket())) {
                bus.subjects.jobs_bucket()
            } else {
                bus.subjects.nodes_bucket()
            };
            purge_subject(&bus, &bucket, &marker).await.map_err(ended)?;
        }
        tracing::info!(
            jobs = revisions.len(),
            millis = u64::try_from(clock.now().since(since).as_millis()).unwrap_or(u64::MAX),
            followed,
            "read the cell back; leading"
        );
        let (sender, arrivals) = mpsc::channel(QUEUE);
        let mut sources = listen(&bus, events, &sender).await.map_err(Ended)?;
        let pushes = pushing::take(bus.clone(), resolver.clone(), sender.clone());
        let queue = sender.clone();
        sources.spawn(async move { broken(&queue, pushes.await).await });
        bus.jetstream.set_timeout(CONFIRMED_WITHIN);
        let performer = Performer::new(bus, (revisions, newest_task), resolver, sender).await;
        let mut leader = Self {
            clock,
            state,
            performer: performer.map_err(ended)?,
            permission,
            observer,
            arrivals,
            next_reply: 0,
            audit_every,
            client,
            connects,
            moved: leaders.changed().boxed(),
            _sources: sources,
        };
        let begun = [Input::Stalled { since }, Input::Lead];
        leader.take(begun.map(Arrival::Input)).await?;
        Ok(leader)
    }

    async fn go_on(&mut self, yielded: &CancellationToken) -> Result<(), Ended> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut audits = tokio::time::interval(self.audit_every);
        audits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lost = connection_lost(self.client.clone(), self.connects);
        tokio::pin!(lost);
        let mut count = tokio::time::interval(COUNTED_AT);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.observer.saw(Seen::LeaderTurned);
            let sleep = self.state.next_deadline().map_or(LONGEST_SLEEP, |at| {
                at.since(self.clock.now()).min(LONGEST_SLEEP)
            });
            tokio::select! {
                () = yielded.cancelled() => return Ok(()),
                taken = self.arrivals.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return Err(ended("nothing arrives any more"));
                    }
                    self.take(batch.drain(..)).await?;
                }
                () = &mut lost => return Err(ended(LOST)),
                stream = &mut self.moved => return Err(moved(&stream)),
                _ = count.tick() => self.observer.saw(Seen::Census(&self.state.census())),
                _ = audits.tick() => {
                    if let Some(as_of) = self.state.has_out() {
                        self.performer.look_through(as_of);
                    }
                }
                () = tokio::time::sleep(sleep) => self.take([Arrival::Input(Input::Tick)]).await?,
            }
        }
    }

    /// Tells workers whose registrations nobody will answer now: they ask again soon, and would else wait for as long as a
    /// request may take.
    async fn turn_away(&mut self) {
        self.arrivals.close();
        let mut left: Vec<_> = self.performer.replies.drain().map(|(_, to)| to).collect();
        while let Ok(arrival) = self.arrivals.try_recv() {
            if let Arrival::Registered { reply, .. } = arrival {
                left.push(reply);
            }
        }
        let answer = RegistrationReply {
            error: "the dispatcher reads everything back; ask again".to_owned(),
            ..RegistrationReply::default()
        };
        let body = serde_json::to_vec(&answer).unwrap_or_default();
        for reply in left {
            // Who hears nothing asks again, later.
            let _ = self.client.publish(reply, body.clone().into()).await;
        }
    }

    /// Feeds arrivals to the state and does what it asks for.
    async fn take(&mut self, arrivals: impl IntoIterator<Item = Arrival>) -> Result<(), Ended> {
        let now = self.clock.now();
        let mut effects = Vec::new();
        for arrival in arrivals {
            let input = self.read(arrival)?;
            if let Input::TaskEvent { event, .. } = &input {
                self.observer.saw(Seen::Heard(event.state));
            }
            self.state.handle(now, input, &mut effects);
        }
        self.act(now, effects).await
    }

    async fn act(&mut self, mut now: Timestamp, mut effects: Vec<Effect>) -> Result<(), Ended> {
        while !effects.is_empty() {
            if !self.permission.is_valid() {
                return Err(ended("the lease was not renewed in time"));
            }
            for effect in &effects {
                if let Effect::TellJob { event, .. } = effect {
                    self.observer.saw(Seen::Told(event));
                }
            }
            let known = tokio::select! {
                known = self.performer.perform(std::mem::take(&mut effects)) => known,
                () = connection_lost(self.client.clone(), self.connects) => return Err(ended(LOST)),
                stream = &mut self.moved => return Err(moved(&stream)),
            };
            for input in known.map_err(ended)? {
                // Counted when the broker has it: what an ended leadership had sent, the next one releases again or finds.
                if matches!(input, Input::Released { .. }) {
                    self.observer.saw(Seen::Released);
                }
                self.state.handle(now, input, &mut effects);
            }
            let since = std::mem::replace(&mut now, self.clock.now());
            if now.since(since) >= STALLED_AFTER {
                self.state
                    .handle(now, Input::Stalled { since }, &mut effects);
            }
        }
        Ok(())
    }

    fn read(&mut self, arrival: Arrival) -> Result<Input, Ended> {
        match arrival {
            Arrival::Input(input) => Ok(input),
            Arrival::Request {
                request,
                sequence,
                taken,
            } => {
                self.performer.requests.insert(sequence, taken);
                Ok(Input::Request { request, sequence })
            }
            Arrival::Registered {
                node,
                registration,
                reply,
            } => {
                let token = ReplyToken(self.next_reply);
                self.next_reply += 1;
                self.performer.replies.insert(token, reply);
                Ok(Input::Registered {
                    node,
                    registration,
                    reply: token,
                })
            }
            Arrival::Broken(reason) => Err(Ended(reason)),
        }
    }
}

/// Of the streams that a dispatcher writes to, and the requests. Whether what was on its way to a leader that died was
/// stored is not known, and its silence would be waited for.
async fn leaders(bus: &Bus) -> Leaders {
    let subjects = &bus.subjects;
    let buckets = [subjects.jobs_bucket(), subjects.nodes_bucket()];
    let streams = [
        subjects.jobs_stream(),
        subjects.tasks_stream(),
        subjects.events_stream(),
    ];
    let buckets = buckets.map(|bucket| format!("KV_{bucket}"));
    Leaders::now(bus, streams.into_iter().chain(buckets)).await
}

fn moved(stream: &str) -> Ended {
    ended(format!("stream {stream} has got another leader"))
}

const LOST: &str = "the connection to the broker was lost meanwhile";

/// Ends when the client is connected anew. A broker that restarted has forgotten the consumers that listen for us, and
/// what it has not confirmed it never will; a client finds that out after half a minute of silence.
async fn connection_lost(client: async_nats::Client, connects_before: u64) {
    let mut looks = tokio::time::interval(CONNECTION_LOOKED_AT);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while connects(&client) == connects_before {
        looks.tick().await;
    }
}

fn connects(client: &async_nats::Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}
