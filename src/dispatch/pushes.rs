//! Which jobs come of pushes: rules, and one job for a digest however often it is pushed.
//!
//! The first push of a digest makes the job at once; others of the same digest that follow within the
//! rule's debounce time make none. What comes of a push is asked of the state machine of jobs, which
//! knows a push that is delivered again after a crash, and a job that is there already.

use std::collections::BTreeMap;
use std::time::Duration;

use super::input::Request;
use crate::domain::failure::Failure;
use crate::domain::image::{Digest, ImageRef};
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::wire::event::Problem;
use crate::wire::manifest::rule::PushRule;
use crate::wire::push::Push;

/// Most rules that are looked at.
pub(super) const MAX_RULES: usize = 1_000;
/// Most digests that are remembered for debouncing; those over it are forgotten oldest first.
const MAX_REMEMBERED: usize = 100_000;
/// First wait before the registry is asked again, doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest such wait.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Most pushes that the registry is asked about at once; more are put back for [`FIRST_RETRY`].
const MAX_ASKED: usize = 64;
/// How long a push is kept while the registry does not say what its tag means.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 3600);
/// The same if the registry answers, and says that there is no such tag or no right to ask: a registry
/// that tells of a push before all of its parts know of it has caught up by then.
const LONGEST_DOUBT: Duration = Duration::from_secs(60);

/// What can happen.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A rule is there, or another than before.
    Rule(Box<PushRule>),
    /// A rule is gone.
    RuleGone(JobName),
    /// A push was delivered.
    Push {
        /// Its sequence in `PREWARM_JOBS`.
        sequence: u64,
        /// How often it was delivered, from 1.
        delivery: u32,
        /// How long ago it was stored.
        age: Duration,
        push: Box<Push>,
    },
    /// What is no push was delivered.
    Unreadable {
        sequence: u64,
        problems: Vec<Problem>,
    },
    /// The registry said what a push's tag means, or why it does not.
    Resolved {
        sequence: u64,
        answer: Result<Digest, Failure>,
    },
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Effect {
    /// Ask the registry what the tag means.
    Resolve {
        sequence: u64,
        image: ImageRef,
        pull_secrets: Vec<String>,
    },
    /// Ask the state machine of jobs for what comes of the push. It takes the push off the stream.
    Ask { sequence: u64, request: Request },
    /// Take the push off the stream: nothing comes of it.
    Acknowledge { sequence: u64 },
    /// Have it delivered again.
    Retry { sequence: u64, delay: Duration },
}

/// A push whose tag the registry is asked about.
#[derive(Clone, Debug)]
struct Asked {
    push: Push,
    delivery: u32,
    age: Duration,
}

/// What made a job: rule, image name and digest.
type Made = (JobName, String, Digest);

/// Rules, and what came of pushes lately. A deterministic function of its inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Pushes {
    rules: BTreeMap<JobName, PushRule>,
    asked: BTreeMap<u64, Asked>,
    /// Until when a digest makes no other job.
    made: BTreeMap<Made, Timestamp>,
    /// The same by time, to forget them.
    by_time: BTreeMap<Timestamp, Vec<Made>>,
}

