//! What a cell of 10,000 nodes does: `cargo bench --bench scale` (`make parts` before).
//!
//! Broker, dispatcher and fleet are real, each a process of its own: a nats-server, the release program's
//! `dispatcher`, and its `simulate`, which runs the worker that ships 10,000 times over a few connections.
//! Only the pulls are pretended. All share this machine's cores with each other and with this program, so
//! every figure is of them together. `cargo bench --bench scale -- wide idle` runs some of them only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

mod absorb;
mod cell;
mod floor;
mod idle;
mod wide;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::nats::NatsVersion;

/// Nodes of the cell.
const NODES: u32 = 10_000;

/// What can be measured, by the word that chooses it.
const SECTIONS: [&str; 4] = ["wide", "old", "idle", "absorb"];

#[tokio::main]
async fn main() {
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let unknown = chosen
        .iter()
        .find(|word| !SECTIONS.contains(&word.as_str()));
    assert!(
        unknown.is_none(),
        "there is no {unknown:?}; there are {SECTIONS:?}"
    );
    let wanted = |word: &str| chosen.is_empty() || chosen.iter().any(|one| one == word);
    println!("{}", hardware());
    if wanted("wide") {
        wide::measure(NatsVersion::V2_15).await;
    }
    if wanted("old") {
        wide::measure(NatsVersion::V2_10).await;
    }
    if wanted("idle") {
        idle::measure().await;
    }
    if wanted("absorb") {
        absorb::measure().await;
    }
}

/// The machine, in one line.
fn hardware() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map_or_else(|| "?".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let kilobytes: u64 = field(&memory, "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0);
    format!(
        "{} cores of {}, {} GiB of memory; load before: {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        field(&cpu, "model name"),
        kilobytes >> 20,
        read("/proc/loadavg").trim(),
    )
}

/// One figure.
fn figure(what: &str, value: impl std::fmt::Display, wanted: &str) {
    let wanted = if wanted.is_empty() {
        String::new()
    } else {
        format!("   (wanted: {wanted})")
    };
    println!("  {what:<64} {value}{wanted}");
}

/// Seconds with two decimals.
fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The middle one of an odd number of durations.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
