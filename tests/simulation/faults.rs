//! What users do and what goes wrong, planned from the seed before the simulation begins, so that
//! parts of it can be left out when a failure is shrunk.

use std::collections::{BTreeMap, BTreeSet};

use prewarm::dispatch::{Pause, Request};
use prewarm::domain::image::ImageRef;
use prewarm::domain::job::{Amount, CompletionType, FailurePolicy, ImagePullPolicy, JobSpec};
use prewarm::domain::name::JobName;
use prewarm::domain::selector::NodeSelector;
use prewarm::domain::trace::{TraceContext, TraceOrigin};
use prewarm::wire::event::Problem;
use prewarm::wire::manifest::Submission;

use crate::broker::Millis;
use crate::rng::Rng;

/// Whom something happens to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Whoever leads then.
    Leader,
    Dispatcher(usize),
    Worker(usize),
}

const MOMENTS: [Moment; 5] = [
    Moment::Record,
    Moment::Node,
    Moment::Release,
    Moment::Withdrawal,
    Moment::Word,
];

/// What a dispatcher has just begun when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    Record,
    Node,
    Release,
    Withdrawal,
    Word,
}

/// One thing that a user does or that goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Request(Request),
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
        pool: &'static str,
        zone: &'static str,
        capacity: u32,
    },
    /// A running worker's node gets another label, and takes no new pulls for a while.
    Hold {
        node: usize,
        pool: &'static str,
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    pub at: Millis,
    pub action: Action,
}

/// What a simulation is made of, beside chance.
#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
pub struct PlannedNode {
    pub pool: &'static str,
    pub zone: &'static str,
    pub capacity: u32,
    pub begins: Millis,
}

pub const POOLS: [&str; 2] = ["blue", "green"];
const ZONES: [&str; 2] = ["z1", "z2"];
const IMAGES: [&str; 6] = [
    "r1.example/a:1",
    "r1.example/b:1",
    "r1.example/c:1",
    "r2.example/d:1",
    "r2.example/e:1",
    MISSING,
];
/// No registry has it.
pub const MISSING: &str = "r2.example/gone:1";

impl Plan {
    /// Everything that a seed stands for.
    pub fn of(rng: &mut Rng) -> Self {
        let dispatchers = 2 + rng.below(2);
        let heals_at = rng.range(60, 500) * 1_000;
        let node = |rng: &mut Rng| PlannedNode {
            pool: rng.pick(&POOLS),
            zone: rng.pick(&ZONES),
            capacity: u32::try_from(rng.range(1, 4)).unwrap_or(1),
            begins: if rng.percent(70) {
                rng.range(0, 5_000)
            } else {
                rng.range(0, heals_at)
            },
        };
        let nodes = (0..rng.range(1, 9)).map(|_| node(rng)).collect::<Vec<_>>();
        let limit = |rng: &mut Rng| {
            rng.percent(30)
                .then(|| u32::try_from(rng.range(1, 5)).unwrap_or(1))
        };
        let (host_limit, zone_limit) = (limit(rng), limit(rng));
        let mut planner = Planner {
            rng,
            dispatchers,
            nodes: nodes.len(),
            heals_at,
        };
        let actions = planner.actions();
        Self {
            dispatchers,
            nodes,
            host_limit,
            zone_limit,
            actions,
            heals_at,
        }
    }
}

struct Planner<'a> {
    rng: &'a mut Rng,
    dispatchers: usize,
    nodes: usize,
    heals_at: Millis,
}

