//! Facts, told once and kept: CloudEvents 1.0 in structured JSON.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::task::Run;
use crate::domain::failure::FailureKind;
use crate::domain::image::{Digest, ImageRef};
use crate::domain::name::{JobName, NodeName};
use crate::domain::status::{Counts, JobPhase, NodeCounts, Outcome};
use crate::domain::time::Timestamp;

/// The media type of an event (CloudEvents 1.0, JSON event format, section 3).
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// What every event type begins with.
const TYPE_PREFIX: &str = "dev.prewarm";

/// An event's envelope (CloudEvents 1.0, section 3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Event<T> {
    /// Always `1.0`.
    pub specversion: String,
    /// The same for every copy of one fact: drop a repeat by it.
    pub id: String,
    /// Who says it: `/<prefix>/dispatcher` or `/<prefix>/worker/<node>`.
    pub source: String,
    /// What happened, such as `dev.prewarm.job.completed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to: the job, the node, or job/node/image.
    pub subject: String,
    /// When, by the clock of the teller.
    pub time: Timestamp,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The fact.
    pub data: T,
}

impl<T> Event<T> {
    /// Wraps a fact. `kind` is the part after `dev.prewarm.`, such as `job.completed`.
    #[must_use]
    pub fn new(
        kind: &str,
        id: String,
        source: String,
        subject: String,
        time: Timestamp,
        data: T,
    ) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id,
            source,
            kind: format!("{TYPE_PREFIX}.{kind}"),
            subject,
            time,
            datacontenttype: "application/json".to_owned(),
            data,
        }
    }
}

/// What happened to a pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullState {
    /// An attempt began.
    Started,
    /// An attempt failed, and another follows.
    Retrying,
    /// The image is on the node. Terminal.
    Succeeded,
    /// The pull was given up. Terminal.
    Failed,
}

impl PullState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Started, Self::Retrying, Self::Succeeded, Self::Failed];

    /// Whether nothing follows in this run.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// The state's word in event types.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Why an attempt failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FailureReport {
    /// What decides whether another attempt follows.
    pub kind: FailureKind,
    /// What happened, where, and what to do.
    pub message: String,
}

/// What a pull found and did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullResult {
    /// The digest the names now point at.
    pub digest: Digest,
    /// Whether everything was there before.
    pub already_present: bool,
    /// Compressed bytes from the registry the reference names.
    pub bytes_registry: u64,
    /// Compressed bytes from elsewhere.
    pub bytes_elsewhere: u64,
    /// Compressed bytes that were there before.
    pub bytes_present: u64,
    /// Milliseconds to learn what to fetch.
    pub resolve_millis: u64,
    /// Milliseconds to fetch it.
    pub download_millis: u64,
    /// Milliseconds to unpack it.
    pub unpack_millis: u64,
    /// Who did it: `native` (the worker itself), `containerd` (which unpacked what the worker brought), `cri` (the runtime
    /// pulled by itself, and says no bytes) or `simulated`; absent if nothing had to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
    /// Why it was not the native engine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine_reason: String,
}

/// A fact about one pull; the envelope's type is `dev.prewarm.task.<state>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskEvent {
    /// The job.
    pub job: JobName,
    /// Which run of it.
    #[serde(flatten)]
    pub run: Run,
    /// The node.
    pub node: NodeName,
    /// The image as the job names it.
    pub image: ImageRef,
    /// What happened.
    pub state: PullState,
    /// Which attempt, from 1; 0 if the dispatcher gave the pull up and no worker has told of an attempt.
    pub attempt: u32,
    /// Why it failed, when `retrying` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureReport>,
    /// When the next attempt follows, when `retrying`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// What was found and done, when `succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<PullResult>,
    /// The job's sandbox labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The job's sandbox annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl TaskEvent {
    /// The event's stable id. All terminal facts of one pull share one: the first is the truth.
    #[must_use]
    pub fn id(&self) -> String {
        let Run {
            uid,
            generation,
            round,
        } = &self.run;
        let what = if self.state.is_terminal() {
            "end".to_owned()
        } else {
            format!("{}-{}", self.state.as_str(), self.attempt)
        };
        format!(
            "{uid}.{generation}.{round}.{}.{}.{what}",
            self.node.token(),
            self.image.token()
        )
    }

    /// Wraps the fact as this node's worker tells it.
    #[must_use]
    pub fn into_event(self, prefix: &str, time: Timestamp) -> Event<Self> {
        let kind = format!("task.{}", self.state.as_str());
        let source = format!("/{prefix}/worker/{}", self.node);
        let subject = format!("{}/{}/{}", self.job, self.node, self.image);
        Event::new(&kind, self.id(), source, subject, time, self)
    }
}

