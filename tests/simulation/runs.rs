//! Running seeds, many at once, and saying what to do about one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::counters::Counters;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::shrink::shrink;
use crate::trace::Trace;
use crate::world::World;

/// What a report leaves out of a trace.
const NOISE: [&str; 8] = [
    " lease ",
    "heartbeat",
    " Tick",
    " Fetch",
    "FetchEnded",
    "Register",
    "registered",
    "Welcome",
];
/// Lines of the trace that a report tells.
const TOLD_LINES: usize = 60;

/// What one simulation came to.
pub struct Outcome {
    pub steps: u64,
    pub counters: Counters,
    pub trace: Trace,
    /// What is wrong, if anything is.
    pub failure: Option<String>,
}

/// Runs a plan under a seed to its end.
pub fn simulate(seed: u64, plan: Plan, trace: Trace) -> Outcome {
    let mut world = World::new(seed, plan, trace);
    let verdict = catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = match verdict {
        Ok(verdict) => verdict.err(),
        Err(panic) => Some(format!("a panic: {}", message(&panic))),
    };
    Outcome {
        steps: world.steps,
        counters: world.net.counters,
        trace: world.net.trace,
        failure,
    }
}

fn message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "of another kind".to_owned())
}

/// Everything a seed stands for.
pub fn plan(seed: u64) -> Plan {
    Plan::of(&mut Rng::new(seed))
}

/// The trace of a seed.
pub fn trace(seed: u64) -> String {
    let outcome = simulate(seed, plan(seed), Trace::recorded());
    outcome.trace.text().to_owned()
}

/// Runs a seed; its steps.
///
/// # Panics
/// When something is wrong, with what to do to see it again.
pub fn run_seed(seed: u64, counters: &mut Counters) -> u64 {
    let outcome = simulate(seed, plan(seed), Trace::default());
    if let Some(failure) = outcome.failure {
        panic!("{}", report(seed, outcome.steps, &failure));
    }
    counters.add(&outcome.counters);
    outcome.steps
}

fn report(seed: u64, steps: u64, failure: &str) -> String {
    let whole = plan(seed);
    let run = |plan| simulate(seed, plan, Trace::default()).failure;
    let short = shrink(whole.clone(), failure, run);
    let again = simulate(seed, short.clone(), Trace::recorded());
    let (trace, failure_of_short) = (again.trace, again.failure.unwrap_or_default());
    let file = std::env::temp_dir().join(format!("prewarm-sim-{seed}.trace"));
    let kept = match std::fs::write(&file, trace.text()) {
        Ok(()) => format!("all of it is in {}", file.display()),
        Err(error) => format!("it could not be kept: {error}"),
    };
    let regression = crate::regressions::write(seed, short.clone(), &failure_of_short);
    let is_told = |line: &&str| !NOISE.iter().any(|noise| line.contains(noise));
    let lines: Vec<&str> = trace.text().lines().filter(is_told).collect();
    let last = lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n");
    let actions: String = short
        .actions
        .iter()
        .map(|planned| format!("{:>8} ms  {:?}\n", planned.at, planned.action))
        .collect();
    format!(
        "seed {seed}, step {steps}: {failure}\n\nmake sim SEED={seed} STEPS=1\n\nWithout what makes no \
         difference, {} of {} actions are left, heal at {} ms:\n{actions}\n{failure_of_short}\n{regression}\nThe end of the trace \
         ({kept}):\n{last}\n",
        short.actions.len(),
        whole.actions.len(),
        short.heals_at,
    )
}

/// What many seeds came to.
pub struct Runs {
    pub seeds: u64,
    pub steps: u64,
    pub seconds: f64,
    pub counters: Counters,
}

impl Runs {
    /// Runs seeds from this one on until so many steps are done, on all cores.
    pub fn from_seed(from: u64, steps: u64) -> Self {
        let began = Instant::now();
        let (next, done) = (AtomicU64::new(from), AtomicU64::new(0));
        let counters = Mutex::new(Counters::default());
        let work = || {
            let mut own = Counters::default();
            while done.load(Ordering::Relaxed) < steps {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                done.fetch_add(run_seed(seed, &mut own), Ordering::Relaxed);
            }
            counters.lock().expect("no thread has failed").add(&own);
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        Self {
            seeds: next.into_inner() - from,
            steps: done.into_inner(),
            seconds: began.elapsed().as_secs_f64(),
            counters: counters.into_inner().expect("no thread has failed"),
        }
    }
}
