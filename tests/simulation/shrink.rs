//! Leaving out of a failing plan whatever makes no difference (Zeller, Hildebrandt: "Simplifying and
//! isolating failure-inducing input", 2002).

use crate::plan::{Plan, Planned};

/// Most simulations for one shrinking.
const MOST_TRIES: usize = 400;

/// The kind of a failure: what it says before its first colon, without numbers and names.
fn kind(failure: &str) -> Vec<&str> {
    let what = failure.split(':').next().unwrap_or_default();
    let words = what.split_whitespace();
    words
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()))
        .collect()
}

/// A shorter plan that fails in the same way; `run` says how a plan fails, if it does.
pub fn shrink(plan: Plan, failure: &str, run: impl Fn(Plan) -> Option<String>) -> Plan {
    let wanted = kind(failure);
    let mut tries = 0;
    let mut fails = |actions: &[Planned]| {
        tries += 1;
        if tries > MOST_TRIES {
            return None;
        }
        let mut plan = plan.clone();
        plan.actions = actions.to_vec();
        Some(run(plan).is_some_and(|failure| kind(&failure) == wanted))
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
