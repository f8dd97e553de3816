//! Reading what a stream holds.

use async_nats::jetstream::consumer::DeliverPolicy;
use prewarm::bus::topology::{self, TopologySettings};

use crate::cell::{Cell, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::wait::within;

/// More than the client asks for at once.
const MESSAGES: usize = 1_000;

async fn filled(version: NatsVersion) -> Cell {
    let cell = Cell::start(version).await;
    topology::ensure(&cell.bus, TopologySettings::default())
        .await
        .unwrap();
    for number in 0..MESSAGES {
        let subject = format!("prewarm.task.node.job.{number:012}");
        cell.bus.client.publish(subject, "{}".into()).await.unwrap();
    }
    let last = format!("prewarm.task.node.job.{MESSAGES:012}");
    cell.bus
        .jetstream
        .publish(last, "{}".into())
        .await
        .unwrap()
        .await
        .unwrap();
    cell
}

async fn everything_is_read_once_and_in_order(version: NatsVersion) {
    let cell = filled(version).await;
    let mut sequences = Vec::new();
    let read = cell.bus.read_all(
        "PREWARM_TASKS",
        "prewarm.task.>".to_owned(),
        DeliverPolicy::All,
        |message| {
            sequences.push(message.info().unwrap().stream_sequence);
        },
    );
    within(LIMIT, "the stream to be read", read).await.unwrap();
    assert_eq!(sequences, (1..=MESSAGES as u64 + 1).collect::<Vec<_>>());
}

async fn what_is_purged_while_it_is_read_is_not_waited_for(version: NatsVersion) {
    let cell = filled(version).await;
    let all = "prewarm.task.>".to_owned();
    let mut reading = cell
        .bus
        .read("PREWARM_TASKS", all, DeliverPolicy::All)
        .await
        .unwrap();
    assert!(reading.next_stored().await.unwrap().is_some());
    let tasks = cell
        .bus
        .jetstream
        .get_stream("PREWARM_TASKS")
        .await
        .unwrap();
    tasks.purge().await.unwrap();
    let rest = async { while reading.next_stored().await.unwrap().is_some() {} };
    within(LIMIT, "the end of what is left", rest).await;
}

on_every_generation!(
    everything_is_read_once_and_in_order,
    what_is_purged_while_it_is_read_is_not_waited_for
);
