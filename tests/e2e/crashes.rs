//! SIGKILL in the middle of a pull: of the worker, the dispatcher, the broker. The job completes.

use prewarm::domain::status::Outcome;
use prewarm::wire::event::{Event, PullState, TaskEvent};
use serde_json::json;

use super::cell::{Cell, LIMIT, Node, dispatcher, worker, worker_call};
use crate::support::containerd::ContainerdVersion;
use crate::support::gate::Gate;
use crate::support::images::generated;
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

/// Every event of this job's pulls that the broker has.
async fn told(cell: &Cell, job: &str) -> Vec<TaskEvent> {
    let jetstream = async_nats::jetstream::new(cell.nats.client().await);
    let stream = jetstream.get_stream("PREWARM_EVENTS").await.unwrap();
    let mut events = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        let of_job = format!("prewarm.event.task.{job}.");
        if message.subject.starts_with(&of_job) {
            let event: Event<TaskEvent> = serde_json::from_slice(&message.payload).unwrap();
            events.push(event.data);
        }
    }
    events
}

/// A cell in which a pull is half done: the registry's gate holds the rest back.
struct HalfDone {
    cell: Cell,
    node: Node,
    gate: Gate,
}

async fn half_done() -> HalfDone {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = generated(11, 3, 400_000).build();
    cell.registry.push("team/app", "1", &image).await;
    // Enough for manifests and the first layer, not for all.
    let gate = Gate::closed_after(image.size() / 2, &cell.registry.addr()).await;
    let node = cell
        .node("node", ContainerdVersion::V1_7, &gate.addr())
        .await;
    let image = format!("{}/team/app:1", gate.addr());
    cell.publish("base", json!({"images": [image]})).await;
    gate.holds(LIMIT).await;
    HalfDone { cell, node, gate }
}

async fn completes(cell: &Cell) {
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(record.status.counts.succeeded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_gets_its_task_back() {
    let HalfDone {
        cell,
        mut node,
        gate,
    } = half_done().await;
    node.worker.kill9();
    let _worker = worker(&cell.nats, "node", &node.containerd);
    gate.open();
    completes(&cell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dispatcher_is_rebuilt() {
    let HalfDone {
        mut cell,
        node: _node,
        gate,
    } = half_done().await;
    cell.dispatcher.kill9();
    cell.dispatcher = dispatcher(&cell.nats);
    gate.open();
    completes(&cell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_is_waited_for() {
    let HalfDone {
        mut cell,
        node: _node,
        gate,
    } = half_done().await;
    cell.nats.kill();
    // The worker finishes while nobody can be told.
    gate.open();
    cell.nats.restart().await;
    completes(&cell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_finished_while_the_broker_was_away_is_told_by_the_next() {
    let HalfDone {
        mut cell,
        mut node,
        gate,
    } = half_done().await;
    let mark = cell.registry.mark().await;
    eventually(
        "the broker to have the pull's beginning",
        LIMIT,
        async || {
            let told = told(&cell, "base").await;
            told.iter().any(|event| event.state == PullState::Started)
        },
    )
    .await;
    cell.nats.kill();
    gate.open();
    node.worker
        .logs("the end of the pull is kept on the disk", LIMIT)
        .await;
    node.worker.kill9();
    // Its state directory is the one of the worker before, as a node's is.
    let next = worker_call(&cell.nats, "node", &node.containerd)
        .env("PREWARM_STATE_DIR", node.worker.home().join("state"))
        .spawn("the next worker");
    cell.nats.restart().await;
    completes(&cell).await;

    let events = told(&cell, "base").await;
    let ends: Vec<_> = events
        .iter()
        .filter(|event| event.state == PullState::Succeeded)
        .collect();
    let [end] = &ends[..] else {
        panic!("{events:#?}\n{}", next.log());
    };
    let result = end.result.as_ref().unwrap();
    assert!(
        !result.already_present && result.bytes_registry > 0,
        "{end:?}"
    );
    let starts = events
        .iter()
        .filter(|event| event.state == PullState::Started);
    assert_eq!(starts.count(), 1, "pulled again: {events:#?}");
    let blobs = cell.registry.requests_since(mark).await;
    let mut blobs: Vec<_> = blobs
        .iter()
        .filter(|request| request.gets_blob())
        .map(|request| &request.path)
        .collect();
    let asked = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!(blobs.len(), asked, "a blob was fetched twice");
    let results = node.worker.home().join("state/results/prewarm/node");
    eventually("the result to leave the disk", LIMIT, async || {
        let left = std::fs::read_dir(&results).unwrap().count();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} left\n{}", next.log()))
        }
    })
    .await;
}
