//! What the service reads: records from the buckets, failed pulls from the events.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::DeliverPolicy;
use futures::TryStreamExt as _;
use serde::de::DeserializeOwned;

use super::Refusal;
use crate::bus::Bus;
use crate::domain::failure::FailureKind;
use crate::wire::api::{
    DEFAULT_PAGE, Description, FailedPull, Jobs, MAX_DESCRIBED_FAILURES, MAX_PAGE, Named, Nodes,
    Page,
};
use crate::wire::event::{Event, PullState, TaskEvent};
use crate::wire::record::JobRecord;

/// Bytes of records after which a page is cut, well below a broker's 1 MiB a message.
const PAGE_BYTES: usize = 512 * 1024;

pub(super) async fn job(bus: &Bus, named: Named) -> Result<JobRecord, Refusal> {
    let bucket = bus.subjects.jobs_bucket();
    let store = bus
        .jetstream
        .get_key_value(&bucket)
        .await
        .map_err(Refusal::unanswered)?;
    let value = store
        .get(named.name.token())
        .await
        .map_err(Refusal::unanswered)?;
    let value =
        value.ok_or_else(|| Refusal::not_found(format!("there is no job named {}", named.name)))?;
    serde_json::from_slice(&value).map_err(Refusal::unanswered)
}

pub(super) async fn jobs(bus: &Bus, page: Page) -> Result<Jobs, Refusal> {
    let (jobs, next) = list(bus, &bus.subjects.jobs_bucket(), page).await?;
    Ok(Jobs { jobs, next })
}

pub(super) async fn nodes(bus: &Bus, page: Page) -> Result<Nodes, Refusal> {
    let (nodes, next) = list(bus, &bus.subjects.nodes_bucket(), page).await?;
    Ok(Nodes { nodes, next })
}

/// One page of a bucket in the order of names, and where the next begins.
async fn list<T: DeserializeOwned>(
    bus: &Bus,
    bucket: &str,
    page: Page,
) -> Result<(Vec<T>, Option<String>), Refusal> {
    let limit = page.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Refusal::bad_input(format!(
            "limit: {limit} is not between 1 and {MAX_PAGE}"
        )));
    }
    let store = bus
        .jetstream
        .get_key_value(bucket)
        .await
        .map_err(Refusal::unanswered)?;
    let keys = store.keys().await.map_err(Refusal::unanswered)?;
    let keys: Vec<String> = keys.try_collect().await.map_err(Refusal::unanswered)?;
    let after = page.after.unwrap_or_default();
    let mut names: Vec<String> = keys.into_iter().map(|key| key.replace('_', ".")).collect();
    names.sort_unstable();
    names.retain(|name| *name > after);
    let (mut found, mut bytes, mut last) = (Vec::new(), 0, None);
    for name in &names {
        if found.len() as u64 >= u64::from(limit) || bytes >= PAGE_BYTES {
            return Ok((found, last));
        }
        let value = store
            .get(name.replace('.', "_"))
            .await
            .map_err(Refusal::unanswered)?;
        // One that was deleted meanwhile is not part of the list.
        let Some(value) = value else { continue };
        bytes += value.len();
        found.extend(serde_json::from_slice::<T>(&value));
        last = Some(name.clone());
    }
    Ok((found, None))
}

pub(super) async fn describe(bus: &Bus, named: Named) -> Result<Description, Refusal> {
    let job = job(bus, named).await?;
    let run = job.run();
    let mut ended: BTreeMap<(String, String), Option<FailedPull>> = BTreeMap::new();
    let stream = bus.subjects.events_stream();
    let filter = bus.subjects.task_events(Some(&job.metadata.name));
    let from = DeliverPolicy::ByStartSequence {
        start_sequence: job.status.events_after + 1,
    };
    bus.read_all(&stream, filter, from, |message| {
        let Ok(event) = serde_json::from_slice::<Event<TaskEvent>>(&message.payload) else {
            return;
        };
        let event = event.data;
        if event.run != run || !event.state.is_terminal() || ended.len() > MAX_TRACKED {
            return;
        }
        // The first terminal event is the truth.
        let pull = (event.node.to_string(), event.image.to_string());
        ended.entry(pull).or_insert_with(|| failed(event));
    })
    .await
    .map_err(Refusal::unanswered)?;
    let failed_pulls = ended
        .into_values()
        .flatten()
        .take(MAX_DESCRIBED_FAILURES)
        .collect();
    Ok(Description { job, failed_pulls })
}

/// Ended pulls a description keeps track of while it reads: 10,000 nodes with a hundred images.
const MAX_TRACKED: usize = 1_000_000;

fn failed(event: TaskEvent) -> Option<FailedPull> {
    let (kind, message) = match (event.state, event.failure) {
        (PullState::Failed, Some(failure)) => (failure.kind, failure.message),
        (PullState::Failed, None) => (FailureKind::Internal, String::new()),
        _ => return None,
    };
    Some(FailedPull {
        node: event.node,
        image: event.image,
        kind,
        message,
        attempts: event.attempt,
    })
}
