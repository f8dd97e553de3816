//! What comes by the broker and over HTTP.

use std::fmt::Debug;

use prewarm::domain::status::JobPhase;
use prewarm::webhook::auth::{self, Proof, Shown};
use prewarm::webhook::oidc::{Expected, Keys};
use prewarm::webhook::source::{self, Source};
use prewarm::wire::api::{Description, Jobs, Named, Nodes, Page, Stored};
use prewarm::wire::command::JobCommand;
use prewarm::wire::event::{Event, JobEvent, NodeEvent, TaskEvent};
use prewarm::wire::manifest::{self, rule};
use prewarm::wire::push::Push;
use prewarm::wire::record::{JobRecord, NodeRecord};
use prewarm::wire::subject::Subjects;
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::{
    Heartbeat, ProgressMessage, Registration, RegistrationReply, Revocation,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{choose, headers};

/// Jobs, native and Kruise's, JSON and YAML: what is accepted is within its bounds, and says the same when it is
/// written and read again; what is not says why.
pub fn manifest(data: &[u8]) {
    match manifest::parse(data) {
        Ok(submission) => {
            assert!((1..=255).contains(&submission.spec.images.len()));
            let written = submission.to_manifest();
            let again =
                manifest::read(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
            assert_eq!(again, submission, "{written}");
            let bytes = serde_json::to_vec(&written).expect("a manifest as JSON");
            assert_eq!(manifest::parse(&bytes).as_ref(), Ok(&submission));
        }
        Err(rejection) => {
            assert!(!rejection.problems.is_empty());
            assert!(!rejection.to_string().is_empty());
        }
    }
}

/// Rules for pushes: what a rule makes of a push is a job, or says why not.
pub fn rule(data: &[u8]) {
    let Ok(documents) = manifest::documents(data) else {
        return;
    };
    for document in documents.iter().filter(|document| rule::is_rule(document)) {
        match rule::read(document) {
            Ok(rule) => {
                let push = Push::parse(
                    br#"{"registry":"r.example.com:5000","repository":"a/b","tag":"1.2.3","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#,
                )
                .expect("a push");
                let _ = rule.matches(&push);
                if let Ok(submission) = rule.submission(&push) {
                    assert!(!submission.spec.images.is_empty());
                }
                let written = serde_json::to_value(&rule).expect("a rule as JSON");
                let again = rule::read(&written).expect("a rule that was written");
                assert_eq!(again.name, rule.name);
                assert_eq!(again.matches(&push), rule.matches(&push));
            }
            Err(rejection) => assert!(!rejection.problems.is_empty()),
        }
    }
}

/// What is read is the same when it is written and read again.
fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(body).ok()?;
    let written = serde_json::to_vec(&message).expect("a message as JSON");
    let again: T = serde_json::from_slice(&written)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&written)));
    assert_eq!(again, message);
    Some(message)
}

/// Every message of the contract.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = choose(data, 19) else {
        return;
    };
    match kind {
        0 => {
            let task = survives::<PullTask>(body);
            let named = PullTask::named_in(body);
            if let Some(task) = task {
                let named = named.expect("a task that can be read has a name");
                assert_eq!(
                    (named.job, named.run, named.node),
                    (task.job, task.run, task.node)
                );
            }
        }
        1 => {
            if let Some(event) = survives::<Event<TaskEvent>>(body) {
                let subjects = Subjects::default();
                let key = prewarm::wire::subject::PullKey::new(
                    event.data.node.clone(),
                    event.data.job.clone(),
                    &event.data.image,
                );
                let subject = subjects.task(&key);
                assert_eq!(subjects.parse_task(&subject), Some(key), "{subject}");
                assert!(!subject.contains([' ', '*', '>']), "{subject}");
            }
        }
        2 => drop(survives::<Event<JobEvent>>(body)),
        3 => drop(survives::<Event<NodeEvent>>(body)),
        4 => {
            if let Some(record) = survives::<JobRecord>(body) {
                let _ = record.run();
                let _ = record.status.phase == JobPhase::Running;
                let _ = record.status.counts.add_up();
            }
        }
        5 => drop(survives::<NodeRecord>(body)),
        6 => drop(survives::<Registration>(body)),
        7 => drop(survives::<RegistrationReply>(body)),
        8 => drop(survives::<Heartbeat>(body)),
        9 => drop(survives::<Revocation>(body)),
        10 => drop(survives::<ProgressMessage>(body)),
        11 => {
            if let Ok(push) = Push::parse(body) {
                let image = push.image().expect("a push that was read names an image");
                assert_eq!(image.registry(), push.registry);
                assert_eq!(survives::<Push>(body), Some(push));
            }
        }
        12 => {
            let _ = JobCommand::parse(body);
        }
        13 => drop(serde_json::from_slice::<Stored>(body)),
        14 => drop(serde_json::from_slice::<Named>(body)),
        15 => drop(serde_json::from_slice::<Page>(body)),
        16 => drop(serde_json::from_slice::<Jobs>(body)),
        17 => drop(serde_json::from_slice::<Nodes>(body)),
        _ => drop(serde_json::from_slice::<Description>(body)),
    }
}

/// Every source of webhooks, headers before the body: what is read as a push is one that the broker's readers take.
pub fn webhook(data: &[u8]) {
    let Some((number, rest)) = choose(data, Source::ALL.len()) else {
        return;
    };
    let source = Source::ALL[number];
    let (headers, body) = headers(rest);
    match source::read(source, &headers, body) {
        Ok(reading) => {
            for push in reading.pushes.iter().chain(&reading.by_digest) {
                assert_eq!(push.source.as_deref(), Some(source.as_str()));
                let written = serde_json::to_vec(push).expect("a push as JSON");
                let again: Push =
                    serde_json::from_slice(&written).expect("a push that was written");
                assert_eq!(again, *push);
                // One that names no image is refused later, with a reason.
                let _ = push.image();
            }
        }
        Err(rejection) => assert!(!rejection.message.is_empty()),
    }
}

/// A key set, an empty line, and the value of `Authorization`: nothing that is made up passes.
pub fn oidc(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let Some(end) = end else {
        let _ = Keys::parse(data);
        return;
    };
    let keys = Keys::parse(&data[..end]).unwrap_or_default();
    let value = &data[end + 2..];
    let _ = keys.know(value);
    let Ok(value) = axum::http::HeaderValue::from_bytes(value) else {
        return;
    };
    let mut headers = axum::http::HeaderMap::new();
    headers.insert("authorization", value);
    let expected = Expected {
        issuers: vec!["https://accounts.example.com".to_owned()],
        audience: "https://prewarm.example.com".to_owned(),
        email: None,
    };
    let shown = Shown {
        path: None,
        headers: &headers,
        body: b"",
        now: 1_790_000_000,
    };
    assert!(auth::check(&Proof::Oidc(expected), shown, &keys).is_err());
}
