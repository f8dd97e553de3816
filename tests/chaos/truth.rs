//! What the broker holds, and what must be true of it (the invariants of the contract's section 8).

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use prewarm::bus::Bus;
use prewarm::domain::failure::FailureKind;
use prewarm::domain::job::CompletionType;
use prewarm::domain::status::{JobPhase, Outcome};
use prewarm::wire::event::{Event, JobEvent, JobEventKind, PullState, TaskEvent};
use prewarm::wire::record::{JobRecord, NodePresence, NodeRecord};
use prewarm::wire::task::{PullTask, Run};
use serde::de::DeserializeOwned;

use crate::jobs::{Jobs, Known};

/// One pull: job, run, node, image as the job names it.
pub(crate) type Pull = (String, (String, u32, u32), String, String);

/// The first end of a pull.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) state: PullState,
    pub(crate) digest: Option<String>,
    /// The event's place in the stream.
    pub(crate) sequence: u64,
    /// When the broker stored it, in seconds since the epoch.
    pub(crate) stored: i64,
}

/// Everything that was ever told.
#[derive(Default)]
pub(crate) struct Truth {
    read_to: u64,
    pub(crate) ends: BTreeMap<Pull, End>,
    /// Ends that came after the first, and were another one.
    pub(crate) other_ends: u64,
    /// By id, with the place of the first copy.
    told: BTreeMap<String, (Event<JobEvent>, u64)>,
    pub(crate) events: u64,
    /// Events that cannot be true.
    problems: Vec<String>,
}

/// What is in the buckets and the task stream now.
pub(crate) struct Now {
    pub(crate) records: BTreeMap<String, JobRecord>,
    nodes: Vec<NodeRecord>,
    tasks: Vec<PullTask>,
}

fn run_key(run: &Run) -> (String, u32, u32) {
    (run.uid.clone(), run.generation, run.round)
}

impl Truth {
    /// Reads what was told since the last time.
    pub(crate) async fn read(&mut self, bus: &Bus) -> Result<(), String> {
        let from = DeliverPolicy::ByStartSequence {
            start_sequence: self.read_to + 1,
        };
        let (stream, all) = (bus.subjects.events_stream(), bus.subjects.events());
        let prefix = |filter: String| filter.trim_end_matches('>').to_owned();
        let task_prefix = prefix(bus.subjects.task_events(None));
        let job_prefix = prefix(bus.subjects.job_events(None));
        let read = bus.read_all(&stream, all, from, |message| {
            let taken = if message.subject.starts_with(&task_prefix) {
                self.take_task_event(&message)
            } else if message.subject.starts_with(&job_prefix) {
                self.take_job_event(&message)
            } else {
                Ok(())
            };
            self.problems.extend(taken.err());
            self.events += 1;
            self.read_to = message
                .info()
                .map_or(self.read_to, |info| info.stream_sequence);
        });
        read.await.map_err(|error| error.to_string())
    }

    fn take_task_event(&mut self, message: &Message) -> Result<(), String> {
        let event: Event<TaskEvent> =
            serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        let info = message.info().map_err(|error| error.to_string())?;
        let data = event.data;
        if !data.state.is_terminal() {
            return Ok(());
        }
        let pull = (
            data.job.to_string(),
            run_key(&data.run),
            data.node.to_string(),
            data.image.to_string(),
        );
        let end = End {
            state: data.state,
            digest: data.result.map(|result| result.digest.to_string()),
            sequence: info.stream_sequence,
            stored: info.published.unix_timestamp(),
        };
        match self.ends.get(&pull) {
            Some(first) if first.state != end.state => self.other_ends += 1,
            Some(_) => {}
            None => drop(self.ends.insert(pull, end)),
        }
        Ok(())
    }

    fn take_job_event(&mut self, message: &Message) -> Result<(), String> {
        let event: Event<JobEvent> =
            serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        let sequence = message
            .info()
            .map_err(|error| error.to_string())?
            .stream_sequence;
        if let Some(counts) = &event.data.counts
            && !counts.add_up()
        {
            return Err(format!(
                "the counts of {} do not add up: {counts:?}",
                event.id
            ));
        }
        if let Some((first, _)) = self.told.get(&event.id) {
            // A fact that is told again is the same fact.
            if first.data.outcome != event.data.outcome || first.data.run != event.data.run {
                return Err(format!(
                    "{} was told in two ways: {first:?}, {event:?}",
                    event.id
                ));
            }
            return Ok(());
        }
        self.told.insert(event.id.clone(), (event, sequence));
        Ok(())
    }

