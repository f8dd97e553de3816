//! Leaving out of a failing plan whatever makes no difference (Zeller, Hildebrandt: "Simplifying and
//! isolating failure-inducing input", 2002).

use crate::faults::{Plan, Planned};
use crate::runs::simulate;
use crate::trace::Trace;

/// Most simulations for one shrinking.
const MOST_TRIES: usize = 400;

/// The kind of a failure: what it says before its first number or name.
fn kind(failure: &str) -> String {
    let words = failure.split(|c: char| c.is_ascii_digit() || c == ':');
    words.take(1).collect()
}

/// A shorter plan that fails in the same way.
pub fn shrink(seed: u64, plan: Plan, failure: &str) -> Plan {
    let wanted = kind(failure);
    let mut tries = 0;
    let mut fails = |actions: &[Planned]| {
        tries += 1;
        if tries > MOST_TRIES {
            return None;
        }
        let mut plan = plan.clone();
        plan.actions = actions.to_vec();
        let outcome = simulate(seed, plan, Trace::default());
        Some(
            outcome
                .failure
                .is_some_and(|failure| kind(&failure) == wanted),
        )
    };
    let mut actions = plan.actions.clone();
    let mut parts = 2;
    while actions.len() > 1 {
        let size = actions.len().div_ceil(parts);
        let mut shorter = None;
        for begin in (0..actions.len()).step_by(size) {
            let end = (begin + size).min(actions.len());
            let rest = [&actions[..begin], &actions[end..]].concat();
            match fails(&rest) {
                None => return Plan { actions, ..plan },
                Some(true) => {
                    shorter = Some(rest);
                    break;
                }
                Some(false) => {}
            }
        }
        match shorter {
            Some(rest) => {
                actions = rest;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(actions.len()),
        }
    }
    Plan { actions, ..plan }
}
