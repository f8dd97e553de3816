//! The request/reply service, as a script uses it.

use prewarm::api;
use prewarm::wire::api::{Description, Jobs, Nodes, Stored};
use prewarm::wire::event::JobEventKind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cell::{Cell, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

/// What an endpoint answers: the body, or the error's code and text.
async fn ask(cell: &Cell, endpoint: &str, body: Value) -> Result<Value, (String, String)> {
    let subject = cell.bus.subjects.api(endpoint);
    let answer = eventually("the service to answer", LIMIT, async || {
        let asked = cell
            .bus
            .client
            .request(subject.clone(), body.to_string().into())
            .await;
        asked.map_err(|error| error.to_string())
    })
    .await;
    let header = |name: &str| answer.headers.as_ref()?.get(name).map(ToString::to_string);
    match header("Nats-Service-Error-Code") {
        Some(code) => Err((code, header("Nats-Service-Error").unwrap_or_default())),
        None => Ok(serde_json::from_slice(&answer.payload).unwrap()),
    }
}

fn manifest(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_script_can_do_everything_by_request_and_reply() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(api::run(cell.bus.clone(), shutdown.clone()));
    let mut node = cell.register("node", json!({}), false).await;

    refuses_what_makes_no_sense(&cell).await;
    for name in ["a", "b", "c"] {
        let stored = ask(
            &cell,
            "submit",
            manifest(name, json!({"images": ["r.invalid/x:1"]})),
        )
        .await;
        let stored: Stored = serde_json::from_value(stored.unwrap()).unwrap();
        assert_eq!(stored.job.as_str(), name);
        let accepted = cell.event(Some(name), JobEventKind::Accepted).await;
        assert_eq!(
            accepted.data.request_sequence,
            Some(stored.request_sequence)
        );
    }
    let first: Jobs =
        serde_json::from_value(ask(&cell, "list", json!({"limit": 2})).await.unwrap()).unwrap();
    assert_eq!((first.jobs.len(), first.next.as_deref()), (2, Some("b")));
    let rest = ask(&cell, "list", json!({"after": first.next}))
        .await
        .unwrap();
    let rest: Jobs = serde_json::from_value(rest).unwrap();
    assert_eq!(
        (rest.jobs[0].metadata.name.as_str(), rest.next),
        ("c", None)
    );
    let nodes: Nodes =
        serde_json::from_value(ask(&cell, "nodes", json!({})).await.unwrap()).unwrap();
    assert_eq!(nodes.nodes[0].name.as_str(), "node");

    let failed = node.fail().await;
    cell.event(Some(failed.job.as_str()), JobEventKind::Completed)
        .await;
    let described = ask(&cell, "describe", json!({"name": failed.job}))
        .await
        .unwrap();
    let described: Description = serde_json::from_value(described).unwrap();
    assert_eq!(described.failed_pulls.len(), 1, "{described:?}");
    assert_eq!(described.failed_pulls[0].kind.as_str(), "ImageNotFound");

    let left = if failed.job.as_str() == "a" { "b" } else { "a" };
    for (verb, kind) in [
        ("pause", JobEventKind::Paused),
        ("resume", JobEventKind::Resumed),
        ("cancel", JobEventKind::Cancelled),
        ("delete", JobEventKind::Deleted),
    ] {
        ask(&cell, verb, json!({"name": left})).await.unwrap();
        cell.event(Some(left), kind).await;
    }
    eventually("the deleted job to be forgotten", LIMIT, async || {
        ask(&cell, "get", json!({"name": left})).await.is_err()
    })
    .await;
    shutdown.cancel();
    service.await.unwrap().unwrap();
    dispatcher.stop().await;
}

async fn refuses_what_makes_no_sense(cell: &Cell) {
    let (code, text) = ask(cell, "submit", manifest("bad", json!({"images": []})))
        .await
        .unwrap_err();
    assert_eq!(code, "400");
    assert!(text.contains("spec.images"), "{text}");
    let (code, text) = ask(cell, "get", json!({"name": "nobody"}))
        .await
        .unwrap_err();
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("404", "there is no job named nobody")
    );
    assert_eq!(
        ask(cell, "cancel", json!({"name": "nobody"}))
            .await
            .unwrap_err()
            .0,
        "404"
    );
    assert_eq!(
        ask(cell, "list", json!({"limit": 0})).await.unwrap_err().0,
        "400"
    );
}
