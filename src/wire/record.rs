//! What the buckets hold: jobs and nodes as anyone allowed may read them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::FailureGroup;
use super::task::Run;
use crate::domain::image::{Digest, ImageRef};
use crate::domain::job::JobSpec;
use crate::domain::name::{JobName, NodeName};
use crate::domain::node::NodeFacts;
use crate::domain::status::{Counts, JobPhase, NodeCounts, Outcome};
use crate::domain::time::Timestamp;
use crate::domain::trace::{TraceContext, TraceOrigin};

/// A job's name and history. `metadata` of the record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordMetadata {
    /// The job's name.
    pub name: JobName,
    /// The user's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names the job across deletions.
    pub uid: String,
    /// Counts what the job puts on nodes.
    pub generation: u32,
    /// When it was accepted first.
    pub created_at: Timestamp,
    /// The sequence of the last message in `PREWARM_JOBS` that was applied: a repeat is dropped.
    pub request_sequence: u64,
    /// The trace that its current round belongs to; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<RunTrace>,
}

/// Where the spans of a round hang. A later round of a `Never` job is a trace of its own, or one trace would grow for
/// as long as the job lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunTrace {
    /// The trace, and the span of whoever published the request.
    #[serde(flatten)]
    pub origin: TraceOrigin,
    /// When the round was asked for: the span of the round begins then.
    pub since: Timestamp,
}

impl RunTrace {
    /// What tasks hang under for whoever has no part in the trace: the span of who asked, or else that of the round.
    #[must_use]
    pub fn handed_on(&self, run: &Run) -> TraceContext {
        let own = run.span(&self.origin);
        TraceContext {
            span_id: self.origin.parent_id.unwrap_or(own.span_id),
            ..own
        }
    }

    /// Where the spans of the next round hang.
    #[must_use]
    pub fn of_round(&self, round: u32, since: Timestamp) -> Self {
        Self {
            origin: self.origin.another(&format!("round {round}")),
            since,
        }
    }
}

/// What an image's tag means in the current run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// The image as the job names it.
    pub image: ImageRef,
    /// Its digest; absent: nodes resolve for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How far a job is. Counts lag the events by at most a second while it runs, and are exact at its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Where it is in its life.
    pub phase: JobPhase,
    /// Whether a user paused it; parallelism 0 does the same without this.
    #[serde(default)]
    pub paused: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The round, from 1; only `Never` jobs have a second.
    pub round: u32,
    /// Its pulls by state.
    pub counts: Counts,
    /// Its nodes by state.
    pub nodes: NodeCounts,
    /// The job in one sentence.
    #[serde(default)]
    pub message: String,
    /// What its tags mean in this run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ResolvedImage>,
    /// Its failed pulls by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureGroup>,
    /// Compressed bytes its pulls of this run took from registries.
    #[serde(default)]
    pub bytes_registry: u64,
    /// Compressed bytes its pulls of this run took from elsewhere.
    #[serde(default)]
    pub bytes_elsewhere: u64,
    /// When the generation began; the deadline counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the current round began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_started_at: Option<Timestamp>,
    /// When every pull of the current round had ended, for a `Never` job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_completed_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The sequence in `PREWARM_EVENTS` after which this round's facts are found.
    #[serde(default)]
    pub events_after: u64,
}

/// A job as the bucket `prewarm_jobs` keeps it, under the job's token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRecord {
    /// `prewarm.dev/v1`.
    pub api_version: String,
    /// `PrewarmJob`.
    pub kind: String,
    /// Its name and history.
    pub metadata: RecordMetadata,
    /// What was asked.
    pub spec: JobSpec,
    /// How far it is.
    pub status: JobStatus,
}

impl JobRecord {
    /// Which run the record is at.
    #[must_use]
    pub fn run(&self) -> Run {
        Run {
            uid: self.metadata.uid.clone(),
            generation: self.metadata.generation,
            round: self.status.round,
        }
    }
}

/// Whether a node's worker is heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum NodePresence {
    /// It registered and its heartbeats arrive.
    Present,
    /// Nothing was heard of it for too long.
    Absent,
}

/// A node as the bucket `prewarm_nodes` keeps it, under the node's token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// The node's name.
    pub name: NodeName,
    /// What its worker said of it.
    #[serde(flatten)]
    pub facts: NodeFacts,
    /// Names the worker process that registered last.
    pub instance: String,
    /// Whether it is heard of.
    pub presence: NodePresence,
    /// Since when `presence` is so.
    pub since: Timestamp,
}