    fn ends_of<'a>(
        &'a self,
        record: &JobRecord,
    ) -> impl Iterator<Item = (&'a Pull, &'a End)> + use<'a> {
        let (job, run) = (record.metadata.name.to_string(), run_key(&record.run()));
        self.ends
            .iter()
            .filter(move |((of, in_run, _, _), _)| *of == job && *in_run == run)
    }

    /// The images that every node has by its own word, in runs that still count: node, image, digest.
    pub(crate) fn warm(&self, now: &Now) -> Vec<(String, String, String, i64)> {
        let mut warm = Vec::new();
        for record in now.records.values() {
            for ((_, _, node, image), end) in self.ends_of(record) {
                if let (PullState::Succeeded, Some(digest)) = (end.state, &end.digest) {
                    warm.push((node.clone(), image.clone(), digest.clone(), end.stored));
                }
            }
        }
        warm
    }

    /// Whether everything has come to rest; else what has not.
    pub(crate) fn rests(&self, now: &Now, jobs: &Jobs, waiting: u64) -> Result<(), String> {
        if waiting > 0 {
            return Err(format!("{waiting} requests wait"));
        }
        let present = now
            .nodes
            .iter()
            .filter(|node| node.presence == NodePresence::Present)
            .count();
        if present != 3 {
            return Err(format!("{present} nodes are present"));
        }
        for (name, known) in &jobs.known {
            match (now.records.get(name), known.deleted) {
                (None, true) => {}
                (Some(_), true) => return Err(format!("{name} was deleted and is there")),
                (None, false) => return Err(format!("{name} is not there")),
                (Some(record), false) => is_at_rest(record)?,
            }
        }
        let live: BTreeSet<&str> = now
            .records
            .values()
            .filter(|record| record.status.outcome.is_none())
            .map(|record| record.metadata.name.as_str())
            .collect();
        match now
            .tasks
            .iter()
            .find(|task| !live.contains(task.job.as_str()))
        {
            Some(task) => Err(format!("a task of {} is left", task.job)),
            None => Ok(()),
        }
    }

    /// What must be true of a cell at rest.
    pub(crate) fn broken(&self, now: &Now, jobs: &Jobs) -> Vec<String> {
        let mut broken = self.problems.clone();
        for record in now.records.values() {
            broken.extend(self.broken_in(record));
            if !jobs.known.contains_key(record.metadata.name.as_str()) {
                broken.push(format!("nobody asked for {}", record.metadata.name));
            }
        }
        for (name, known) in &jobs.known {
            broken.extend(self.lost(name, known, now));
        }
        let mut ended = BTreeSet::new();
        for (event, _) in self.told.values() {
            let Some(run) = &event.data.run else { continue };
            let ends = matches!(
                event.data.event,
                JobEventKind::Completed | JobEventKind::Cancelled
            );
            if ends && !ended.insert((run.uid.clone(), run.generation)) {
                broken.push(format!("{:?} of {run:?} ended twice", event.data.job));
            }
        }
        broken
    }

    /// A job that was accepted and is not there as it should be.
    fn lost(&self, name: &str, known: &Known, now: &Now) -> Option<String> {
        let answered = |(event, _): &(Event<JobEvent>, u64)| {
            event
                .data
                .request_sequence
                .is_some_and(|sequence| sequence >= known.last)
                && event
                    .data
                    .job
                    .as_ref()
                    .is_none_or(|job| job.as_str() == name)
        };
        let record = now.records.get(name);
        let applied = record.is_some_and(|record| record.metadata.request_sequence >= known.last);
        if known.deleted || applied || self.told.values().any(answered) {
            return None;
        }
        Some(format!(
            "request {} for {name} was stored and never answered: {record:?}",
            known.last
        ))
    }

    fn broken_in(&self, record: &JobRecord) -> Vec<String> {
        let mut broken = Vec::new();
        let (name, status) = (&record.metadata.name, &record.status);
        let counts = status.counts;
        if !counts.add_up() {
            broken.push(format!("the counts of {name} do not add up: {counts:?}"));
        }
        let Some(outcome) = status.outcome else {
            return broken;
        };
        let (kind, token) = match outcome {
            Outcome::Cancelled => (JobEventKind::Cancelled, "cancelled"),
            _ => (JobEventKind::Completed, "completed"),
        };
        let id = format!(
            "{}.{}.{token}",
            record.metadata.uid, record.metadata.generation
        );
        let Some((event, end)) = self.told.get(&id) else {
            broken.push(format!(
                "{name} ended as {outcome:?} and {kind:?} was not told"
            ));
            return broken;
        };
        if event.data.counts != Some(counts) || event.data.outcome != Some(outcome) {
            broken.push(format!(
                "{name}: the record says {status:?}, the event {:?}",
                event.data
            ));
        }
        // What the dispatcher ended by itself may have had another end that nobody waited for.
        let by_dispatcher = |kind: FailureKind| {
            !matches!(
                kind,
                FailureKind::NodeAbsent | FailureKind::DeadlineExceeded
            )
        };
        let all_told = status
            .failures
            .iter()
            .all(|group| by_dispatcher(group.kind));
        if counts.cancelled == 0 && all_told {
            let before: Vec<&End> = self
                .ends_of(record)
                .map(|(_, end)| end)
                .filter(|told| told.sequence < *end)
                .collect();
            let succeeded = before
                .iter()
                .filter(|end| end.state == PullState::Succeeded)
                .count();
            let told = (
                u32::try_from(succeeded).unwrap(),
                u32::try_from(before.len() - succeeded).unwrap(),
            );
            if told != (counts.succeeded, counts.failed) {
                broken.push(format!(
                    "{name}: events say {told:?}, the record {status:?}"
                ));
            }
        }
        broken
    }

    /// Jobs with more pulls released and unfinished than they may have. The tasks were read before the events, so
    /// what is unfinished by both was so when the tasks were read.
    pub(crate) fn beyond_parallelism(&self, tasks: &[PullTask], jobs: &Jobs) -> Vec<String> {
        let mut unfinished: BTreeMap<&str, u32> = BTreeMap::new();
        for task in tasks {
            let pull = (
                task.job.to_string(),
                run_key(&task.run),
                task.node.to_string(),
                task.image.to_string(),
            );
            if !self.ends.contains_key(&pull) {
                *unfinished.entry(task.job.as_str()).or_default() += 1;
            }
        }
        let most = |job: &str| jobs.known.get(job).and_then(|known| known.parallelism);
        let beyond = unfinished
            .into_iter()
            .filter(|(job, count)| most(job).is_some_and(|most| *count > most));
        beyond
            .map(|(job, count)| {
                format!(
                    "{job} has {count} pulls at once, and may have {:?}",
                    most(job)
                )
            })
            .collect()
    }
}

