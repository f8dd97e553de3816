//! Reading what a stream holds.

use async_nats::jetstream::consumer::DeliverPolicy;
use prewarm::bus::topology::{self, TopologySettings};

use crate::cell::{Cell, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::wait::within;

/// More than a client asks for ahead.
const MESSAGES: u64 = 2_000;

on_every_generation!(reading_ends_when_what_was_to_come_is_purged);

async fn reading_ends_when_what_was_to_come_is_purged(version: NatsVersion) {
    let cell = Cell::start(version).await;
    topology::ensure(&cell.bus, TopologySettings::default())
        .await
        .unwrap();
    let publish = async |subject: String| {
        let stored = cell.bus.jetstream.publish(subject, "".into()).await;
        stored.unwrap()
    };
    // One that lies before the start of the reading, and stays.
    publish("prewarm.task.other.job.x".to_owned())
        .await
        .await
        .unwrap();
    let mut stored = vec![];
    for n in 0..MESSAGES {
        stored.push(publish(format!("prewarm.task.node.job.{n}")).await);
    }
    for stored in stored {
        stored.await.unwrap();
    }
    let name = cell.bus.subjects.tasks_stream();
    let from = DeliverPolicy::ByStartSequence { start_sequence: 2 };
    let filter = cell.bus.subjects.tasks();
    let mut reading = cell.bus.read(&name, filter, from).await.unwrap();
    assert_eq!(reading.left, MESSAGES);
    let stream = cell.bus.jetstream.get_stream(&name).await.unwrap();
    stream.purge().filter("prewarm.task.node.>").await.unwrap();
    let rest = async {
        let mut count = 0;
        while reading.next_stored().await.unwrap().is_some() {
            count += 1;
        }
        count
    };
    let count = within(LIMIT, "the end of the reading", rest).await;
    assert!(count < MESSAGES, "all {count} came before the purge");
}
