//! SIGKILL in the middle of a pull: of the worker, the dispatcher, the broker. The job completes.

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::{Cell, LIMIT, Node, dispatcher, worker};
use crate::support::containerd::ContainerdVersion;
use crate::support::gate::Gate;
use crate::support::images::generated;
use crate::support::nats::NatsVersion;

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
