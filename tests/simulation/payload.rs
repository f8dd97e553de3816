//! What the model's messages carry: the real values, not their bytes.

use std::sync::Arc;

use prewarm::dispatch::Request;
use prewarm::wire::event::{JobEvent, NodeEvent, TaskEvent};
use prewarm::wire::record::{JobRecord, NodeRecord};
use prewarm::wire::task::PullTask;

use crate::broker::{Broker, Retention, StreamConfig};

pub const JOBS: &str = "PREWARM_JOBS";
pub const TASKS: &str = "PREWARM_TASKS";
pub const EVENTS: &str = "PREWARM_EVENTS";
pub const JOB_RECORDS: &str = "KV_prewarm_jobs";
pub const NODE_RECORDS: &str = "KV_prewarm_nodes";
pub const LEASES: &str = "KV_prewarm_leases";
/// The lease's subject.
pub const LEASE: &str = "$KV.prewarm_leases.dispatcher";
/// The consumer of the requests.
pub const REQUESTS: &str = "dispatcher";

/// One message's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    Request(Arc<Request>),
    Task(Arc<PullTask>),
    TaskEvent(Arc<TaskEvent>),
    JobEvent {
        id: String,
        event: Arc<JobEvent>,
    },
    NodeEvent(Arc<NodeEvent>),
    JobRecord(Arc<JobRecord>),
    NodeRecord(Arc<NodeRecord>),
    Lease(Option<String>),
    /// A deleted key's.
    Marker,
}

/// The streams and buckets as `prewarm::bus::topology` makes them.
pub fn topology() -> Broker<Payload> {
    let stream = |name, retention, per_subject| StreamConfig {
        name,
        retention,
        per_subject,
        duplicate_window: 120_000,
    };
    let bucket = |name| stream(name, Retention::Limits, Some(1));
    Broker::new([
        stream(JOBS, Retention::WorkQueue, None),
        stream(TASKS, Retention::Limits, Some(1)),
        stream(EVENTS, Retention::Limits, None),
        bucket(JOB_RECORDS),
        bucket(NODE_RECORDS),
        bucket(LEASES),
    ])
}

/// The key of a job's record.
pub fn job_key(token: &str) -> String {
    format!("$KV.prewarm_jobs.{token}")
}

/// The key of a node's record.
pub fn node_key(token: &str) -> String {
    format!("$KV.prewarm_nodes.{token}")
}