impl Planner<'_> {
    fn actions(&mut self) -> Vec<Planned> {
        let mut actions = Vec::new();
        let requests = self.rng.range(3, 60);
        let faults = if self.rng.percent(10) {
            0
        } else {
            self.rng.range(1, 90)
        };
        for _ in 0..requests {
            let at = self.rng.range(0, self.heals_at);
            let action = Action::Request(self.request());
            actions.push(Planned { at, action });
        }
        for _ in 0..faults {
            let at = self.rng.range(3_000, self.heals_at);
            let action = self.fault();
            actions.push(Planned { at, action });
        }
        let purges = if self.rng.percent(30) {
            self.rng.range(1, 8)
        } else {
            0
        };
        for _ in 0..purges {
            let at = self.rng.range(3_000, self.heals_at);
            let action = Action::PurgeTasks;
            actions.push(Planned { at, action });
        }
        actions.sort_by_key(|planned| planned.at);
        actions
    }

    fn job(&mut self) -> JobName {
        let number = self.rng.below(5);
        format!("j{number}").parse().expect("a job's name")
    }

    fn request(&mut self) -> Request {
        let name = self.job();
        match self.rng.below(20) {
            0..=8 => Request::Submit(Box::new(self.submission(name))),
            9..=11 => {
                let others = self.rng.below(3);
                let names: BTreeSet<_> = (0..others).map(|_| self.job()).chain([name]).collect();
                let jobs = names.into_iter().map(|name| Ok(self.submission(name)));
                Request::Push(jobs.collect())
            }
            12 | 13 => Request::Cancel(name),
            14 | 15 => Request::Delete(name),
            16 | 17 => Request::Pause(name, Pause::Pause),
            18 => Request::Pause(name, Pause::Resume),
            _ => Request::Unreadable {
                name: Some(name),
                problems: vec![Problem {
                    path: "spec".to_owned(),
                    message: "is wrong".to_owned(),
                }],
            },
        }
    }

    fn submission(&mut self, name: JobName) -> Submission {
        // Some belong to a trace, and draw nothing for it: the plans of known seeds stay what they are.
        let traced = name.as_str().bytes().map(u32::from).sum::<u32>() % 2 == 0;
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = context.parse::<TraceContext>().ok();
        Submission {
            name,
            labels: BTreeMap::new(),
            spec: self.spec(),
            trace: context.filter(|_| traced).map(TraceOrigin::from),
        }
    }

    fn small(&mut self, least: u64, end: u64) -> u32 {
        u32::try_from(self.rng.range(least, end)).unwrap_or(1)
    }

    fn spec(&mut self) -> JobSpec {
        let count = 1 + self.rng.below(3);
        let mut images: Vec<ImageRef> = Vec::new();
        for _ in 0..count {
            let image = self.rng.pick(&IMAGES).parse().expect("a reference");
            if !images.contains(&image) {
                images.push(image);
            }
        }
        let mut spec = JobSpec::new(images);
        spec.selector = self.selector();
        spec.parallelism = match self.rng.below(10) {
            0 => Amount::Count(0),
            1..=3 => Amount::Percent(self.small(1, 101)),
            _ => Amount::Count(self.small(1, 6)),
        };
        spec.priority = i32::try_from(self.rng.below(3)).unwrap_or(0);
        if self.rng.percent(30) {
            spec.image_pull_policy = ImagePullPolicy::Always;
        }
        spec.absent_after_seconds = self.small(5, 121);
        // Drawn from what is drawn already, so that a seed goes on standing for the same plan.
        spec.pin = spec.absent_after_seconds.is_multiple_of(3);
        spec.pull_policy.timeout_seconds = self.small(5, 60);
        spec.pull_policy.backoff_limit = self.small(0, 4);
        if self.rng.percent(25) {
            spec.failure_policy = Some(FailurePolicy {
                max_failed: Amount::Percent(self.small(0, 60)),
            });
        }
        let policy = &mut spec.completion_policy;
        if self.rng.percent(40) {
            policy.kind = CompletionType::Never;
            policy.repeat_seconds = Some(u32::try_from(self.rng.range(30, 400)).unwrap_or(60));
        } else {
            if self.rng.percent(25) {
                policy.active_deadline_seconds =
                    Some(u32::try_from(self.rng.range(20, 200)).unwrap_or(60));
            }
            if self.rng.percent(30) {
                policy.ttl_seconds_after_finished =
                    Some(u32::try_from(self.rng.range(1, 120)).unwrap_or(60));
            }
        }
        spec
    }

    fn selector(&mut self) -> NodeSelector {
        let mut selector = NodeSelector::default();
        match self.rng.below(5) {
            0 | 1 => {
                let pool = self.rng.pick(&POOLS).to_owned();
                selector.match_labels.insert("pool".to_owned(), pool);
            }
            2 => {
                let nodes = 1 + self.rng.below(self.nodes);
                let name = |node| format!("n{node}").parse().expect("a node's name");
                selector.names = (0..nodes).map(name).collect();
            }
            _ => {}
        }
        selector
    }

    fn anybody(&mut self) -> Target {
        match self.rng.below(10) {
            0..=2 => Target::Leader,
            3 | 4 => Target::Dispatcher(self.rng.below(self.dispatchers)),
            _ => Target::Worker(self.rng.below(self.nodes)),
        }
    }

    fn fault(&mut self) -> Action {
        let who = self.anybody();
        let short = self.rng.range(100, 8_000);
        let long = self.rng.range(1_000, 90_000);
        match self.rng.below(32) {
            0..=4 => {
                let after = self.rng.percent(70).then(|| self.small(0, 12));
                Action::Crash {
                    who,
                    after_effects: after,
                    down: long,
                }
            }
            5 => Action::Stop { who, down: long },
            6..=8 => Action::Freeze {
                who,
                still: self.rng.range(500, 20_000),
            },
            9 | 10 | 25 => Action::Relabel {
                node: self.rng.below(self.nodes),
                pool: self.rng.pick(&POOLS),
                zone: self.rng.pick(&ZONES),
                capacity: self.small(1, 4),
            },
            11 | 12 => Action::Disconnect {
                who,
                down: self.rng.range(100, 30_000),
            },
            13 => Action::LoseQuestions {
                who,
                count: self.small(1, 5),
            },
            14 => Action::LoseAnswers {
                who,
                count: self.small(1, 5),
            },
            15 => Action::RepeatAcks {
                who,
                count: self.small(1, 5),
            },
            16 | 17 => Action::Delay {
                who,
                late: self.rng.range(500, 20_000),
            },
            18 => Action::LoseCore {
                count: self.small(1, 10),
            },
            19 => Action::RestartBroker { down: short },
            20 => Action::RegistryDown { down: long },
            21 => Action::RegistryFlaky { lasts: long },
            22 => Action::RegistryStalls { lasts: short },
            23 | 24 => Action::CrashAfter {
                who: Target::Leader,
                what: self.rng.pick(&MOMENTS),
                down: short,
            },
            26 => Action::Hold {
                node: self.rng.below(self.nodes),
                pool: self.rng.pick(&POOLS),
                lasts: long,
            },
            27..=29 => Action::LoseAcks {
                node: self.rng.below(self.nodes),
                count: self.small(1, 8),
            },
            _ => Action::MoveTag(self.rng.pick(&IMAGES).parse().expect("a reference")),
        }
    }
}
