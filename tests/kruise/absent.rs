//! Nodes that are not there, or not any more. In Kruise each holds a slot for ten minutes, and one that dies after it
//! has reported a pull holds the job up for ever.

use prewarm::domain::failure::FailureKind;
use prewarm::domain::status::{JobPhase, Outcome};
use prewarm::wire::event::PullState;
use serde_json::json;

use crate::cell::Cell;
use crate::node::{Setup, name};
use crate::support::nats::NatsVersion;

/// Both wait until a silent node counts as gone; so they wait together.
#[tokio::test]
async fn a_node_that_dies_or_never_answers_is_given_up() {
    tokio::join!(
        a_node_that_dies_in_the_middle_of_a_pull_is_given_up_after_absent_after_seconds(),
        a_node_that_never_answers_holds_a_slot_only_until_it_is_gone(),
    );
}

async fn a_node_that_dies_in_the_middle_of_a_pull_is_given_up_after_absent_after_seconds() {
    let cell = Cell::start().await;
    let dying = cell.worker(Setup::new("dying").latency("10m")).await;
    let _other = cell.node("other").await;
    let spec = json!({"images": ["app:1"], "parallelism": 1, "absentAfterSeconds": 1});
    cell.submit("job", spec).await;
    assert_eq!(
        cell.hears("job", PullState::Started).await.node,
        name("dying")
    );
    dying.kill().await;
    // Its slot is free as soon as it counts as gone.
    cell.succeeded("job", 1).await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.outcome, Some(Outcome::PartiallyFailed));
    assert_eq!(job.status.failures[0].kind, FailureKind::NodeAbsent);
    assert_eq!(job.status.failures[0].nodes, [name("dying")]);
    assert!(job.status.failures[0].message.contains("more than 1 s"));
    cell.no_tasks("job").await;
}

async fn a_node_that_never_answers_holds_a_slot_only_until_it_is_gone() {
    let cell = Cell::start().await;
    cell.dying("silent", &[]).await;
    let _other = cell.node("other").await;
    let once = json!({"images": ["app:1"], "parallelism": 1, "absentAfterSeconds": 0});
    cell.submit("always", once).await;
    let warm =
        json!({"images": ["app:2"], "parallelism": 1, "completionPolicy": {"type": "Never"}});
    cell.submit("never", warm).await;
    let job = cell.ended("always").await;
    assert_eq!(
        (job.status.counts.succeeded, job.status.counts.failed),
        (1, 1)
    );
    assert_eq!(job.status.failures[0].nodes, [name("silent")]);
    let job = cell
        .job("never", "idle", |job| job.status.phase == JobPhase::Idle)
        .await;
    assert_eq!(
        (job.status.counts.succeeded, job.status.counts.pending),
        (1, 1)
    );
    // When it comes at last, it is not too late for the job that goes on.
    let _silent = cell.node("silent").await;
    cell.succeeded("never", 2).await;
}

#[tokio::test]
async fn a_node_that_comes_back_gets_what_it_missed() {
    let mut cell = Cell::broker(NatsVersion::V2_15).await;
    cell.gone_for_an_hour("back", &[]).await;
    cell.dispatch(|_| {}).await;
    let _other = cell.node("other").await;
    // More than the hour it has been gone.
    let spec = json!({"images": ["app:1"], "absentAfterSeconds": 36_000});
    cell.submit("patient", spec).await;
    let job = cell.succeeded("patient", 1).await;
    assert_eq!((job.status.outcome, job.status.counts.pending), (None, 1));
    let _back = cell.node("back").await;
    assert_eq!(cell.ended("patient").await.status.counts.succeeded, 2);
}
