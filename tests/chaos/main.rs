//! Everything at once on real servers, with everything going wrong: `make chaos SEED=… MINUTES=…`.
//!
//! Three brokers with the configuration that is shipped, three dispatchers, a containerd of every generation with a worker
//! each, and a registry behind a proxy of ours, each in a network of its own ([`world`]). Storms, in which processes are
//! killed and stopped, networks part, disks fill, clocks step and the registry misbehaves ([`faults`], [`weather`]) while
//! jobs of all kinds are asked for ([`jobs`]), take turns with calm, in which everything has to come to rest, and
//! what must be true is checked against the broker ([`truth`]) and against containerd, the disk and the registry
//! ([`proof`]). The seed decides what is drawn; what the machine makes of it is its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for the reader of a run"
)]

#[path = "../support/mod.rs"]
mod support;

mod cast;
mod faults;
mod jobs;
mod proof;
mod run;
mod stage;
mod truth;
mod weather;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use run::Plan;

/// The name under which a short run is part of `make test`.
const SMOKE: &str = "a_short_storm_breaks_nothing";

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

fn main() -> ExitCode {
    // The arguments are those of every test binary: a filter, or a wish for a list.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("{SMOKE}: test");
        return ExitCode::SUCCESS;
    }
    let mut filters = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|filter| SMOKE.contains(filter.as_str())) {
        return ExitCode::SUCCESS;
    }
    if let Some(ended) = world::enter() {
        return ended;
    }
    let seed = number("SEED").unwrap_or(1);
    let plan = match number("MINUTES") {
        Some(minutes) => Plan::for_time(Duration::from_secs(60 * minutes)),
        None => Plan::smoke(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let broken = runtime.block_on(run::run(seed, &plan));
    if broken.is_empty() {
        println!("chaos: nothing broke (seed {seed})");
        return ExitCode::SUCCESS;
    }
    println!("chaos: broken with seed {seed}:");
    for what in broken {
        println!("  {what}");
    }
    ExitCode::FAILURE
}
