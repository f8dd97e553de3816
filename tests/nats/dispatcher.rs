//! The dispatcher; the workers are played by the tests.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt as _;
use prewarm::bus::topology::{self, TopologySettings};
use prewarm::wire::event::JobEventKind;
use prewarm::wire::subject::JobVerb;
use serde_json::json;

use crate::cell::{Cell, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::wait::{eventually, within};

async fn a_job_runs_from_submission_to_completion(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut blue = cell.register("blue", json!({"pool": "a"}), false).await;
    let _green = cell.register("green", json!({"pool": "b"}), false).await;
    let spec = json!({
        "images": ["registry.invalid/a:1", "registry.invalid/b:1"], "parallelism": 1,
        "selector": {"matchLabels": {"pool": "a"}},
    });
    cell.submit("base", spec).await;
    let first = blue.succeed().await;
    assert_eq!(first.node.as_str(), "blue");
    let second = blue.succeed().await;
    assert_ne!(first.image, second.image);
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    let counts = completed.data.counts.unwrap();
    assert_eq!((counts.desired, counts.succeeded, counts.failed), (2, 2, 0));
    assert_eq!(
        (
            completed.data.bytes_registry,
            completed.data.bytes_elsewhere
        ),
        (Some(20), Some(2))
    );
    assert_eq!(completed.kind, "dev.prewarm.job.completed");
    cell.event(Some("base"), JobEventKind::Accepted).await;
    cell.event(Some("base"), JobEventKind::Started).await;
    eventually(
        "the tasks of the ended job to be withdrawn",
        LIMIT,
        async || cell.tasks_left().await == 0,
    )
    .await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_job_runs_from_submission_to_completion_on_2_10() {
    a_job_runs_from_submission_to_completion(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn a_job_runs_from_submission_to_completion_on_2_15() {
    a_job_runs_from_submission_to_completion(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn a_killed_dispatcher_is_followed_by_one_that_knows_everything() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let first = cell.dispatcher("one").await;
    let mut node = cell.register("node", json!({}), false).await;
    cell.submit(
        "base",
        json!({"images": ["r.invalid/a", "r.invalid/b", "r.invalid/c"], "parallelism": 1}),
    )
    .await;
    node.succeed().await;
    let (held, message) = node.take().await;
    first.kill().await;
    let second = cell.dispatcher("two").await;
    // What was released stays released, and is not released twice.
    let _again = cell.register("node", json!({}), false).await;
    message
        .ack_with(jetstream::AckKind::Nak(None))
        .await
        .unwrap();
    let finished = node.succeed().await;
    assert_eq!(finished, held);
    node.succeed().await;
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 3);
    second.stop().await;
}

/// Less than the 30 s for which the broker waits for an ack of a request.
const BEFORE_ACK_WAIT: Duration = Duration::from_secs(25);

/// Within less than the request's ack wait, for which all that was asked later would wait as well.
async fn a_request_in_the_hands_of_a_killed_dispatcher_is_taken_up_at_once(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let first = cell.dispatcher("one").await;
    let _node = cell.register("node", json!({}), false).await;
    first.stop().await;
    for job in ["one", "two"] {
        cell.submit(job, json!({"images": ["r.invalid/a"]})).await;
    }
    let stream = cell.bus.subjects.jobs_stream();
    let stream = cell.bus.jetstream.get_stream(stream).await.unwrap();
    let requests: PullConsumer = stream.get_consumer("dispatcher").await.unwrap();
    // It waits: a consumer may not have heard of what the stream has taken.
    let batch = requests.batch().max_messages(1).expires(LIMIT);
    let mut taken = batch.messages().await.unwrap();
    let held = within(LIMIT, "a request", taken.next()).await;
    let held = held.unwrap().unwrap();
    let taken_up = async {
        let second = cell.dispatcher("two").await;
        for job in ["one", "two"] {
            cell.event(Some(job), JobEventKind::Accepted).await;
        }
        second
    };
    let _second = within(BEFORE_ACK_WAIT, "both to be accepted", taken_up).await;
    // Whoever comes back to it changes nothing.
    held.ack().await.unwrap();
    cell.submit("three", json!({"images": ["r.invalid/a"]}))
        .await;
    cell.event(Some("three"), JobEventKind::Accepted).await;
}

#[tokio::test]
async fn a_request_in_the_hands_of_a_killed_dispatcher_is_taken_up_at_once_on_2_10() {
    a_request_in_the_hands_of_a_killed_dispatcher_is_taken_up_at_once(NatsVersion::V2_10).await;
}

#[tokio::test]
async fn a_request_in_the_hands_of_a_killed_dispatcher_is_taken_up_at_once_on_2_15() {
    a_request_in_the_hands_of_a_killed_dispatcher_is_taken_up_at_once(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn a_stopped_dispatcher_hands_over_at_once() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let first = cell.dispatcher("one").await;
    let _node = cell.register("node", json!({}), false).await;
    let second = cell.dispatcher("two").await;
    first.stop().await;
    let _node = cell.register("node", json!({}), false).await;
    second.stop().await;
}

#[tokio::test]
async fn a_broker_that_restarts_costs_no_job() {
    let mut cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("node", json!({}), false).await;
    cell.submit(
        "base",
        json!({"images": ["r.invalid/a", "r.invalid/b"], "parallelism": 1}),
    )
    .await;
    node.succeed().await;
    let (held, _) = node.take().await;
    cell.server.kill();
    cell.server.restart().await;
    // The consumer was in memory; it is made again and begins at the oldest unfinished task.
    let mut node = cell.register("node", json!({}), true).await;
    assert_eq!(node.succeed().await, held);
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 2);
    dispatcher.stop().await;
}

#[tokio::test]
async fn tasks_that_somebody_purges_are_released_again() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    // It does not take its task before the stream is emptied.
    let node = cell.register("node", json!({}), false).await;
    drop(node);
    cell.submit("base", json!({"images": ["r.invalid/a"]}))
        .await;
    eventually("the task to be released", LIMIT, async || {
        cell.tasks_left().await == 1
    })
    .await;
    let tasks = cell
        .bus
        .jetstream
        .get_stream("PREWARM_TASKS")
        .await
        .unwrap();
    assert_eq!(tasks.purge().await.unwrap().purged, 1);
    let mut node = cell.register("node", json!({}), true).await;
    node.succeed().await;
    let completed = cell.event(Some("base"), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 1);
    dispatcher.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_rejected_with_every_problem() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let _node = cell.register("node", json!({}), false).await;
    cell.submit("bad", json!({"images": ["UPPER"], "parallelism": "ten"}))
        .await;
    let rejected = cell.event(Some("bad"), JobEventKind::Rejected).await;
    let paths: Vec<&str> = rejected
        .data
        .problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["spec.images[0]", "spec.parallelism"]);
    cell.publish(JobVerb::Submit, json!("nonsense")).await;
    cell.event(None, JobEventKind::Rejected).await;
    cell.publish(JobVerb::Cancel, json!({"name": "nobody"}))
        .await;
    let rejected = cell.event(Some("nobody"), JobEventKind::Rejected).await;
    assert!(
        rejected.data.problems[0]
            .message
            .contains("no job named nobody")
    );
    dispatcher.stop().await;
}

#[tokio::test]
async fn a_stream_of_another_form_is_reported_and_left_alone() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let foreign = jetstream::stream::Config {
        name: "PREWARM_TASKS".to_owned(),
        subjects: vec!["prewarm.task.>".to_owned()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    cell.bus.jetstream.create_stream(foreign).await.unwrap();
    let dispatcher = cell.dispatcher("one").await;
    let ended = within(LIMIT, "the dispatcher to give up", dispatcher.task)
        .await
        .unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(
        error.contains("PREWARM_TASKS") && error.contains("retention is WorkQueue"),
        "{error}"
    );
    let stream = cell
        .bus
        .jetstream
        .get_stream("PREWARM_TASKS")
        .await
        .unwrap();
    assert_eq!(
        stream.cached_info().config.retention,
        jetstream::stream::RetentionPolicy::WorkQueue
    );
}

#[tokio::test]
async fn the_topology_is_made_once_and_kept_as_an_operator_changed_it() {
    for version in [NatsVersion::V2_10, NatsVersion::V2_15] {
        let cell = Cell::start(version).await;
        let settings = TopologySettings::default();
        assert!(
            topology::check(&cell.bus, settings).await.is_err(),
            "nothing is there yet"
        );
        topology::ensure(&cell.bus, settings).await.unwrap();
        let events = cell
            .bus
            .jetstream
            .get_stream("PREWARM_EVENTS")
            .await
            .unwrap();
        let mut config = events.cached_info().config.clone();
        config.max_age = Duration::from_secs(30 * 24 * 60 * 60);
        cell.bus
            .jetstream
            .update_stream(config.clone())
            .await
            .unwrap();
        topology::ensure(&cell.bus, settings).await.unwrap();
        topology::check(&cell.bus, settings).await.unwrap();
        let events = cell
            .bus
            .jetstream
            .get_stream("PREWARM_EVENTS")
            .await
            .unwrap();
        assert_eq!(events.cached_info().config.max_age, config.max_age);
    }
}

/// A purge may be held up on its way until another leader has released the same pulls anew.
#[tokio::test]
async fn a_withdrawal_takes_only_what_its_leader_knows_of() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("node", json!({}), false).await;
    let subject = format!("$JS.API.STREAM.PURGE.{}", cell.bus.subjects.tasks_stream());
    let mut purges = cell.bus.client.subscribe(subject).await.unwrap();
    cell.submit("base", json!({"images": ["r.invalid/a"]}))
        .await;
    let (_, message) = node.take().await;
    let sequence = message.info().unwrap().stream_sequence;
    cell.publish(JobVerb::Cancel, json!({"name": "base"})).await;
    let purge = within(LIMIT, "a purge", purges.next()).await.unwrap();
    let asked: serde_json::Value = serde_json::from_slice(&purge.payload).unwrap();
    assert_eq!(asked["seq"], sequence + 1, "{asked}");
    eventually("the task to be withdrawn", LIMIT, async || {
        cell.tasks_left().await == 0
    })
    .await;
    dispatcher.stop().await;
}
