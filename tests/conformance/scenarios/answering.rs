//! What acks, nacks and words of progress do.

use crate::session::{Answer, Receipt, Session, TASKS};

/// Longer than anything here takes.
const LONG: u64 = 60_000;
/// The shortest ack wait that a busy machine keeps.
const SHORT: u64 = 4_000;
/// Servers measure an ack wait from a moment before the delivery is seen here.
const EARLY: u64 = 100;

pub async fn an_acked_message_does_not_come_again(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    s.publish(TASKS, "n.a").await;
    let message = s.take(TASKS, "n").await;
    s.ack(&message).await;
    s.ack(&message).await;
    s.nak(&message, None).await;
    s.in_progress(&message).await;
    s.pass(SHORT + 200).await;
    s.is_quiet(TASKS, "n").await;
    assert_eq!(s.sequences(TASKS).await, [1], "a limits stream keeps it");
}

pub async fn an_ack_of_what_was_never_delivered_changes_nothing(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    let receipt = |sequence| Receipt {
        stream: TASKS,
        consumer: "n".to_owned(),
        sequence,
        reply: String::new(),
    };
    for answer in [Answer::Ack, Answer::Nak(None), Answer::InProgress] {
        s.answer(&receipt(1), answer).await;
        s.answer(&receipt(7), answer).await;
    }
    let message = s.take(TASKS, "n").await;
    assert_eq!((message.sequence, message.deliveries), (1, 1));
}

/// After a redelivery the answer to the first one is as good: nobody is fenced off.
pub async fn a_late_ack_counts(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    s.publish(TASKS, "n.a").await;
    s.publish(TASKS, "n.b").await;
    let began = s.now();
    let first = s.take(TASKS, "n").await;
    let other = s.take(TASKS, "n").await;
    s.ack(&other).await;
    for deliveries in 2..=3 {
        let again = s.take(TASKS, "n").await;
        assert_eq!((again.sequence, again.deliveries), (1, deliveries));
    }
    assert!(
        s.now() - began >= 2 * (SHORT - EARLY),
        "{}",
        s.now() - began
    );
    s.ack(&first).await;
    s.pass(SHORT + 200).await;
    s.is_quiet(TASKS, "n").await;
}

pub async fn a_nack_brings_the_message_again_at_once(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    let began = s.now();
    let mut message = s.take(TASKS, "n").await;
    for deliveries in 2..=5 {
        s.nak(&message, None).await;
        message = s.take(TASKS, "n").await;
        assert_eq!((message.sequence, message.deliveries), (1, deliveries));
    }
    assert!(
        s.now() - began < LONG,
        "it is not the ack wait that brings it"
    );
}

pub async fn a_nack_with_delay_brings_it_later(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    s.publish(TASKS, "n.a").await;
    s.publish(TASKS, "n.b").await;
    s.publish(TASKS, "n.c").await;
    let first = s.take(TASKS, "n").await;
    let second = s.take(TASKS, "n").await;
    s.nak(&first, Some(4_800)).await;
    let began = s.now();
    s.nak(&second, Some(2_400)).await;
    // A nack that waits holds nothing up.
    assert_eq!(s.take(TASKS, "n").await.sequence, 3);
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (2, 2));
    assert!(s.now() - began >= 2_400 - EARLY, "{}", s.now() - began);
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (1, 2));
    assert!(s.now() - began >= 4_800 - EARLY, "{}", s.now() - began);
    // Another delay counts from now, not from the ack wait.
    let began = s.now();
    s.nak(&again, Some(2_000)).await;
    assert_eq!(s.take(TASKS, "n").await.deliveries, 3);
    let took = s.now() - began;
    assert!((2_000 - EARLY..LONG / 2).contains(&took), "{took}");
}

pub async fn what_is_due_again_comes_before_what_is_new(s: &mut Session) {
    s.consume("n", "n.>", 1, LONG).await;
    for subject in ["n.a", "n.b", "n.c"] {
        s.publish(TASKS, subject).await;
    }
    let first = s.take(TASKS, "n").await;
    let second = s.take(TASKS, "n").await;
    let third = s.take(TASKS, "n").await;
    s.publish(TASKS, "n.d").await;
    s.nak(&second, None).await;
    s.nak(&first, None).await;
    s.nak(&third, Some(300)).await;
    s.pass(800).await;
    let messages = s.drain(TASKS, "n").await;
    let seen: Vec<_> = messages
        .iter()
        .map(|m| (m.sequence, m.deliveries))
        .collect();
    assert_eq!(seen, [(2, 2), (1, 2), (3, 2), (4, 1)]);
}

