//! What the dispatcher's decisions cost, without a broker: `cargo bench --bench dispatch`.
//!
//! Prints one line a figure. Times are of this machine and of one run; compare ratios.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use prewarm::dispatch::state::{Dispatcher, Settings};
use prewarm::dispatch::{Effect, Input, ReplyToken, Request};
use prewarm::domain::job::{Amount, CompletionType, JobSpec};
use prewarm::domain::name::NodeName;
use prewarm::domain::node::NodeFacts;
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{PullState, TaskEvent};
use prewarm::wire::manifest::Submission;
use prewarm::wire::record::ResolvedImage;
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::{Heartbeat, Registration};

const NODES: u32 = 10_000;
const NEVER_JOBS: u32 = 30;

struct Bench {
    state: Dispatcher,
    now: Timestamp,
    sequence: u64,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            state: Dispatcher::new(Settings::default()),
            now: Timestamp::EPOCH,
            sequence: 0,
        };
        bench.feed(Input::Lead);
        bench
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.state.handle(self.now, input, &mut effects);
        effects
    }

    fn register_all(&mut self) {
        for node in 0..NODES {
            let facts = NodeFacts {
                waiting: None,
                labels: BTreeMap::from([("pool".to_owned(), format!("p{}", node % 10))]),
                platform: "linux/amd64".parse().unwrap(),
                runtime: "simulated".to_owned(),
                capacity: 3,
                disk_total_bytes: 0,
                disk_free_bytes: 0,
                version: String::new(),
            };
            let registration = Registration {
                instance: String::new(),
                facts,
                consumer_lost: false,
            };
            self.feed(Input::Registered {
                node: name(node),
                registration: Box::new(registration),
                reply: ReplyToken(0),
            });
        }
    }

    /// Submits a job and answers its resolution; the tasks that are released.
    fn submit(&mut self, job: &str, kind: CompletionType, parallelism: u32) -> Vec<PullTask> {
        let mut spec = JobSpec::new(vec![format!("registry.invalid/{job}:1").parse().unwrap()]);
        spec.parallelism = Amount::Count(parallelism);
        spec.completion_policy.kind = kind;
        let name = job.parse().unwrap();
        let submission = Submission {
            name,
            labels: BTreeMap::new(),
            spec,
            trace: None,
        };
        self.sequence += 1;
        let request = Request::Submit(Box::new(submission));
        let effects = self.feed(Input::Request {
            request,
            sequence: self.sequence,
        });
        let resolved = effects.into_iter().find_map(|effect| match effect {
            Effect::Resolve {
                job, run, images, ..
            } => {
                let answer = |image| ResolvedImage {
                    image,
                    digest: None,
                    problem: None,
                };
                Some(Input::Resolved {
                    job,
                    run,
                    images: images.into_iter().map(answer).collect(),
                })
            }
            _ => None,
        });
        tasks(self.feed(resolved.unwrap()))
    }

    /// Ends every task, and those released in turn; says how many events that were.
    fn succeed_all(&mut self, mut open: Vec<PullTask>) -> u32 {
        let mut events = 0;
        while let Some(task) = open.pop() {
            let event = TaskEvent {
                job: task.job,
                run: task.run,
                node: task.node,
                image: task.image,
                state: PullState::Succeeded,
                attempt: 1,
                failure: None,
                next_attempt_at: None,
                result: None,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            };
            self.sequence += 1;
            let input = Input::TaskEvent {
                event: Box::new(event),
                sequence: self.sequence,
            };
            open.extend(tasks(self.feed(input)));
            events += 1;
        }
        events
    }
}

fn name(node: u32) -> NodeName {
    format!("node-{node:05}").parse().unwrap()
}

fn tasks(effects: Vec<Effect>) -> Vec<PullTask> {
    let task = |effect| match effect {
        Effect::Release(task) => Some(*task),
        _ => None,
    };
    effects.into_iter().filter_map(task).collect()
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn timed<T>(what: &str, of: u32, run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = run();
    let took = began.elapsed();
    let each = took.as_secs_f64() * 1e6 / f64::from(of.max(1));
    println!(
        "{what:<58} {:>9.1} ms  {each:>7.2} us each",
        took.as_secs_f64() * 1e3
    );
    result
}

fn main() {
    let mut bench = Bench::new();
    timed("10,000 nodes register", NODES, || bench.register_all());
    let open = timed(
        "a job on 10,000 nodes is expanded and fully released",
        NODES,
        || bench.submit("wide", CompletionType::Always, NODES),
    );
    assert_eq!(open.len(), NODES as usize);
    timed("its 10,000 results are taken", NODES, || {
        bench.succeed_all(open)
    });
    let open = bench.submit("narrow", CompletionType::Always, 10);
    let events = timed("another, 10 at a time: results and releases", NODES, || {
        bench.succeed_all(open)
    });
    assert_eq!(events, NODES);

    let pulls = NODES * NEVER_JOBS;
    timed(
        "30 Never jobs on them run to the end of their round",
        pulls,
        || {
            for job in 0..NEVER_JOBS {
                let open = bench.submit(&format!("never-{job}"), CompletionType::Never, NODES);
                bench.succeed_all(open);
            }
        },
    );
    println!(
        "{:<58} {:>9} MiB",
        "resident with 300,000 idle pulls",
        resident_mib()
    );
    timed("a heartbeat of each node", NODES, || {
        for node in 0..NODES {
            let heartbeat = Heartbeat {
                instance: String::new(),
                holding: Vec::new(),
                pins: Vec::new(),
            };
            bench.feed(Input::Heartbeat {
                node: name(node),
                heartbeat,
            });
        }
    });
}
