//! Which jobs come of pushes: rules, and one job for a digest however often it is pushed.
//!
//! The first push of a digest makes the job at once; others of the same digest that follow within the
//! rule's debounce time make none. A push is acknowledged after what comes of it is stored, so that one
//! that is delivered again after a crash makes the same job again, which the broker and the shell know.

use std::collections::BTreeMap;
use std::time::Duration;

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
/// How often the registry is asked what a tag means before the push is given up. With the waits that is
/// about two hours.
const MAX_DELIVERIES: u32 = 240;

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
        answer: Result<Digest, String>,
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
    /// Store a job's manifest, unless its job is there and has not failed.
    Submit {
        rule: JobName,
        manifest: serde_json::Value,
    },
    /// Tell that nothing came of a push.
    Reject {
        sequence: u64,
        job: Option<JobName>,
        problems: Vec<Problem>,
    },
    /// Take the push off the stream.
    Acknowledge { sequence: u64 },
    /// Have it delivered again.
    Retry { sequence: u64, delay: Duration },
}

/// A push whose tag the registry is asked about.
#[derive(Clone, Debug)]
struct Asked {
    push: Push,
    delivery: u32,
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
                let known = self.rules.contains_key(&rule.name);
                if known || self.rules.len() < MAX_RULES {
                    self.rules.insert(rule.name.clone(), *rule);
                }
            }
            Input::RuleGone(name) => drop(self.rules.remove(&name)),
            Input::Push {
                sequence,
                delivery,
                push,
            } => self.push(now, sequence, delivery, *push, effects),
            Input::Unreadable { sequence, problems } => {
                effects.push(Effect::Reject {
                    sequence,
                    job: None,
                    problems,
                });
                effects.push(Effect::Acknowledge { sequence });
            }
            Input::Resolved { sequence, answer } => self.resolved(now, sequence, answer, effects),
        }
    }

    /// Rules that are looked at.
    pub(super) fn rules(&self) -> usize {
        self.rules.len()
    }

    fn push(
        &mut self,
        now: Timestamp,
        sequence: u64,
        delivery: u32,
        push: Push,
        effects: &mut Vec<Effect>,
    ) {
        let matching = || self.rules.values().filter(|rule| rule.matches(&push));
        if matching().next().is_none() {
            effects.push(Effect::Acknowledge { sequence });
            return;
        }
        // What is told by digest alone needs no check: a digest can only be that content.
        let doubted = push.digest.is_none() || (push.unverified && push.tag.is_some());
        if !doubted {
            self.make(now, sequence, &push, effects);
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
                self.asked.insert(sequence, Asked { push, delivery });
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
        answer: Result<Digest, String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Asked { mut push, delivery }) = self.asked.remove(&sequence) else {
            return;
        };
        match answer {
            Ok(digest) => {
                // The registry's word counts, not that of who told.
                push.digest = Some(digest);
                self.make(now, sequence, &push, effects);
            }
            Err(_) if delivery < MAX_DELIVERIES => {
                let doubled = 2_u32.saturating_pow(delivery.saturating_sub(1).min(16));
                let delay = FIRST_RETRY.saturating_mul(doubled).min(LONGEST_RETRY);
                effects.push(Effect::Retry { sequence, delay });
            }
            Err(message) => {
                let problems = vec![problem(format!(
                    "the registry did not say what the pushed tag means: {message}"
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
        let mut made = Vec::new();
        for rule in self.rules.values().filter(|rule| rule.matches(push)) {
            let key = (rule.name.clone(), image.clone(), digest.clone());
            if self.made.contains_key(&key) {
                continue;
            }
            match rule.manifest(push) {
                Ok(manifest) => effects.push(Effect::Submit {
                    rule: rule.name.clone(),
                    manifest,
                }),
                Err(rejection) => effects.push(Effect::Reject {
                    sequence,
                    job: rejection.name,
                    problems: rejection.problems,
                }),
            }
            if !rule.debounce().is_zero() {
                made.push((key, now.after(rule.debounce())));
            }
        }
        for (key, until) in made {
            self.made.insert(key.clone(), until);
            self.by_time.entry(until).or_default().push(key);
        }
        effects.push(Effect::Acknowledge { sequence });
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some(first) = self.by_time.first_entry()
            && (*first.key() <= now || self.made.len() > MAX_REMEMBERED)
        {
            for key in first.remove() {
                self.made.remove(&key);
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
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn rule(name: &str, spec: serde_json::Value) -> Input {
        let document = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PushRule", "metadata": {"name": name}, "spec": spec,
        });
        let rule = crate::wire::manifest::rule::read(&document);
        Input::Rule(Box::new(rule.unwrap()))
    }

    fn any(name: &str) -> Input {
        rule(name, json!({"registry": "**", "repository": "**"}))
    }

    fn push(tag: &str, digest: Option<&[u8]>) -> Push {
        Push {
            registry: "r.example.com".to_owned(),
            repository: "app".to_owned(),
            tag: Some(tag.to_owned()),
            digest: digest.map(Digest::of),
            event_id: None,
            source: None,
            unverified: false,
        }
    }

    struct Told(Pushes, u64);

    impl Told {
        fn new(rules: impl IntoIterator<Item = Input>) -> Self {
            let mut told = Self(Pushes::default(), 0);
            for rule in rules {
                assert!(told.at(NOW, rule).is_empty());
            }
            told
        }

        fn at(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
            let mut effects = Vec::new();
            self.0.handle(now, input, &mut effects);
            effects
        }

        fn push(&mut self, now: Timestamp, push: Push) -> Vec<Effect> {
            self.1 += 1;
            let input = Input::Push {
                sequence: self.1,
                delivery: 1,
                push: Box::new(push),
            };
            self.at(now, input)
        }
    }

    fn jobs(effects: &[Effect]) -> usize {
        let is_job = |effect: &&Effect| matches!(effect, Effect::Submit { .. });
        effects.iter().filter(is_job).count()
    }

    fn ends_acknowledged(effects: &[Effect]) -> bool {
        matches!(effects.last(), Some(Effect::Acknowledge { .. }))
    }

    #[test]
    fn ten_tags_of_a_digest_within_a_second_make_one_job_for_each_rule() {
        let mut told = Told::new([any("a"), any("b")]);
        let mut made = 0;
        for n in 0..10 {
            let now = NOW.after(Duration::from_millis(100 * n));
            let effects = told.push(now, push(&format!("t{n}"), Some(b"x")));
            assert!(ends_acknowledged(&effects));
            made += jobs(&effects);
        }
        assert_eq!(made, 2);
        assert_eq!(jobs(&told.push(NOW, push("t", Some(b"y")))), 2);
        let later = NOW.after(Duration::from_secs(10));
        assert_eq!(jobs(&told.push(later, push("t", Some(b"x")))), 2);
    }

    #[test]
    fn what_no_rule_is_about_is_taken_off_and_no_more() {
        let other = rule("a", json!({"registry": "**", "repository": "other"}));
        let mut told = Told::new([other]);
        let effects = told.push(NOW, push("1", None));
        assert_eq!(effects, [Effect::Acknowledge { sequence: 1 }]);
        let gone = Input::RuleGone("a".parse().unwrap());
        assert!(told.at(NOW, gone).is_empty());
        assert_eq!(told.0.rules(), 0);
    }

    #[test]
    fn a_tag_alone_is_resolved_first_and_again_while_the_registry_is_away() {
        let mut told = Told::new([any("a")]);
        let effects = told.push(NOW, push("1", None));
        assert!(matches!(
            &effects[..],
            [Effect::Resolve { sequence: 1, .. }]
        ));
        let away = Input::Resolved {
            sequence: 1,
            answer: Err("away".to_owned()),
        };
        let effects = told.at(NOW, away.clone());
        let delay = FIRST_RETRY;
        assert_eq!(effects, [Effect::Retry { sequence: 1, delay }]);
        let again = Input::Push {
            sequence: 1,
            delivery: MAX_DELIVERIES,
            push: Box::new(push("1", None)),
        };
        assert_eq!(told.at(NOW, again.clone()).len(), 1);
        let effects = told.at(NOW, away);
        assert!(matches!(effects[0], Effect::Reject { .. }) && ends_acknowledged(&effects));
        assert_eq!(told.at(NOW, again).len(), 1);
        let there = Input::Resolved {
            sequence: 1,
            answer: Ok(Digest::of(b"x")),
        };
        assert_eq!(jobs(&told.at(NOW, there)), 1);
    }

    #[test]
    fn the_registrys_word_counts_when_who_told_could_be_anyone() {
        let mut told = Told::new([any("a")]);
        let claimed = Push {
            unverified: true,
            ..push("1", Some(b"claimed"))
        };
        assert!(matches!(
            told.push(NOW, claimed)[..],
            [Effect::Resolve { .. }]
        ));
        let answer = Ok(Digest::of(b"real"));
        let effects = told.at(
            NOW,
            Input::Resolved {
                sequence: 1,
                answer,
            },
        );
        let Effect::Submit { manifest, .. } = &effects[0] else {
            panic!("{effects:?}");
        };
        let image = manifest["spec"]["images"][0].as_str().unwrap();
        assert!(image.ends_with(Digest::of(b"real").as_str()), "{image}");
    }

    proptest::proptest! {
        /// Every push that is delivered is answered exactly once: taken off, put back, or being asked about.
        #[test]
        fn every_push_is_answered_once(
            steps in proptest::collection::vec((0_u8..4, 0_u8..3, proptest::bool::ANY, 0_u64..20_000), 1..60),
        ) {
            let mut told = Told::new([any("a"), rule("b", json!({"registry": "**", "repository": "**", "tag": "t1"}))]);
            let mut now = NOW;
            let mut asked = Vec::new();
            for (tag, content, has_digest, wait) in steps {
                now = now.after(Duration::from_millis(wait));
                let digest = [content];
                let effects = told.push(now, push(&format!("t{tag}"), has_digest.then_some(&digest[..])));
                let sequence = told.1;
                match &effects[..] {
                    [Effect::Resolve { .. }] => asked.push((sequence, content)),
                    effects => proptest::prop_assert!(ends_acknowledged(effects)),
                }
                if asked.len() > 2 {
                    let (sequence, content) = asked.remove(0);
                    let effects = told.at(now, Input::Resolved { sequence, answer: Ok(Digest::of(&[content])) });
                    proptest::prop_assert_eq!(effects.last(), Some(&Effect::Acknowledge { sequence }));
                }
            }
            proptest::prop_assert_eq!(told.0.asked.len(), asked.len());
            let remembered: usize = told.0.by_time.values().map(Vec::len).sum();
            proptest::prop_assert_eq!(told.0.made.len(), remembered);
        }
    }
}
