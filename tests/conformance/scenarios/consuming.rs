//! What consumers deliver, and to whom.

use crate::session::{JOBS, Message, Seen, Session, TASKS};

/// Longer than anything here takes.
const LONG: u64 = 60_000;
/// The shortest ack wait that a busy machine keeps.
const SHORT: u64 = 4_000;

fn sequences(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|message| message.sequence).collect()
}

pub async fn messages_come_in_order_and_only_those_filtered(s: &mut Session) {
    for subject in ["n1.a", "n2.a", "n1.b", "n10.a", "n1.c.d"] {
        s.publish(TASKS, subject).await;
    }
    s.consume("n1", "n1.>", 1, LONG).await;
    let pull = s.pull(TASKS, "n1", 4, LONG).await;
    for (sequence, subject) in [(1, "n1.a"), (3, "n1.b"), (5, "n1.c.d")] {
        let message = s.message(pull).await;
        assert_eq!(
            (message.sequence, message.subject.as_str()),
            (sequence, subject)
        );
        assert_eq!(message.deliveries, 1);
    }
    s.publish(TASKS, "n2.b").await;
    s.publish(TASKS, "n1.z").await;
    assert_eq!(s.message(pull).await.sequence, 7);
    s.is_quiet(TASKS, "n1").await;
}

pub async fn a_consumer_begins_at_its_sequence(s: &mut Session) {
    for subject in ["n.a", "n.b", "n.c", "n.d"] {
        s.publish(TASKS, subject).await;
    }
    s.purge(TASKS, "n.c", None).await;
    s.consume("third", "n.>", 3, LONG).await;
    assert_eq!(sequences(&s.drain(TASKS, "third").await), [4]);
    s.consume("second", "n.>", 2, LONG).await;
    assert_eq!(sequences(&s.drain(TASKS, "second").await), [2, 4]);
}

/// A dispatcher that has released nothing says "from the next one on".
pub async fn a_consumer_begins_behind_the_newest_message(s: &mut Session) {
    s.consume("empty", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    s.publish(TASKS, "n.b").await;
    s.purge(TASKS, "n.b", None).await;
    s.consume("next", "n.>", 3, LONG).await;
    s.publish(TASKS, "n.c").await;
    assert_eq!(sequences(&s.drain(TASKS, "empty").await), [1, 3]);
    assert_eq!(sequences(&s.drain(TASKS, "next").await), [3]);
}

pub async fn requests_take_turns(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    for subject in ["n.a", "n.b"] {
        s.publish(TASKS, subject).await;
    }
    let first = s.pull(TASKS, "n", 3, LONG).await;
    assert_eq!(s.message(first).await.sequence, 1);
    assert_eq!(s.message(first).await.sequence, 2);
    let second = s.pull(TASKS, "n", 2, LONG).await;
    for (subject, pull) in [("n.c", first), ("n.d", second)] {
        let sequence = s.publish(TASKS, subject).await;
        assert_eq!(s.message(pull).await.sequence, sequence);
    }
    let sequence = s.publish(TASKS, "n.e").await;
    assert_eq!(s.message(second).await.sequence, sequence);
    let third = s.pull(TASKS, "n", 2, LONG).await;
    let fourth = s.pull(TASKS, "n", 2, LONG).await;
    for (subject, pull) in [("n.f", third), ("n.g", fourth), ("n.h", third)] {
        let sequence = s.publish(TASKS, subject).await;
        assert_eq!(s.message(pull).await.sequence, sequence);
    }
}

pub async fn a_request_ends_with_what_did_not_come(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    let began = s.now();
    let pull = s.pull(TASKS, "n", 3, 400).await;
    assert_eq!(s.message(pull).await.sequence, 1);
    assert_eq!(s.next(pull).await, Seen::Expired(2));
    assert!(s.now() - began >= 390, "{}", s.now() - began);
}

pub async fn without_a_consumer_nobody_answers(s: &mut Session) {
    s.publish(TASKS, "n.a").await;
    assert!(!s.has_consumer(TASKS, "n").await);
    let pull = s.pull(TASKS, "n", 1, LONG).await;
    assert_eq!(s.next(pull).await, Seen::NoConsumer);
}

pub async fn who_waits_at_a_deleted_consumer_is_told(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    let pull = s.pull(TASKS, "n", 2, LONG).await;
    s.delete_consumer(TASKS, "n").await;
    assert_eq!(s.next(pull).await, Seen::ConsumerDeleted);
    assert!(!s.has_consumer(TASKS, "n").await);
}

pub async fn a_dropped_request_gets_nothing(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    let dropped = s.pull(TASKS, "n", 2, LONG).await;
    s.publish(TASKS, "n.a").await;
    assert_eq!(s.message(dropped).await.sequence, 1);
    s.drop_pull(dropped).await;
    s.publish(TASKS, "n.b").await;
    let message = s.take(TASKS, "n").await;
    assert_eq!((message.sequence, message.deliveries), (2, 1));
}

/// As a worker that lost its consumer gets another: from its oldest unfinished task on.
pub async fn a_consumer_made_anew_has_forgotten(s: &mut Session) {
    for subject in ["n.a", "n.b", "n.c"] {
        s.publish(TASKS, subject).await;
    }
    s.consume("n", "n.>", 1, LONG).await;
    let pull = s.pull(TASKS, "n", 3, LONG).await;
    let first = s.message(pull).await;
    let second = s.message(pull).await;
    let third = s.message(pull).await;
    s.nak(&third, None).await;
    assert_eq!(s.take(TASKS, "n").await.deliveries, 2);
    s.ack(&first).await;
    s.ack(&second).await;
    s.delete_consumer(TASKS, "n").await;
    s.consume("n", "n.>", 2, LONG).await;
    let messages = s.drain(TASKS, "n").await;
    assert_eq!(sequences(&messages), [2, 3]);
    assert!(messages.iter().all(|message| message.deliveries == 1));
    // What the former one delivered can be answered: it has the name of this one.
    s.ack(&third).await;
    s.nak(&second, None).await;
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (2, 2));
    s.is_quiet(TASKS, "n").await;
}

