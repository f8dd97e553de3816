//! What a server remembers when it comes back.

use crate::session::{EVENTS, JOBS, Seen, Session, TASKS};

const SHORT: u64 = 4_000;
const LONG: u64 = 60_000;

pub async fn a_memory_consumer_goes_and_the_stream_stays(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    s.publish(TASKS, "n.b").await;
    s.publish_id(EVENTS, "a", "1").await;
    let first = s.take(TASKS, "n").await;
    s.nak(&first, Some(LONG)).await;
    s.restart().await;
    assert!(!s.has_consumer(TASKS, "n").await);
    assert_eq!(s.sequences(TASKS).await, [1, 2]);
    let pull = s.pull(TASKS, "n", 1, LONG).await;
    assert_eq!(s.next(pull).await, Seen::NoConsumer);
    s.consume("n", "n.>", 1, LONG).await;
    let pull = s.pull(TASKS, "n", 2, LONG).await;
    for sequence in 1..=2 {
        let message = s.message(pull).await;
        assert_eq!((message.sequence, message.deliveries), (sequence, 1));
    }
    assert_eq!(s.publish_after(TASKS, "n.c", 0).await, Ok(3));
}

pub async fn the_consumer_of_requests_goes_on(s: &mut Session) {
    s.consume_requests(&["submit"], SHORT).await;
    assert_eq!(s.publish_id(JOBS, "submit", "1").await, (1, false));
    assert_eq!(s.publish_id(JOBS, "submit", "2").await, (2, false));
    assert_eq!(s.publish_id(JOBS, "submit", "3").await, (3, false));
    let first = s.take(JOBS, "dispatcher").await;
    s.ack(&first).await;
    let second = s.take(JOBS, "dispatcher").await;
    assert_eq!((second.sequence, second.deliveries), (2, 1));
    s.restart().await;
    assert!(s.has_consumer(JOBS, "dispatcher").await);
    assert_eq!(s.sequences(JOBS).await, [2, 3]);
    let again = s.take(JOBS, "dispatcher").await;
    assert_eq!((again.sequence, again.deliveries), (2, 2));
    s.ack(&again).await;
    let third = s.take(JOBS, "dispatcher").await;
    assert_eq!((third.sequence, third.deliveries), (3, 1));
    // The ids of what is still there are known, those of what is gone are forgotten.
    assert_eq!(s.publish_id(JOBS, "submit", "3").await, (3, true));
    assert_eq!(s.publish_id(JOBS, "submit", "1").await, (4, false));
}
