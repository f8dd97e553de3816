//! What a simulation is made of beside chance, as data: what users do, what goes wrong, and when. A plan that failed is
//! kept as such, so that it outlives every change of how plans are drawn ([`crate::faults`]).

use std::collections::BTreeMap;

use prewarm::dispatch::{Pause, Request};
use prewarm::domain::image::ImageRef;
use prewarm::domain::job::JobSpec;
use prewarm::domain::name::JobName;
use prewarm::domain::trace::{TraceContext, TraceOrigin};
use prewarm::wire::event::Problem;
use prewarm::wire::manifest::Submission;
use serde::{Deserialize, Serialize};

use crate::broker::Millis;

/// A job as a user asks for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    pub name: JobName,
    pub spec: JobSpec,
}

impl Job {
    fn submission(&self) -> Submission {
        // Some belong to a trace, by their name.
        let traced = self.name.as_str().bytes().map(u32::from).sum::<u32>() % 2 == 0;
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = context.parse::<TraceContext>().ok();
        Submission {
            name: self.name.clone(),
            labels: BTreeMap::new(),
            spec: self.spec.clone(),
            trace: context.filter(|_| traced).map(TraceOrigin::from),
        }
    }
}

/// What a user wants of the dispatcher.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Wish {
    Submit(Box<Job>),
    /// The jobs of one push.
    Push(Vec<Job>),
    Cancel(JobName),
    Delete(JobName),
    Pause(JobName),
    Resume(JobName),
    /// Something about a job that nobody can read.
    Unreadable(JobName),
}

impl Wish {
    /// As it arrives at the dispatcher.
    pub fn request(&self) -> Request {
        match self {
            Self::Submit(job) => Request::Submit(Box::new(job.submission())),
            Self::Push(jobs) => {
                Request::Push(jobs.iter().map(|job| Ok(job.submission())).collect())
            }
            Self::Cancel(name) => Request::Cancel(name.clone()),
            Self::Delete(name) => Request::Delete(name.clone()),
            Self::Pause(name) => Request::Pause(name.clone(), Pause::Pause),
            Self::Resume(name) => Request::Pause(name.clone(), Pause::Resume),
            Self::Unreadable(name) => Request::Unreadable {
                name: Some(name.clone()),
                problems: vec![Problem {
                    path: "spec".to_owned(),
                    message: "is wrong".to_owned(),
                }],
            },
        }
    }
}

/// Whom something happens to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// Whoever leads then.
    Leader,
    Dispatcher(usize),
    Worker(usize),
}

pub const MOMENTS: [Moment; 5] = [
    Moment::Record,
    Moment::Node,
    Moment::Release,
    Moment::Withdrawal,
    Moment::Word,
];

/// What a dispatcher has just begun when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Moment {
    Record,
    Node,
    Release,
    Withdrawal,
    Word,
}

/// One thing that a user does or that goes wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    Ask(Wish),
    /// The process dies, at once or before its so manyth effect from now, and begins again.
    Crash {
        who: Target,
        after_effects: Option<u32>,
        down: Millis,
    },
    /// A dispatcher dies right after it began its next effect of this kind.
    CrashAfter {
        who: Target,
        what: Moment,
        down: Millis,
    },
    /// SIGTERM, and another life later.
    Stop {
        who: Target,
        down: Millis,
    },
    /// The process stands still, and does not know it.
    Freeze {
        who: Target,
        still: Millis,
    },
    /// A worker is stopped and begins with other labels and capacity.
    Relabel {
        node: usize,
        pool: String,
        zone: String,
        capacity: u32,
    },
    /// A running worker's node gets another label, and takes no new pulls for a while.
    Hold {
        node: usize,
        pool: String,
        lasts: Millis,
    },
    Disconnect {
        who: Target,
        down: Millis,
    },
    LoseQuestions {
        who: Target,
        count: u32,
    },
    LoseAnswers {
        who: Target,
        count: u32,
    },
    RepeatAcks {
        who: Target,
        count: u32,
    },
    /// A worker's next answers to tasks are lost on their way.
    LoseAcks {
        node: usize,
        count: u32,
    },
    Delay {
        who: Target,
        late: Millis,
    },
    LoseCore {
        count: u32,
    },
    RestartBroker {
        down: Millis,
    },
    RegistryDown {
        down: Millis,
    },
    RegistryFlaky {
        lasts: Millis,
    },
    RegistryStalls {
        lasts: Millis,
    },
    MoveTag(ImageRef),
    /// An operator purges the task stream.
    PurgeTasks,
}

/// An action and its time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Planned {
    pub at: Millis,
    pub action: Action,
}

/// What a simulation is made of, beside chance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub dispatchers: usize,
    /// Pool, zone and capacity of each node, and when it begins.
    pub nodes: Vec<PlannedNode>,
    pub host_limit: Option<u32>,
    pub zone_limit: Option<u32>,
    pub actions: Vec<Planned>,
    /// When everything that goes wrong has ended.
    pub heals_at: Millis,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlannedNode {
    pub pool: String,
    pub zone: String,
    pub capacity: u32,
    pub begins: Millis,
}