pub async fn a_purged_message_is_not_delivered_again(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    s.publish(TASKS, "n.a").await;
    s.publish(TASKS, "n.b").await;
    s.publish(TASKS, "n.c").await;
    let delivered = s.take(TASKS, "n").await;
    s.purge(TASKS, "n.a", None).await;
    s.purge(TASKS, "n.b", None).await;
    // The answer to what is gone concerns nothing, and the ack wait of what is gone is over.
    s.nak(&delivered, None).await;
    let next = s.take(TASKS, "n").await;
    assert_eq!((next.sequence, next.deliveries), (3, 1));
    s.ack(&next).await;
    s.pass(SHORT + 200).await;
    s.publish(TASKS, "n.a").await;
    let anew = s.take(TASKS, "n").await;
    assert_eq!((anew.sequence, anew.deliveries), (4, 1));
    s.ack(&delivered).await;
    s.nak(&anew, None).await;
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (4, 2));
}

pub async fn a_replaced_message_gives_way_to_the_new_one(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    s.publish(TASKS, "n.a").await;
    let old = s.take(TASKS, "n").await;
    s.publish(TASKS, "n.a").await;
    let new = s.take(TASKS, "n").await;
    assert_eq!((new.sequence, new.deliveries), (2, 1));
    s.ack(&old).await;
    s.nak(&old, None).await;
    let again = s.take(TASKS, "n").await;
    assert_eq!(
        (again.sequence, again.deliveries),
        (2, 2),
        "the ack wait is over"
    );
    s.ack(&again).await;
    s.pass(SHORT + 200).await;
    s.is_quiet(TASKS, "n").await;
}

/// Users' requests: in the order they were stored, whatever their subject, and never two in hand.
pub async fn requests_are_delivered_strictly_one_by_one(s: &mut Session) {
    s.consume_requests(&["submit", "delete"], SHORT).await;
    for subject in ["submit", "delete", "push", "submit"] {
        s.publish(JOBS, subject).await;
    }
    let one = s.pull(JOBS, "dispatcher", 10, LONG).await;
    let first = s.message(one).await;
    assert_eq!((first.sequence, first.subject.as_str()), (1, "submit"));
    let quiet = s.drain(JOBS, "dispatcher").await;
    assert_eq!(quiet, [], "another is delivered");
    // Nobody answers it: it comes again, and still no other.
    let again = s.message(one).await;
    assert_eq!((again.sequence, again.deliveries), (1, 2));
    // A delayed nack keeps the place, too.
    s.nak(&again, Some(700)).await;
    let third = s.message(one).await;
    assert_eq!((third.sequence, third.deliveries), (1, 3));
    s.ack(&third).await;
    let second = s.message(one).await;
    assert_eq!((second.sequence, second.subject.as_str()), (2, "delete"));
    s.ack(&second).await;
    s.ack(&second).await;
    let last = s.message(one).await;
    assert_eq!((last.sequence, last.deliveries), (4, 1));
    s.ack(&last).await;
    assert_eq!(s.sequences(JOBS).await, [3]);
}

pub async fn a_work_queue_keeps_what_is_not_acked(s: &mut Session) {
    s.consume_requests(&["submit"], SHORT).await;
    s.publish(JOBS, "submit").await;
    s.publish(JOBS, "submit").await;
    let first = s.take(JOBS, "dispatcher").await;
    s.nak(&first, None).await;
    assert_eq!(s.sequences(JOBS).await, [1, 2]);
    let again = s.take(JOBS, "dispatcher").await;
    assert_eq!((again.sequence, again.deliveries), (1, 2));
    // The first delivery's receipt does as well.
    s.ack(&first).await;
    assert_eq!(s.sequences(JOBS).await, [2]);
    s.nak(&again, None).await;
    assert_eq!(s.take(JOBS, "dispatcher").await.sequence, 2);
}