pub async fn a_word_of_progress_restarts_the_ack_wait(s: &mut Session) {
    s.consume("n", "n.>", 1, 2 * SHORT).await;
    s.publish(TASKS, "n.a").await;
    let message = s.take(TASKS, "n").await;
    for _ in 0..2 {
        s.pass(SHORT).await;
        s.in_progress(&message).await;
    }
    let began = s.now();
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (1, 2));
    assert!(s.now() - began >= 2 * SHORT - EARLY, "{}", s.now() - began);
}

pub async fn only_an_ack_or_a_delay_holds_back_what_is_due(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    for subject in ["n.a", "n.b", "n.c", "n.d"] {
        s.publish(TASKS, subject).await;
    }
    let progressing = s.take(TASKS, "n").await;
    let refused = s.take(TASKS, "n").await;
    let delayed = s.take(TASKS, "n").await;
    let done = s.take(TASKS, "n").await;
    s.pass(SHORT + 500).await;
    s.in_progress(&progressing).await;
    s.nak(&refused, None).await;
    s.nak(&delayed, Some(3_600)).await;
    s.ack(&done).await;
    let messages = s.drain(TASKS, "n").await;
    let seen: Vec<_> = messages
        .iter()
        .map(|m| (m.sequence, m.deliveries))
        .collect();
    assert_eq!(seen, [(1, 2), (2, 2)]);
    for message in &messages {
        s.ack(message).await;
    }
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (3, 2));
}

/// As a task is withdrawn that a worker has: it waits for its answer, was delivered twice, waits after a nack, or was
/// not delivered yet.
pub async fn what_is_removed_by_its_sequence_does_not_come_again(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    s.publish(TASKS, "n.a").await;
    s.take(TASKS, "n").await;
    let again = s.take(TASKS, "n").await;
    assert_eq!((again.sequence, again.deliveries), (1, 2));
    for subject in ["n.b", "n.c", "n.d", "n.e"] {
        s.publish(TASKS, subject).await;
    }
    let waiting = s.take(TASKS, "n").await;
    let nacked = s.take(TASKS, "n").await;
    s.nak(&nacked, Some(SHORT / 2)).await;
    for sequence in 1..=4 {
        assert!(s.remove(TASKS, sequence).await, "{sequence} was there");
        assert!(!s.remove(TASKS, sequence).await, "{sequence} is gone");
    }
    // Words on what is gone change nothing.
    s.nak(&again, None).await;
    s.in_progress(&waiting).await;
    s.ack(&nacked).await;
    s.pass(SHORT + 500).await;
    let messages = s.drain(TASKS, "n").await;
    let seen: Vec<_> = messages
        .iter()
        .map(|m| (m.sequence, m.deliveries))
        .collect();
    assert_eq!(seen, [(5, 1)]);
    assert_eq!(s.sequences(TASKS).await, [5]);
    // Its subject is free again.
    assert_eq!(s.publish_after(TASKS, "n.a", 0).await, Ok(6));
}

pub async fn what_is_due_again_and_removed_does_not_come(s: &mut Session) {
    s.consume("n", "n.>", 1, SHORT).await;
    for subject in ["n.a", "n.b", "n.c"] {
        s.publish(TASKS, subject).await;
    }
    let refused = s.take(TASKS, "n").await;
    s.take(TASKS, "n").await;
    s.take(TASKS, "n").await;
    s.nak(&refused, None).await;
    s.pass(SHORT + 500).await;
    assert!(s.remove(TASKS, 1).await && s.remove(TASKS, 2).await);
    let messages = s.drain(TASKS, "n").await;
    let seen: Vec<_> = messages
        .iter()
        .map(|m| (m.sequence, m.deliveries))
        .collect();
    assert_eq!(seen, [(3, 2)]);
}