fn is_at_rest(record: &JobRecord) -> Result<(), String> {
    let status = &record.status;
    // Only a standing job rests without an end; one whose tags are being resolved has nothing to do yet.
    let waits = record.spec.completion_policy.kind == CompletionType::Never
        && status.phase != JobPhase::Resolving
        && status.counts.pending == 0
        && status.counts.active == 0;
    if status.outcome.is_some() || waits {
        return Ok(());
    }
    Err(format!(
        "{} goes on: {:?} {:?}",
        record.metadata.name, status.phase, status.counts
    ))
}

impl Now {
    pub(crate) async fn read(bus: &Bus) -> Result<Self, String> {
        let records: Vec<JobRecord> = bucket(bus, &bus.subjects.jobs_bucket()).await?;
        let records = records
            .into_iter()
            .map(|record| (record.metadata.name.to_string(), record));
        Ok(Self {
            records: records.collect(),
            nodes: bucket(bus, &bus.subjects.nodes_bucket()).await?,
            tasks: tasks(bus).await?,
        })
    }
}

/// Everything in the task stream.
pub(crate) async fn tasks(bus: &Bus) -> Result<Vec<PullTask>, String> {
    values(bus, &bus.subjects.tasks_stream(), bus.subjects.tasks()).await
}

/// Requests that no dispatcher has taken.
pub(crate) async fn waiting_requests(bus: &Bus) -> Result<u64, String> {
    let stream = bus.jetstream.get_stream(bus.subjects.jobs_stream()).await;
    Ok(stream
        .map_err(|error| error.to_string())?
        .cached_info()
        .state
        .messages)
}

async fn bucket<T: DeserializeOwned>(bus: &Bus, bucket: &str) -> Result<Vec<T>, String> {
    values(bus, &format!("KV_{bucket}"), format!("$KV.{bucket}.>")).await
}

async fn values<T: DeserializeOwned>(
    bus: &Bus,
    stream: &str,
    filter: String,
) -> Result<Vec<T>, String> {
    let mut read = Vec::new();
    let reading = bus.read_all(stream, filter, DeliverPolicy::LastPerSubject, |message| {
        if !message.payload.is_empty() {
            read.push(serde_json::from_slice(&message.payload).expect("a message of its type"));
        }
    });
    reading.await.map_err(|error| error.to_string())?;
    Ok(read)
}
