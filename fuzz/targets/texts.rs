//! What people write: settings, names, sizes, times, selectors.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use prewarm::cli::settings::file::SettingsFile;
use prewarm::cli::settings::labels::labels;
use prewarm::cli::settings::span::Span;
use prewarm::cli::settings::{Check, Sources};
use prewarm::domain::image::{Digest, ImageRef, Platform};
use prewarm::domain::job::Amount;
use prewarm::domain::name::{JobName, NodeName};
use prewarm::domain::selector::{NodeSelector, check_label_key, check_label_value};
use prewarm::domain::time::Timestamp;
use prewarm::image::simulated::{FailureRate, Latency};
use prewarm::image::size::{Bandwidth, ByteSize, DiskReserve};
use prewarm::wire::subject::{SubjectPrefix, Subjects};

use super::choose;

/// A settings file of any role.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let known = ["node", "labels", "capacity", "nats-url"].map(str::to_owned);
    match SettingsFile::parse(Path::new("prewarm.yaml"), text, &known) {
        Ok(file) => assert!(!file.sets("unknown")),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(
                problems
                    .iter()
                    .all(|problem| problem.starts_with("prewarm.yaml: "))
            );
        }
    }
}

/// What is read says itself when it is written, and is the same when that is read again.
fn round<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T>
where
    T::Err: Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            match written.parse::<T>() {
                Ok(again) => assert_eq!(again, value, "{text:?} is written {written:?}"),
                Err(error) => panic!("{text:?} is written {written:?}, which is wrong: {error}"),
            }
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Short texts with a meaning, chosen by the first byte.
pub fn text(data: &[u8]) {
    const KINDS: [fn(&str); 16] = [
        image, digest, node_name, job_name, platform, timestamp, amount, size, bandwidth, reserve,
        span, simulated, prefix, label, selector, label_list,
    ];
    let Some((kind, rest)) = choose(data, KINDS.len()) else {
        return;
    };
    if let Ok(text) = std::str::from_utf8(rest) {
        KINDS[kind](text);
    }
}

fn image(text: &str) {
    if let Some(image) = round::<ImageRef>(text) {
        assert!(image.repository().len() <= 255);
        assert!(!image.registry().is_empty());
        assert_eq!(image.token().len(), 12);
        assert!(image.tag().is_some() || image.digest().is_some());
    }
}

fn digest(text: &str) {
    round::<Digest>(text);
}

fn node_name(text: &str) {
    if let Some(name) = round::<NodeName>(text) {
        assert!(!name.token().contains('.'));
        let subjects = Subjects::default();
        let subject = subjects.heartbeat(&name);
        assert_eq!(subjects.parse_node(&subject), Some(name));
    }
}

fn job_name(text: &str) {
    if let Some(name) = round::<JobName>(text) {
        assert!(!name.token().contains('.'));
    }
}

fn platform(text: &str) {
    round::<Platform>(text);
}

fn timestamp(text: &str) {
    round::<Timestamp>(text);
}

fn amount(text: &str) {
    if let Some(Amount::Percent(percent)) = round::<Amount>(text) {
        assert!(Amount::Percent(percent).of(10) <= 10);
    }
}

fn size(text: &str) {
    if let Ok(size) = text.parse::<ByteSize>() {
        assert!(!size.to_string().is_empty());
    }
}

fn bandwidth(text: &str) {
    if let Ok(bandwidth) = text.parse::<Bandwidth>() {
        assert!(!bandwidth.to_string().is_empty());
    }
}

fn reserve(text: &str) {
    if let Ok(reserve) = text.parse::<DiskReserve>() {
        let _ = reserve.of(1 << 40);
    }
}

fn span(text: &str) {
    if let Ok(span) = text.parse::<Span>() {
        let _ = (span.as_seconds(), span.to_string());
    }
}

fn simulated(text: &str) {
    let _ = (text.parse::<Latency>(), text.parse::<FailureRate>());
}

fn prefix(text: &str) {
    if let Some(prefix) = round::<SubjectPrefix>(text) {
        assert!(!prefix.to_string().contains([' ', '*', '>', '/']));
    }
}

fn label(text: &str) {
    let (key, value) = (check_label_key(text), check_label_value(text));
    assert!(value.is_ok() || key.is_err() || text.contains('/'));
}

fn selector(text: &str) {
    if let Ok(selector) = serde_json::from_str::<NodeSelector>(text) {
        let written = serde_json::to_string(&selector).expect("a selector as JSON");
        let again: NodeSelector = serde_json::from_str(&written).expect("what was written");
        assert_eq!(again, selector);
        let node = "node-1".parse().expect("a name");
        let labels = [("pool".to_owned(), "a".to_owned())].into();
        assert_eq!(
            again.matches(&node, &labels),
            selector.matches(&node, &labels)
        );
    }
}

fn label_list(text: &str) {
    let sources = Sources::default();
    let mut check = Check::new(&sources);
    let labels = labels("labels", Some(text), &mut check);
    assert!(labels.keys().all(|key| check_label_key(key).is_ok()));
    assert!(
        labels
            .values()
            .all(|value| check_label_value(value).is_ok())
    );
}
