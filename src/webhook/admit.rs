//! What of a reading is published: names mapped, claims checked, doubts marked.

use std::collections::BTreeSet;

use super::settings::SourceSettings;
use super::source::Reading;
use crate::domain::image::Digest;
use crate::wire::push::Push;

/// What is done with a payload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Admitted {
    /// What is published.
    pub pushes: Vec<Push>,
    /// What is no push that counts, and why.
    pub ignored: Vec<String>,
    /// Pushes the source may not speak of, and why.
    pub refused: Vec<String>,
}

/// Why a push by digest does not count.
pub const DIGEST_ONLY_IS_OFF: &str =
    "a push without a tag may be of an index's child; digest-only is off";

/// Applies a source's settings to what its payload says.
#[must_use]
pub fn admit(settings: &SourceSettings, reading: Reading) -> Admitted {
    let mut admitted = Admitted {
        ignored: reading.ignored,
        ..Admitted::default()
    };
    let mut pushes = reading.pushes;
    if settings.digest_only {
        pushes.extend(reading.by_digest);
    } else {
        let ignored = reading
            .by_digest
            .iter()
            .map(|_| DIGEST_ONLY_IS_OFF.to_owned());
        admitted.ignored.extend(ignored);
    }
    let mut seen = BTreeSet::new();
    for mut push in pushes {
        map(settings, &mut push);
        if !settings
            .registries
            .iter()
            .any(|allowed| is_of(&push.registry, allowed))
        {
            let list = settings.registries.join(", ");
            let registry = &push.registry;
            admitted.refused.push(format!(
                "the source may not speak of the registry {registry:?}, only of: {list}"
            ));
            continue;
        }
        if let Err(error) = push.image() {
            admitted.refused.push(error);
            continue;
        }
        push.unverified |= !settings.proof.is_strong();
        let key = (
            push.registry.clone(),
            push.repository.clone(),
            push.tag.clone(),
            push.digest.clone(),
        );
        if seen.insert(key) {
            admitted.pushes.push(push);
        } else {
            admitted
                .ignored
                .push("the same push is in the payload twice".to_owned());
        }
    }
    admitted
}

/// Replaces the longest name that the settings map, at the boundaries of a path.
fn map(settings: &SourceSettings, push: &mut Push) {
    let whole = format!("{}/{}", push.registry, push.repository);
    let longest = settings
        .hosts
        .iter()
        .filter_map(|(from, to)| Some((from, to, whole.strip_prefix(from.as_str())?)))
        .filter(|(_, _, rest)| rest.starts_with('/'))
        .max_by_key(|(from, _, _)| from.len());
    if let Some((_, to, rest)) = longest {
        let mapped = format!("{to}{rest}");
        if let Some((registry, repository)) = mapped.split_once('/') {
            push.registry = registry.to_owned();
            push.repository = repository.to_owned();
        }
    } else if push.registry == "docker.io" && !push.repository.contains('/') {
        push.repository = format!("library/{}", push.repository);
    }
}

fn is_of(registry: &str, allowed: &str) -> bool {
    match allowed.strip_prefix('*') {
        Some(ending) => ending.starts_with('.') && registry.ends_with(ending),
        None => registry == allowed,
    }
}

/// The id under which the broker drops a repeat of a push: made of the event's id and all of the push. Without
/// an id it is the digest that tells a repeat from news; without either nothing does, and a repeat is passed on,
/// because a push that is lost is worse than one that is told twice.
#[must_use]
pub fn message_id(push: &Push) -> Option<String> {
    if push.event_id.is_none() && push.digest.is_none() {
        return None;
    }
    let parts = [
        push.source.as_deref().unwrap_or_default(),
        push.event_id.as_deref().unwrap_or_default(),
        &push.registry,
        &push.repository,
        push.tag.as_deref().unwrap_or_default(),
        push.digest.as_ref().map_or("", Digest::as_str),
    ];
    Some(format!(
        "push:{}",
        Digest::of(parts.join("\n").as_bytes()).hex()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::auth::{Proof, Secret};
    use crate::webhook::settings::KeySource;
    use crate::webhook::source::Source;

    fn settings(proof: Proof) -> SourceSettings {
        let pair = |(from, to): (&str, &str)| (from.to_owned(), to.to_owned());
        SourceSettings {
            source: Source::JFrog,
            proof,
            registries: vec!["r.example.com".to_owned(), "*.apps.io".to_owned()],
            hosts: [
                ("x.jfrog.io", "r.example.com/other"),
                ("x.jfrog.io/docker", "r.example.com"),
                ("hosted", "a.apps.io"),
            ]
            .map(pair)
            .into(),
            digest_only: false,
            keys: KeySource::None,
        }
    }

    fn push(registry: &str, repository: &str) -> Push {
        Push {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: Some("1".to_owned()),
            digest: None,
            event_id: None,
            source: None,
            unverified: false,
            trace: None,
        }
    }

    fn admitted(proof: Proof, push: Push) -> Admitted {
        let pushes = vec![push];
        admit(
            &settings(proof),
            Reading {
                pushes,
                ..Reading::default()
            },
        )
    }

    #[test]
    fn names_are_mapped_by_the_longest_match_on_a_boundary() {
        for (from, to) in [
            (("x.jfrog.io", "docker/a"), "r.example.com/a"),
            (("x.jfrog.io", "dockers/a"), "r.example.com/other/dockers/a"),
            (("hosted", "a/b"), "a.apps.io/a/b"),
        ] {
            let found = admitted(Proof::None, push(from.0, from.1));
            let push = &found.pushes[0];
            assert_eq!(format!("{}/{}", push.registry, push.repository), to);
            assert!(push.unverified);
        }
    }

    #[test]
    fn a_source_speaks_only_of_its_registries() {
        for registry in [
            "evil.example.com",
            "apps.io",
            "evilapps.io",
            "r.example.com:443",
        ] {
            let found = admitted(Proof::None, push(registry, "a"));
            assert!(
                found.pushes.is_empty() && found.refused.len() == 1,
                "{found:?}"
            );
        }
        let proof = Proof::Header {
            name: String::new(),
            secret: Secret::new("s"),
        };
        assert!(!admitted(proof, push("r.example.com", "a")).pushes[0].unverified);
    }

    #[test]
    fn what_could_be_news_has_no_message_id() {
        let mut push = push("r.example.com", "a");
        assert_eq!(message_id(&push), None);
        push.event_id = Some("7".to_owned());
        let first = message_id(&push).unwrap();
        push.tag = Some("2".to_owned());
        assert_ne!(first, message_id(&push).unwrap());
    }
}
