//! What can happen to a dispatcher, and what it can ask of the world.

use std::collections::BTreeSet;

use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::wire::event::{JobEvent, JobEventKind, NodeEvent, Problem, TaskEvent};
use crate::wire::manifest::{Rejection, Submission};
use crate::wire::record::{JobRecord, NodeRecord, ResolvedImage, RunTrace};
use crate::wire::subject::PullKey;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::{Heartbeat, Registration, Revocation};

/// Names the registration a reply belongs to; made by the shell, opaque to the state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplyToken(pub u64);

/// Whether a job is to stop releasing or to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// Release nothing more.
    Pause,
    /// Release again.
    Resume,
}

/// What a user asked for, as it was taken from `PREWARM_JOBS`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A new job, an edit, or another run.
    Submit(Box<Submission>),
    /// End a job.
    Cancel(JobName),
    /// End and forget a job.
    Delete(JobName),
    /// Pause or resume a job.
    Pause(JobName, Pause),
    /// A push of an image: the jobs that rules make of it, or why one makes none.
    Push(Vec<Result<Submission, Rejection>>),
    /// Something that cannot be read.
    Unreadable {
        /// The job it names, if that much could be read.
        name: Option<JobName>,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

/// What can happen. The first six are facts read back when a dispatcher takes over; they cause no
/// effects until `Lead`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A node's record.
    NodeRecord(Box<NodeRecord>),
    /// A job's record; every node's record comes before the first.
    JobRecord(Box<JobRecord>),
    /// A pull's message is in the task stream: found there, or just stored.
    Released {
        /// Which pull.
        key: PullKey,
        /// Of which run.
        run: Run,
        /// Its sequence in the task stream.
        sequence: u64,
    },
    /// The newest sequence in the event stream before anything new begins: a run that begins later
    /// has its events after it.
    EventsEnd {
        /// The sequence; 0 for an empty stream.
        sequence: u64,
    },
    /// The last event of a kind that was told of a job.
    JobEventTold {
        /// The job.
        job: JobName,
        /// The kind.
        kind: JobEventKind,
        /// The event's id.
        id: String,
    },
    /// Something happened to a pull; also while leading.
    TaskEvent {
        /// The fact.
        event: Box<TaskEvent>,
        /// Its sequence in the event stream.
        sequence: u64,
    },
    /// Everything was read back: begin to act.
    Lead,
    /// A user asks for something.
    Request {
        /// What is asked.
        request: Request,
        /// The message's sequence in `PREWARM_JOBS`.
        sequence: u64,
    },
    /// The registry was asked what a job's tags mean.
    Resolved {
        /// The job.
        job: JobName,
        /// The run it was asked for.
        run: Run,
        /// An entry for each image, in the job's order.
        images: Vec<ResolvedImage>,
    },
    /// A worker says "here I am".
    Registered {
        /// Its node.
        node: NodeName,
        /// What it says.
        registration: Box<Registration>,
        /// Where the answer goes.
        reply: ReplyToken,
    },
    /// A worker says that it lives.
    Heartbeat {
        /// Its node.
        node: NodeName,
        /// What it holds.
        heartbeat: Heartbeat,
    },
    /// The task stream was looked through: these were the pulls with a message in it. One that is
    /// out and has none was removed by somebody else (an operator's purge, a lost disk).
    Kept {
        /// The pulls.
        keys: BTreeSet<PullKey>,
        /// The newest message this dispatcher knew of before it looked: later ones prove nothing.
        as_of: u64,
    },
    /// Nothing was listened to since then, because the broker took that long to do what was asked of it. Whoever was
    /// not heard of meanwhile may have spoken.
    Stalled {
        /// Since when.
        since: Timestamp,
    },
    /// Time passed.
    Tick,
}

/// What the world is asked for, to be done in this order. Each is idempotent: doing it twice is
/// doing it once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Write a job's record over the revision that was last read or written.
    PutRecord(Box<JobRecord>),
    /// Delete a job's record.
    DeleteRecord(JobName),
    /// Write a node's record.
    PutNode(Box<NodeRecord>),
    /// Delete a node's record and its consumer.
    DeleteNode(NodeName),
    /// Tell a fact about a job.
    TellJob {
        /// The stable id.
        id: String,
        /// When it happened.
        time: Timestamp,
        /// The fact.
        event: Box<JobEvent>,
        /// The trace of the job's round.
        trace: Option<RunTrace>,
    },
    /// Tell a fact about a node.
    TellNode {
        /// The stable id.
        id: String,
        /// When it happened.
        time: Timestamp,
        /// The fact.
        event: Box<NodeEvent>,
    },
    /// Tell the end of a pull that no worker has ended; before the record that counts it, so that whoever reads back
    /// finds the pull ended too.
    TellPull {
        /// When it happened.
        time: Timestamp,
        /// The fact.
        event: Box<TaskEvent>,
        /// The trace of the job's round.
        traceparent: Option<TraceContext>,
    },
    /// Store a pull's message; there is none on its subject now. Who stores it may put
    /// spans of its own between it and the one that it hangs under.
    Release(Box<PullTask>),
    /// Remove every message of a job from the task stream.
    WithdrawJob(JobName),
    /// Remove one pull's message from the task stream.
    WithdrawPull(PullKey),
    /// Tell a worker to stop pulls and to take pins back.
    Revoke {
        /// The worker's node.
        node: NodeName,
        /// What to stop and take back.
        revocation: Revocation,
    },
    /// Ask the registry what tags mean; the answer is [`Input::Resolved`].
    Resolve {
        /// The job.
        job: JobName,
        /// The run it is for.
        run: Run,
        /// The images, in the job's order.
        images: Vec<ImageRef>,
        /// Names of credentials in the secrets directory.
        pull_secrets: Vec<String>,
        /// The trace of the round.
        trace: Option<RunTrace>,
    },
    /// Make the node's consumer if it is missing, then answer its worker.
    Welcome {
        /// The node.
        node: NodeName,
        /// Make the consumer anew even if there is one.
        remake: bool,
        /// The sequence in the task stream it begins at. Never "whatever comes next": a request that
        /// is held up would then make a consumer that skips what was stored in the meantime.
        start: u64,
        /// Where the answer goes.
        reply: ReplyToken,
    },
    /// Take a request off `PREWARM_JOBS`.
    Acknowledge {
        /// Its sequence there.
        sequence: u64,
    },
}

impl Effect {
    /// Whether what was sent before has to be confirmed before this is done.
    pub(super) fn is_barrier(&self) -> bool {
        match self {
            Self::Release(_)
            | Self::TellJob { .. }
            | Self::TellNode { .. }
            | Self::TellPull { .. }
            | Self::PutNode(_)
            | Self::Resolve { .. }
            | Self::Revoke { .. } => false,
            Self::PutRecord(_)
            | Self::DeleteRecord(_)
            | Self::DeleteNode(_)
            | Self::WithdrawJob(_)
            | Self::WithdrawPull(_)
            | Self::Welcome { .. }
            | Self::Acknowledge { .. } => true,
        }
    }
}
