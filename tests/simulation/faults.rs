//! Draws plans from seeds: what users do and what goes wrong, planned before the simulation begins, so that parts of it
//! can be left out when a failure is shrunk.

use std::collections::BTreeSet;

use prewarm::domain::image::ImageRef;
use prewarm::domain::job::{Amount, CompletionType, FailurePolicy, ImagePullPolicy, JobSpec};
use prewarm::domain::name::JobName;
use prewarm::domain::node::ZONE_LABEL;
use prewarm::domain::selector::{NodeSelector, Operator, Requirement};

use crate::broker::Millis;
use crate::plan::{Action, Job, MOMENTS, Plan, Planned, PlannedNode, Target, Wish};
use crate::rng::Rng;

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
        // Now and then there is time for a registry that is away for ten minutes.
        let heals_at = if rng.percent(5) {
            rng.range(700, 1_300) * 1_000
        } else {
            rng.range(60, 500) * 1_000
        };
        let node = |rng: &mut Rng| PlannedNode {
            pool: rng.pick(&POOLS).to_owned(),
            zone: rng.pick(&ZONES).to_owned(),
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
            let action = Action::Ask(self.wish());
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

    fn wish(&mut self) -> Wish {
        let name = self.job();
        match self.rng.below(20) {
            0..=8 => Wish::Submit(Box::new(self.asked(name))),
            9..=11 => {
                let others = self.rng.below(3);
                let names: BTreeSet<_> = (0..others).map(|_| self.job()).chain([name]).collect();
                Wish::Push(names.into_iter().map(|name| self.asked(name)).collect())
            }
            12 | 13 => Wish::Cancel(name),
            14 | 15 => Wish::Delete(name),
            16 | 17 => Wish::Pause(name),
            18 => Wish::Resume(name),
            _ => Wish::Unreadable(name),
        }
    }

    fn asked(&mut self, name: JobName) -> Job {
        let spec = self.spec();
        Job { name, spec }
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
        if self.rng.percent(15) {
            spec.platform = Some("linux/arm64".parse().expect("a platform"));
        }
        spec.unpack = !self.rng.percent(15);
        spec.absent_after_seconds = self.small(5, 121);
        // Drawn from what is drawn already, so that a seed goes on standing for the same plan.
        spec.pin = spec.absent_after_seconds.is_multiple_of(3);
        spec.pull_policy.timeout_seconds = self.small(5, 60);
        spec.pull_policy.backoff_limit = self.small(0, 4);
        if self.rng.percent(25) {
            let max_failed = if self.rng.percent(50) {
                Amount::Count(self.small(0, 4))
            } else {
                Amount::Percent(self.small(0, 60))
            };
            spec.failure_policy = Some(FailurePolicy { max_failed });
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
        match self.rng.below(6) {
            0 | 1 => {
                let pool = self.rng.pick(&POOLS).to_owned();
                selector.match_labels.insert("pool".to_owned(), pool);
            }
            2 => {
                let nodes = 1 + self.rng.below(self.nodes);
                let name = |node| format!("n{node}").parse().expect("a node's name");
                selector.names = (0..nodes).map(name).collect();
            }
            3 => {
                let requirements = 1 + self.rng.below(2);
                selector.match_expressions =
                    (0..requirements).map(|_| self.requirement()).collect();
            }
            _ => {}
        }
        selector
    }

    fn requirement(&mut self) -> Requirement {
        let (key, value) = match self.rng.below(3) {
            0 => ("pool", self.rng.pick(&POOLS)),
            1 => (ZONE_LABEL, self.rng.pick(&ZONES)),
            // No node has it.
            _ => ("spot", "yes"),
        };
        let (operator, values) = match self.rng.below(4) {
            0 => (Operator::In, vec![value.to_owned()]),
            1 => (Operator::NotIn, vec![value.to_owned()]),
            2 => (Operator::Exists, vec![]),
            _ => (Operator::DoesNotExist, vec![]),
        };
        Requirement {
            key: key.to_owned(),
            operator,
            values,
        }
    }

    fn anybody(&mut self) -> Target {
        match self.rng.below(10) {
            0..=2 => Target::Leader,
            3 | 4 => Target::Dispatcher(self.rng.below(self.dispatchers)),
            _ => Target::Worker(self.rng.below(self.nodes)),
        }
    }

    /// How long a registry is away: as other things are, or up to ten minutes.
    fn outage(&mut self, long: Millis) -> Millis {
        if self.rng.percent(25) {
            self.rng.range(60_000, 600_001)
        } else {
            long
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
                pool: self.rng.pick(&POOLS).to_owned(),
                zone: self.rng.pick(&ZONES).to_owned(),
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
            20 => Action::RegistryDown {
                down: self.outage(long),
            },
            21 => Action::RegistryFlaky { lasts: long },
            22 => Action::RegistryStalls { lasts: short },
            23 | 24 => Action::CrashAfter {
                who: Target::Leader,
                what: self.rng.pick(&MOMENTS),
                down: short,
            },
            26 => Action::Hold {
                node: self.rng.below(self.nodes),
                pool: self.rng.pick(&POOLS).to_owned(),
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
