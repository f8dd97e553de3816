//! `describe`: one job, node or push rule with everything there is to say about it.

mod facts;
mod going;
mod job;
mod node;
#[cfg(test)]
mod tests;
mod waits;

use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::args::{DescribeArgs, Kind};
use super::exit::Failure;
use super::journal::{self, From, Journal};
use super::output::print;
use super::{now, rules, verbs};
use crate::bus::Bus;
use crate::domain::name::{JobName, NodeName};
use crate::wire::event::{Event, TaskEvent};
use crate::wire::record::{JobRecord, NodeRecord};
use crate::wire::worker::ProgressMessage;
use facts::RunFacts;
use going::GoingOn;
use node::NodePulls;

/// How long a job whose pulls go on is listened to: they tell of themselves twice a second.
const LISTEN: Duration = Duration::from_millis(1_200);

/// `prewarm describe`.
///
/// # Errors
/// The name is none, nothing has it, or the broker does not answer.
pub async fn run(bus: &Bus, args: &DescribeArgs) -> Result<(), Failure> {
    let text = match args.kind {
        Kind::Jobs => describe_job(bus, &verbs::job_name(&args.name)?).await?,
        Kind::Nodes => {
            let name = args
                .name
                .parse()
                .map_err(|error| Failure::input(format!("node name: {error}")))?;
            describe_node(bus, &name).await?
        }
        Kind::Rules => rules::described(bus, &args.name).await?,
    };
    print(&text)
}

async fn describe_job(bus: &Bus, name: &JobName) -> Result<String, Failure> {
    let key = name.token();
    let mut records: Vec<JobRecord> =
        journal::records(bus, &bus.subjects.jobs_bucket(), Some(&key)).await?;
    let record = records
        .pop()
        .ok_or_else(|| Failure::input(format!("there is no job {name}")))?;
    let until = Instant::now() + LISTEN;
    let progress = match record.status.counts.active {
        0 => None,
        _ => Some(journal::subscribe(bus, bus.subjects.progress_of(Some(name))).await?),
    };
    let nodes: Vec<NodeRecord> = journal::records(bus, &bus.subjects.nodes_bucket(), None).await?;
    let stream = journal::stream(bus, &bus.subjects.events_stream()).await?;
    let subjects = vec![bus.subjects.task_events(Some(name))];
    let mut events =
        Journal::open(&stream, subjects, From::After(record.status.events_after)).await?;
    let mut facts = RunFacts::default();
    while let Some(entry) = events.next_stored().await? {
        match serde_json::from_slice::<Event<TaskEvent>>(&entry.payload) {
            Ok(event) if event.data.run == record.run() => facts.add(&event.data),
            Ok(_) => {}
            Err(error) => tracing::warn!(subject = entry.subject, %error, "not an event of ours"),
        }
    }
    let going = match progress {
        Some(progress) => going_on(progress, &record, until).await.text(),
        None => String::new(),
    };
    Ok(job::text(&record, &nodes, &facts, now()) + &going)
}

/// What the workers say of the job's run until then.
async fn going_on(mut progress: Subscriber, record: &JobRecord, until: Instant) -> GoingOn {
    let mut going = GoingOn::default();
    while let Ok(Some(message)) = tokio::time::timeout_at(until, progress.next()).await {
        match serde_json::from_slice::<ProgressMessage>(&message.payload) {
            Ok(message) if message.run == record.run() => going.add(message),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(subject = message.subject.as_str(), %error, "not progress of ours");
            }
        }
    }
    going
}

async fn describe_node(bus: &Bus, name: &NodeName) -> Result<String, Failure> {
    let key = name.token();
    let mut records: Vec<NodeRecord> =
        journal::records(bus, &bus.subjects.nodes_bucket(), Some(&key)).await?;
    let record = records
        .pop()
        .ok_or_else(|| Failure::input(format!("there is no node {name}")))?;
    let stream = journal::stream(bus, &bus.subjects.events_stream()).await?;
    let subjects = vec![bus.subjects.task_events_of_node(name)];
    let mut events = Journal::open(&stream, subjects, From::Last).await?;
    let mut pulls = NodePulls::default();
    while let Some(entry) = events.next_stored().await? {
        if let Ok(event) = serde_json::from_slice::<Event<TaskEvent>>(&entry.payload) {
            pulls.add(&event);
        }
    }
    Ok(node::text(&record, &pulls, now()))
}