/// What happened to a job; the last token of its subject and the last word of its type.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum JobEventKind {
    /// A manifest became a job, or an edit of one.
    Accepted,
    /// A manifest or command could not be carried out; `problems` says why.
    Rejected,
    /// The first pull of a run may be released.
    Started,
    /// The job ended by itself; `outcome` says how.
    Completed,
    /// A user ended it.
    Cancelled,
    /// It is forgotten, by a user or its time to live.
    Deleted,
    /// Every pull of a `Never` job's round has ended.
    RoundCompleted,
    /// A user paused it.
    Paused,
    /// A user resumed it.
    Resumed,
}

impl JobEventKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Rejected,
        Self::Started,
        Self::Completed,
        Self::Cancelled,
        Self::Deleted,
        Self::RoundCompleted,
        Self::Paused,
        Self::Resumed,
    ];

    /// The kind's subject token.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
            Self::RoundCompleted => "round-completed",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }
}

/// One thing wrong with a message, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The path of the field, such as `spec.parallelism`; empty for the message as a whole.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Failed pulls of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureGroup {
    /// Why they failed.
    pub kind: FailureKind,
    /// How many pulls.
    pub pulls: u32,
    /// The nodes, at most [`MAX_NODES_PER_GROUP`]; the events have every one.
    pub nodes: Vec<NodeName>,
    /// What one of them said.
    pub message: String,
}

/// Most node names one [`FailureGroup`] lists, so that a record of 10,000 failures stays under the
/// broker's 1 MiB.
pub const MAX_NODES_PER_GROUP: usize = 50;

/// Most problems that a rejection lists: a message may have one in every few bytes.
pub const MAX_PROBLEMS: usize = 100;
/// Longest path and longest message of a problem in a rejection, in bytes: both quote what was sent.
pub const MAX_PROBLEM_BYTES: usize = 500;

fn cut(text: &mut String) {
    if text.len() > MAX_PROBLEM_BYTES {
        let mut end = MAX_PROBLEM_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

/// A fact about a job; the envelope's type is `dev.prewarm.job.<kind>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobEvent {
    /// The job; absent when a rejected manifest had no readable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobName>,
    /// Which run of it; absent when rejected.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// What happened.
    pub event: JobEventKind,
    /// The sequence, in `PREWARM_JOBS`, of the message that caused it; absent when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_sequence: Option<u64>,
    /// Where the job is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Its pulls by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Its nodes by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Milliseconds from the start of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_millis: Option<u64>,
    /// Compressed bytes its pulls took from registries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_registry: Option<u64>,
    /// Compressed bytes its pulls took from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_elsewhere: Option<u64>,
    /// Its failed pulls by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureGroup>,
    /// What was wrong with a rejected message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// The job in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The job's labels, and its sandbox labels where it has none of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The job's sandbox annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl JobEvent {
    /// A message that was not carried out: its sequence in `PREWARM_JOBS`, and what is wrong with it: the first
    /// [`MAX_PROBLEMS`], each cut to [`MAX_PROBLEM_BYTES`].
    #[must_use]
    pub fn rejected(job: Option<JobName>, sequence: u64, mut problems: Vec<Problem>) -> Self {
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        for Problem { path, message } in &mut problems {
            cut(path);
            cut(message);
        }
        if more > 0 {
            problems.push(Problem {
                path: String::new(),
                message: format!("and {more} more problems"),
            });
        }
        Self {
            job,
            run: None,
            event: JobEventKind::Rejected,
            request_sequence: Some(sequence),
            phase: None,
            outcome: None,
            counts: None,
            nodes: None,
            duration_millis: None,
            bytes_registry: None,
            bytes_elsewhere: None,
            failures: Vec::new(),
            problems,
            message: "the request was not carried out".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// A fact about a node; the envelope's type is `dev.prewarm.node.joined` or `….left`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvent {
    /// The node.
    pub node: NodeName,
    /// What happened.
    pub event: NodeEventKind,
    /// Its labels then.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What happened to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeEventKind {
    /// Its worker registered, for the first time or after an absence.
    Joined,
    /// Nothing was heard of it for too long.
    Left,
}

impl NodeEventKind {
    /// The kind's subject token.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Left => "left",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_fits_into_a_message_whatever_was_sent() {
        // A control character is six bytes in JSON.
        let problem = Problem {
            path: "\u{1}".repeat(2_000),
            message: "\u{1}".repeat(2_000),
        };
        let event = JobEvent::rejected(None, 1, vec![problem; 300]);
        assert_eq!(event.problems.len(), MAX_PROBLEMS + 1);
        let last = event.problems.last().unwrap();
        assert_eq!(last.message, "and 200 more problems");
        assert!(serde_json::to_vec(&event).unwrap().len() < 1 << 20);
        let problem = Problem {
            path: String::new(),
            message: "é".repeat(MAX_PROBLEM_BYTES),
        };
        let event = JobEvent::rejected(None, 1, vec![problem]);
        assert!(event.problems[0].message.ends_with("é…"));
    }
}
