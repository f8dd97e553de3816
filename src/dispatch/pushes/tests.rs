//! The first push of a digest makes its jobs; every push is answered once.

use serde_json::json;

use super::*;
use crate::domain::failure::FailureKind;

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
        trace: None,
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
            age: Duration::ZERO,
            push: Box::new(push),
        };
        self.at(now, input)
    }
}

fn jobs(effects: &[Effect]) -> usize {
    match effects {
        [
            Effect::Ask {
                request: Request::Push(jobs),
                ..
            },
        ] => jobs.iter().filter(|job| job.is_ok()).count(),
        _ => 0,
    }
}

/// Whether the push is taken off, now or by who is asked.
fn is_answered(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Ask { .. } | Effect::Acknowledge { .. }])
}

fn is_told(effects: &[Effect]) -> bool {
    matches!(
        effects,
        [Effect::Ask {
            request: Request::Unreadable { .. },
            ..
        }]
    )
}

#[test]
fn ten_tags_of_a_digest_within_a_second_make_one_job_for_each_rule() {
    let mut told = Told::new([any("a"), any("b")]);
    let mut made = 0;
    for n in 0..10 {
        let now = NOW.after(Duration::from_millis(100 * n));
        let effects = told.push(now, push(&format!("t{n}"), Some(b"x")));
        assert!(is_answered(&effects));
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

fn again(age: Duration) -> Input {
    Input::Push {
        sequence: 1,
        delivery: 2,
        age,
        push: Box::new(push("1", None)),
    }
}

fn answered(kind: FailureKind) -> Input {
    Input::Resolved {
        sequence: 1,
        answer: Err(Failure::new(kind, "what the registry said")),
    }
}

#[test]
fn a_tag_alone_is_resolved_first_and_again_while_the_registry_is_away() {
    let mut told = Told::new([any("a")]);
    let effects = told.push(NOW, push("1", None));
    assert!(matches!(
        &effects[..],
        [Effect::Resolve { sequence: 1, .. }]
    ));
    let effects = told.at(NOW, answered(FailureKind::RegistryUnavailable));
    let delay = FIRST_RETRY;
    assert_eq!(effects, [Effect::Retry { sequence: 1, delay }]);
    told.at(NOW, again(LONGEST_DOUBT));
    let there = Input::Resolved {
        sequence: 1,
        answer: Ok(Digest::of(b"x")),
    };
    assert_eq!(jobs(&told.at(NOW, there)), 1);
}

#[test]
fn a_registry_that_is_away_is_waited_for_longer_than_a_tag_that_it_does_not_have() {
    for (kind, patience) in [
        (FailureKind::RegistryUnavailable, LONGEST_WAIT),
        (FailureKind::ImageNotFound, LONGEST_DOUBT),
    ] {
        let mut told = Told::new([any("a")]);
        told.at(NOW, again(patience - Duration::from_millis(1)));
        let effects = told.at(NOW, answered(kind));
        assert!(matches!(effects[..], [Effect::Retry { .. }]), "{effects:?}");
        told.at(NOW, again(patience));
        let effects = told.at(NOW, answered(kind));
        assert!(is_told(&effects), "{effects:?}");
    }
}

#[test]
fn only_so_many_are_asked_about_at_once_and_the_others_are_put_back() {
    let mut told = Told::new([any("a")]);
    for n in 0..MAX_ASKED {
        let effects = told.push(NOW, push(&format!("t{n}"), None));
        assert!(matches!(effects[..], [Effect::Resolve { .. }]));
    }
    let effects = told.push(NOW, push("more", None));
    assert!(matches!(effects[..], [Effect::Retry { .. }]), "{effects:?}");
    assert_eq!(jobs(&told.push(NOW, push("1", Some(b"x")))), 1);
}

#[test]
fn a_rule_that_became_another_makes_its_jobs_anew() {
    let mut told = Told::new([any("a"), any("b")]);
    assert_eq!(jobs(&told.push(NOW, push("1", Some(b"x")))), 2);
    let edited = json!({"registry": "**", "repository": "**", "job": {"name": "other"}});
    told.at(NOW, rule("a", edited));
    told.at(NOW, any("b"));
    assert_eq!(
        jobs(&told.push(NOW.after(Duration::from_secs(5)), push("1", Some(b"x")))),
        1
    );
    // What was remembered before does not end early what is remembered now.
    let later = NOW.after(Duration::from_secs(11));
    assert_eq!(jobs(&told.push(later, push("1", Some(b"x")))), 1);
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
    let Effect::Ask {
        request: Request::Push(made),
        ..
    } = &effects[0]
    else {
        panic!("{effects:?}");
    };
    let images = &made[0].as_ref().unwrap().spec.images;
    assert_eq!(images[0].digest(), Some(&Digest::of(b"real")));
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
                effects => proptest::prop_assert!(is_answered(effects)),
            }
            if asked.len() > 2 {
                let (sequence, content) = asked.remove(0);
                let effects = told.at(now, Input::Resolved { sequence, answer: Ok(Digest::of(&[content])) });
                let answered = matches!(effects[..], [Effect::Ask { sequence: of, .. } | Effect::Acknowledge { sequence: of }] if of == sequence);
                proptest::prop_assert!(answered, "{:?}", effects);
            }
        }
        proptest::prop_assert_eq!(told.0.asked.len(), asked.len());
        let remembered: usize = told.0.by_time.values().map(Vec::len).sum();
        proptest::prop_assert_eq!(told.0.made.len(), remembered);
    }
}