impl Pushes {
    /// Takes one thing that happened and appends what has to be done.
    pub(super) fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Rule(rule) => {
                if self.rules.get(&rule.name) != Some(&rule) && !self.is_full_for(&rule.name) {
                    // What the rule made before it was another says nothing of what it makes now.
                    self.made.retain(|(name, ..), _| *name != rule.name);
                    self.rules.insert(rule.name.clone(), *rule);
                }
            }
            Input::RuleGone(name) => drop(self.rules.remove(&name)),
            Input::Push {
                sequence,
                delivery,
                age,
                push,
            } => {
                let push = *push;
                let asked = Asked {
                    push,
                    delivery,
                    age,
                };
                self.push(now, sequence, asked, effects);
            }
            Input::Unreadable { sequence, problems } => {
                let name = None;
                let request = Request::Unreadable { name, problems };
                effects.push(Effect::Ask { sequence, request });
            }
            Input::Resolved { sequence, answer } => self.resolved(now, sequence, answer, effects),
        }
    }

    /// Rules that are looked at.
    pub(super) fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are too many rules for another one.
    pub(super) fn is_full_for(&self, name: &JobName) -> bool {
        self.rules.len() >= MAX_RULES && !self.rules.contains_key(name)
    }

    fn push(&mut self, now: Timestamp, sequence: u64, asked: Asked, effects: &mut Vec<Effect>) {
        let push = &asked.push;
        let matching = || self.rules.values().filter(|rule| rule.matches(push));
        if matching().next().is_none() {
            effects.push(Effect::Acknowledge { sequence });
            return;
        }
        // What is told by digest alone needs no check: a digest can only be that content.
        let doubted = push.digest.is_none() || (push.unverified && push.tag.is_some());
        if !doubted {
            self.make(now, sequence, push, effects);
            return;
        }
        if self.asked.len() >= MAX_ASKED {
            let delay = FIRST_RETRY;
            effects.push(Effect::Retry { sequence, delay });
            return;
        }
        let mut pull_secrets: Vec<String> = matching().flat_map(PushRule::pull_secrets).collect();
        pull_secrets.sort();
        pull_secrets.dedup();
        let claimed = Push {
            digest: None,
            ..push.clone()
        };
        match claimed.image() {
            Ok(image) => {
                self.asked.insert(sequence, asked);
                effects.push(Effect::Resolve {
                    sequence,
                    image,
                    pull_secrets,
                });
            }
            Err(message) => {
                let problems = vec![problem(message)];
                self.handle(now, Input::Unreadable { sequence, problems }, effects);
            }
        }
    }

    fn resolved(
        &mut self,
        now: Timestamp,
        sequence: u64,
        answer: Result<Digest, Failure>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Asked {
            mut push,
            delivery,
            age,
        }) = self.asked.remove(&sequence)
        else {
            return;
        };
        match answer {
            Ok(digest) => {
                // The registry's word counts, not that of who told.
                push.digest = Some(digest);
                self.make(now, sequence, &push, effects);
            }
            Err(failure) => {
                let patience = match failure.kind.is_permanent() {
                    true => LONGEST_DOUBT,
                    false => LONGEST_WAIT,
                };
                if age < patience {
                    let doubled = 2_u32.saturating_pow(delivery.saturating_sub(1).min(16));
                    let delay = FIRST_RETRY.saturating_mul(doubled).min(LONGEST_RETRY);
                    let delay = delay.max(failure.retry_after.unwrap_or_default());
                    effects.push(Effect::Retry { sequence, delay });
                    return;
                }
                let problems = vec![problem(format!(
                    "the registry did not say what the pushed tag means: {failure}"
                ))];
                self.handle(now, Input::Unreadable { sequence, problems }, effects);
            }
        }
    }

    /// Makes the jobs of a push that has its digest.
    fn make(&mut self, now: Timestamp, sequence: u64, push: &Push, effects: &mut Vec<Effect>) {
        self.forget(now);
        let Some(digest) = &push.digest else {
            return;
        };
        let image = format!("{}/{}", push.registry, push.repository);
        let (mut jobs, mut made) = (Vec::new(), Vec::new());
        for rule in self.rules.values().filter(|rule| rule.matches(push)) {
            let key = (rule.name.clone(), image.clone(), digest.clone());
            if self.made.contains_key(&key) {
                continue;
            }
            jobs.push(rule.submission(push));
            if !rule.debounce().is_zero() {
                made.push((key, now.after(rule.debounce())));
            }
        }
        for (key, until) in made {
            self.made.insert(key.clone(), until);
            self.by_time.entry(until).or_default().push(key);
        }
        effects.push(match jobs.is_empty() {
            true => Effect::Acknowledge { sequence },
            false => Effect::Ask {
                sequence,
                request: Request::Push(jobs),
            },
        });
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some(first) = self.by_time.first_entry()
            && (*first.key() <= now || self.made.len() > MAX_REMEMBERED)
        {
            let (until, keys) = first.remove_entry();
            for key in keys {
                // Made again since its rule was changed, it is remembered for longer.
                if self.made.get(&key) == Some(&until) {
                    self.made.remove(&key);
                }
            }
        }
    }
}

fn problem(message: String) -> Problem {
    Problem {
        path: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests;
