//! Reading a cell back from the broker, as [`super::rebuild`] wants it.

use std::collections::{HashMap, HashSet};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;

use super::follow::Follower;
use super::input::Input;
use super::state::{Dispatcher, Settings};
use crate::bus::Bus;
use crate::bus::read::{ReadError, Reading};
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::wire::event::{Event, JobEvent, TaskEvent};
use crate::wire::record::JobRecord;
use crate::wire::task::PullTask;

/// A cell as it was read, and where its events go on.
pub(super) struct Loaded {
    pub(super) state: Dispatcher,
    /// The revision of each job's record, for compare-and-set.
    pub(super) revisions: HashMap<JobName, u64>,
    /// The events from here on.
    pub(super) events: Reading,
    /// The sequence of the newest task in the task stream; 0 if there is none.
    pub(super) newest_task: u64,
    /// Keys of records that were deleted and whose markers can go.
    pub(super) markers: Vec<String>,
}

/// Reads everything, or what is new to somebody who followed. The caller holds the lease, so nobody writes meanwhile but
/// workers, whose words are in the events.
pub(super) async fn load(
    bus: &Bus,
    settings: Settings,
    now: Timestamp,
    follower: Option<Follower>,
) -> Result<Loaded, ReadError> {
    let mut follower = match follower {
        Some(follower) => follower,
        None => Follower::begin(bus).await?,
    };
    let mut state = Dispatcher::new(settings);
    let mut feed = |input: Input| state.handle(now, input, &mut Vec::new());
    let stream = bus.subjects.events_stream();
    let (events_begin, events_end) = ends(bus, &stream).await?;
    feed(Input::EventsEnd {
        sequence: events_end,
    });
    follower.catch_up_with_records().await?;
    for (_, record) in follower.nodes.take_all() {
        feed(Input::NodeRecord(Box::new(record)));
    }
    let mut revisions = HashMap::new();
    let mut forgotten = HashSet::new();
    for (revision, record) in follower.jobs.take_all() {
        revisions.insert(record.metadata.name.clone(), revision);
        if is_forgotten(&record, events_begin) {
            forgotten.insert(record.metadata.name.clone());
        }
        feed(Input::JobRecord(Box::new(record)));
    }
    withdraw(bus, &forgotten).await?;
    let mut newest_task = 0;
    let tasks_stream = bus.subjects.tasks_stream();
    let tasks = bus.read_all(
        &tasks_stream,
        bus.subjects.tasks(),
        DeliverPolicy::All,
        |message| {
            if let Some((sequence, input)) = released(bus, &message) {
                newest_task = sequence;
                feed(input);
            }
        },
    );
    tasks.await?;
    let told_of_jobs = bus.read_all(
        &stream,
        bus.subjects.job_events(None),
        DeliverPolicy::LastPerSubject,
        |message| {
            if let Some(input) = told(&message) {
                feed(input);
            }
        },
    );
    told_of_jobs.await?;
    follower.catch_up_with_events().await?;
    let Follower {
        nodes,
        jobs,
        events,
        ends,
    } = follower;
    for (event, sequence) in ends.into_events() {
        let event = Box::new(event);
        feed(Input::TaskEvent { event, sequence });
    }
    Ok(Loaded {
        state,
        revisions,
        events,
        newest_task,
        markers: [nodes.markers, jobs.markers].concat(),
    })
}

/// Whether the event stream has dropped events that tell how far the job is: by its age, or a limit that an operator
/// set.
fn is_forgotten(record: &JobRecord, events_begin: u64) -> bool {
    let status = &record.status;
    let runs = status.outcome.is_none() && status.round_completed_at.is_none();
    runs && status.events_after.saturating_add(1) < events_begin
}

/// Takes the tasks of these jobs back. Which of them have ended cannot be told, and one that has would be waited for
/// for ever; without its message a pull is released again, and its worker finds the image.
async fn withdraw(bus: &Bus, jobs: &HashSet<JobName>) -> Result<(), ReadError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let name = bus.subjects.tasks_stream();
    let failed = |error: &dyn std::fmt::Display| ReadError {
        stream: name.clone(),
        reason: error.to_string(),
    };
    let tasks = bus.jetstream.get_stream_no_info(&name).await;
    let tasks = tasks.map_err(|error| failed(&error))?;
    for job in jobs {
        tracing::warn!(%job, stream = bus.subjects.events_stream(), "events that tell how far the job is are gone; raise the stream's limits if it has any; pulls without one are released again");
        let purge = tasks.purge().filter(bus.subjects.tasks_of_job(job));
        purge.await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The sequences of a stream's first and last message.
pub(super) async fn ends(bus: &Bus, stream: &str) -> Result<(u64, u64), ReadError> {
    let info = bus
        .jetstream
        .get_stream(stream)
        .await
        .map_err(|error| ReadError {
            stream: stream.to_owned(),
            reason: error.to_string(),
        })?;
    let state = &info.cached_info().state;
    Ok((state.first_sequence, state.last_sequence))
}

fn released(bus: &Bus, message: &Message) -> Option<(u64, Input)> {
    let sequence = message.info().ok()?.stream_sequence;
    let key = bus.subjects.parse_task(&message.subject)?;
    // A message nobody can read belongs to no run, and is withdrawn as one of a run that is over.
    let run = serde_json::from_slice::<PullTask>(&message.payload)
        .map(|task| task.run)
        .unwrap_or_else(|_| crate::wire::task::Run {
            uid: String::new(),
            generation: 0,
            round: 0,
        });
    Some((sequence, Input::Released { key, run, sequence }))
}

fn told(message: &Message) -> Option<Input> {
    let event: Event<JobEvent> = serde_json::from_slice(&message.payload).ok()?;
    Some(Input::JobEventTold {
        job: event.data.job?,
        kind: event.data.event,
        id: event.id,
    })
}

/// Reads one event about a pull. What cannot be read is no fact, and is said in the log.
pub(super) fn task_event(message: &Message) -> Option<Input> {
    let sequence = message.info().ok()?.stream_sequence;
    match serde_json::from_slice::<Event<TaskEvent>>(&message.payload) {
        Ok(event) => Some(Input::TaskEvent {
            event: Box::new(event.data),
            sequence,
        }),
        Err(error) => {
            let subject = message.subject.as_str();
            tracing::warn!(subject, sequence, %error, "an event cannot be read; it is passed over");
            None
        }
    }
}
