//! The whole system in one thread, with everything that can go wrong, on many seeds.
//!
//! The dispatcher's and the worker's real state machines run on a model of JetStream ([`broker`])
//! in virtual time. What the shells around them do is modelled in [`dispatcher`], [`leader`],
//! [`perform`] and [`worker`]. Users and faults are planned from the seed ([`plan`], [`faults`]); what must
//! hold is in [`invariants`] and [`looks`].
//!
//! `make sim SEED=7 STEPS=1000000` runs any number of seeds from any one on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for the reader of a failed test"
)]
#![allow(unreachable_pub, reason = "modules of one test crate")]

mod broker;
mod counters;
mod describe;
mod dispatcher;
mod faults;
mod invariants;
mod leader;
mod looks;
mod mishaps;
mod net;
mod payload;
mod perform;
mod pins;
mod plan;
mod registry;
mod regressions;
mod rng;
mod runs;
mod serve;
mod shrink;
mod trace;
mod worker;
mod world;

use runs::Runs;

/// Steps of a run that nobody asked for.
const DEFAULT_STEPS: u64 = 2_000_000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

#[test]
fn every_seed_keeps_every_promise() {
    let from = number("SEED").unwrap_or(1);
    let steps = number("STEPS").unwrap_or(DEFAULT_STEPS);
    let runs = Runs::from_seed(from, steps);
    println!(
        "{} steps in {} seeds from {from} on, {:.0} a second\n{}",
        runs.steps,
        runs.seeds,
        runs.steps as f64 / runs.seconds,
        runs.counters.table()
    );
    if steps >= DEFAULT_STEPS {
        let missing = runs.counters.missing();
        assert!(missing.is_empty(), "never happened: {missing:#?}");
    }
}

/// Chance is the world's, and draws anew with every change of it: a plan is played under its own seed and so many others.
const OTHER_SEEDS: u64 = 20;

#[test]
fn plans_that_failed_once_never_fail_again() {
    let kept = regressions::all();
    assert!(!kept.is_empty(), "none is kept");
    for (file, kept) in kept {
        for seed in kept.seed..=kept.seed + OTHER_SEEDS {
            let outcome = runs::simulate(seed, kept.plan.clone(), trace::Trace::default());
            if let Some(failure) = outcome.failure {
                panic!(
                    "{}: {}\nunder seed {seed} again: {failure}",
                    file.display(),
                    kept.found
                );
            }
        }
    }
}

#[test]
fn a_plan_that_fails_shrinks_to_what_makes_it_fail() {
    let plan = runs::plan(7);
    let (first, last) = (
        plan.actions[3].clone(),
        plan.actions[plan.actions.len() - 2].clone(),
    );
    let fails = |plan: plan::Plan| {
        let has = |action| plan.actions.contains(action);
        match (has(&first), has(&last)) {
            (true, true) => Some(format!("{} pulls of j1 are lost", plan.actions.len())),
            // Another failure is not the one that is looked for.
            (true, false) => Some("5 tasks of j1 are lost".to_owned()),
            (false, _) => None,
        }
    };
    let whole = plan.actions.len();
    let short = shrink::shrink(plan, "4 pulls of j1 are lost", fails);
    assert!(whole > 20, "{whole} actions are too few to show anything");
    assert_eq!(short.actions, [first, last]);
}

#[test]
fn one_seed_gives_one_trace() {
    let (one, other) = (runs::trace(7), runs::trace(7));
    assert!(one.lines().count() > 1_000, "the trace is empty");
    assert!(one == other, "the traces differ");
    assert!(one != runs::trace(8), "the seed makes no difference");
}
