//! What the dispatcher's decisions cost, without a broker: `cargo bench --bench dispatch`.
//!
//! Prints one line a figure. Times are of this machine and of one run; compare ratios.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

use std::collections::{BTreeMap, VecDeque};
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

    fn register(&mut self, nodes: u32) {
        for node in 0..nodes {
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
        self.submit_spec(job, spec)
    }

    fn submit_spec(&mut self, job: &str, spec: JobSpec) -> Vec<PullTask> {
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
            open.extend(self.succeed(task));
            events += 1;
        }
        events
    }

    /// Ends a task; those that are released in turn.
    fn succeed(&mut self, task: PullTask) -> Vec<PullTask> {
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
        tasks(self.feed(input))
    }
}

/// Jobs of so many pulls in all, at once on a thousand nodes: what an event costs, and who gets how much meanwhile. Every
/// second job is eight times as large as the others; the last one is urgent.
fn at_once(jobs: u32) {
    const NODES: u32 = 1_000;
    let mut bench = Bench::new();
    bench.register(NODES);
    let mut open = VecDeque::new();
    let mut pulls = 0;
    let name = |job: u32| format!("job-{job:03}");
    for job in 0..jobs {
        let images = if job % 2 == 0 { 8 } else { 1 };
        let images = images * if jobs == 1 { 20 } else { 1 };
        let image = |number| {
            format!("registry.invalid/{job}-{number}:1")
                .parse()
                .unwrap()
        };
        let mut spec = JobSpec::new((0..images).map(image).collect());
        spec.parallelism = Amount::Count(u32::MAX);
        spec.priority = i32::from(job + 1 == jobs && jobs > 1);
        pulls += images * NODES;
        open.extend(bench.submit_spec(&name(job), spec));
    }
    let mut ended: BTreeMap<String, u32> = BTreeMap::new();
    let mut urgent_at = 0;
    let mut small_at = Vec::new();
    let what = format!("{jobs} jobs at once on 1,000 nodes: results and releases");
    timed(&what, pulls, || {
        let mut events = 0;
        while let Some(task) = open.pop_front() {
            let job = task.job.to_string();
            open.extend(bench.succeed(task));
            events += 1;
            let of_job = ended.entry(job.clone()).or_insert(0);
            *of_job += 1;
            if *of_job == NODES && job == name(jobs - 1) {
                urgent_at = events;
            } else if *of_job == NODES && job.ends_with(['1', '3', '5', '7', '9']) {
                small_at.push(events);
            }
        }
        assert_eq!(events, pulls);
    });
    if jobs == 1 {
        return;
    }
    let share = |events: u32| f64::from(events) * 100.0 / f64::from(pulls);
    println!(
        "  the urgent job ended after {:.1} % of all pulls, the small ones after {:.1} to {:.1} %",
        share(urgent_at),
        share(*small_at.first().unwrap()),
        share(*small_at.last().unwrap()),
    );
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
    timed("10,000 nodes register", NODES, || bench.register(NODES));
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
    for jobs in [1, 10, 100] {
        at_once(jobs);
    }
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
