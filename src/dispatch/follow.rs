//! Reading a cell along: what a dispatcher knows before it leads, so that it need only catch up when it does.
//!
//! Records and ends of pulls are followed from the first to the newest. The tasks are not: of what is withdrawn no message
//! tells. They are few, and read when the dispatcher begins to lead ([`super::load`]).

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::kv::{Operation, ParseOperationError};
use futures::future::try_join;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ends::Ends;
use super::input::Input;
use super::load::{ends, task_event};
use crate::bus::Bus;
use crate::bus::read::{ReadError, Reading};
use crate::wire::record::{JobRecord, NodeRecord};

/// Pause before a cell that could not be read is read again.
const RETRY: Duration = Duration::from_secs(2);
/// Markers of deletions that are remembered. Who deletes a record removes its marker as well, so that only the last one
/// of a dispatcher that ended between the two is still there.
const MAX_MARKERS: usize = 1_024;

/// A cell as far as it was read.
pub(super) struct Follower {
    pub(super) nodes: Records<NodeRecord>,
    pub(super) jobs: Records<JobRecord>,
    pub(super) events: Reading,
    pub(super) ends: Ends,
}

impl Follower {
    /// Reads the records, and begins to read the events that they do not tell yet.
    pub(super) async fn begin(bus: &Bus) -> Result<Self, ReadError> {
        let stream = bus.subjects.events_stream();
        // Before the records: of a job whose record is not among them nothing was told by then.
        let (_, end) = ends(bus, &stream).await?;
        let (nodes, jobs) = try_join(
            Records::read(bus, bus.subjects.nodes_bucket()),
            Records::read(bus, bus.subjects.jobs_bucket()),
        )
        .await?;
        let start_sequence = unfinished_after(&jobs).unwrap_or(end).min(end) + 1;
        let from = DeliverPolicy::ByStartSequence { start_sequence };
        let events = bus.read(&stream, bus.subjects.task_events(None), from);
        Ok(Self {
            nodes,
            jobs,
            events: events.await?,
            ends: Ends::default(),
        })
    }

    /// Reads what was stored since, of the records.
    pub(super) async fn catch_up_with_records(&mut self) -> Result<(), ReadError> {
        try_join(self.nodes.catch_up(), self.jobs.catch_up()).await?;
        Ok(())
    }

    /// Reads what was stored since, of the events.
    pub(super) async fn catch_up_with_events(&mut self) -> Result<(), ReadError> {
        self.events.to_the_end().await?;
        while let Some(message) = self.events.next_stored().await? {
            keep(&mut self.ends, &message);
        }
        Ok(())
    }

    /// Takes what comes, until reading fails.
    async fn follow(&mut self) -> ReadError {
        loop {
            let taken = tokio::select! {
                next = self.nodes.reading.next() => next.map(|message| self.nodes.take(&message)),
                next = self.jobs.reading.next() => next.map(|message| {
                    self.jobs.take(&message);
                    self.ends.forget_to(known_to(&self.jobs));
                }),
                next = self.events.next() => next.map(|message| keep(&mut self.ends, &message)),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }
}

/// Somebody who follows the cell until it is to be led.
pub(super) struct Standby {
    following: JoinHandle<Option<Follower>>,
    leads: DropGuard,
}

impl Standby {
    pub(super) fn begin(bus: Bus) -> Self {
        let leads = CancellationToken::new();
        Self {
            following: tokio::spawn(stand_by(bus, leads.clone())),
            leads: leads.drop_guard(),
        }
    }

    /// Ends, with what is known by now.
    pub(super) async fn end(self) -> Option<Follower> {
        drop(self.leads);
        self.following.await.ok().flatten()
    }
}

async fn stand_by(bus: Bus, leads: CancellationToken) -> Option<Follower> {
    loop {
        let begun = tokio::select! {
            begun = Follower::begin(&bus) => begun,
            () = leads.cancelled() => return None,
        };
        let error = match begun {
            Ok(mut follower) => {
                tracing::debug!("following the cell");
                tokio::select! {
                    error = follower.follow() => error,
                    () = leads.cancelled() => return Some(follower),
                }
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "the cell cannot be followed; beginning anew");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = leads.cancelled() => return None,
        }
    }
}

/// The place in the event stream after which what is told of unfinished jobs is in no record yet.
fn unfinished_after(jobs: &Records<JobRecord>) -> Option<u64> {
    let unfinished = jobs.records().filter(|job| job.status.outcome.is_none());
    unfinished.map(|job| job.status.events_after).min()
}

/// The place in the event stream up to which nothing is wanted any more. A run that begins later has its events after those
/// that were told when any before it began, so that this holds for jobs whose records are yet to come, too.
fn known_to(jobs: &Records<JobRecord>) -> u64 {
    let newest = || jobs.records().map(|job| job.status.events_after).max();
    unfinished_after(jobs).or_else(newest).unwrap_or(0)
}

fn keep(ends: &mut Ends, message: &Message) {
    if let Some(Input::TaskEvent { event, sequence }) = task_event(message) {
        ends.add(*event, sequence);
    }
}

/// The records of a bucket.
pub(super) struct Records<T> {
    reading: Reading,
    /// By subject, each with its revision.
    kept: HashMap<String, (u64, T)>,
    /// The subjects of markers of deletions, the newest last.
    pub(super) markers: Vec<String>,
}

impl<T: DeserializeOwned> Records<T> {
    async fn read(bus: &Bus, bucket: String) -> Result<Self, ReadError> {
        let (stream, filter) = (format!("KV_{bucket}"), format!("$KV.{bucket}.>"));
        let reading = bus.read(&stream, filter, DeliverPolicy::LastPerSubject);
        let mut records = Self {
            reading: reading.await?,
            kept: HashMap::new(),
            markers: Vec::new(),
        };
        records.take_stored().await?;
        Ok(records)
    }

    async fn catch_up(&mut self) -> Result<(), ReadError> {
        self.reading.to_the_end().await?;
        self.take_stored().await
    }

    async fn take_stored(&mut self) -> Result<(), ReadError> {
        while let Some(message) = self.reading.next_stored().await? {
            self.take(&message);
        }
        Ok(())
    }

    fn take(&mut self, message: &Message) {
        let subject = message.subject.to_string();
        self.markers.retain(|marker| *marker != subject);
        if is_marker(message) {
            self.kept.remove(&subject);
            self.markers.push(subject);
            let old = self.markers.len().saturating_sub(MAX_MARKERS);
            self.markers.drain(..old);
            return;
        }
        let revision = message.info().map_or(0, |info| info.stream_sequence);
        match serde_json::from_slice(&message.payload) {
            Ok(record) => drop(self.kept.insert(subject, (revision, record))),
            Err(error) => {
                tracing::error!(subject, %error, "a record cannot be read; it is left alone");
                self.kept.remove(&subject);
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = &T> {
        self.kept.values().map(|(_, record)| record)
    }

    /// The records with their revisions, in the order in which they were written.
    pub(super) fn take_all(&mut self) -> Vec<(u64, T)> {
        let mut all: Vec<_> = std::mem::take(&mut self.kept).into_values().collect();
        all.sort_by_key(|(revision, _)| *revision);
        all
    }
}

fn is_marker(message: &Message) -> bool {
    let operation: Result<Operation, ParseOperationError> = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("KV-Operation"))
        .map_or(Ok(Operation::Put), |value| value.as_str().parse());
    matches!(operation, Ok(Operation::Delete | Operation::Purge))
}
