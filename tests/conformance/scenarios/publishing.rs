//! Storing, replacing, removing and reading.

use crate::broker::Refusal;
use crate::session::{BUCKET, Body, EVENTS, JOBS, SHORT_WINDOW, Session, TASKS};

pub async fn a_publish_expects_the_last_sequence_of_its_subject(s: &mut Session) {
    let wrong = Err(Refusal::WrongLastSequence);
    assert_eq!(s.publish_after(TASKS, "n.a", 1).await, wrong);
    assert_eq!(s.publish_after(TASKS, "n.a", 0).await, Ok(1));
    assert_eq!(s.publish_after(TASKS, "n.a", 0).await, wrong);
    assert_eq!(s.publish_after(TASKS, "n.b", 0).await, Ok(2));
    assert_eq!(s.publish_after(TASKS, "n.a", 2).await, wrong);
    assert_eq!(s.publish_after(TASKS, "n.a", 1).await, Ok(3));
    assert_eq!(s.purge(TASKS, "n.a", None).await, 1);
    assert_eq!(s.publish_after(TASKS, "n.a", 3).await, wrong);
    assert_eq!(s.publish_after(TASKS, "n.a", 0).await, Ok(4));
    assert_eq!(s.last_sequence(TASKS).await, 4);
}

pub async fn a_known_id_is_answered_and_not_stored(s: &mut Session) {
    assert_eq!(s.publish_id(EVENTS, "a", "1").await, (1, false));
    assert_eq!(s.publish_id(EVENTS, "a", "2").await, (2, false));
    assert_eq!(s.publish_id(EVENTS, "a", "1").await, (1, true));
    assert_eq!(s.publish_id(EVENTS, "b", "1").await, (1, true));
    assert_eq!(s.sequences(EVENTS).await, [1, 2]);
}

pub async fn an_id_is_known_although_its_message_is_gone(s: &mut Session) {
    s.consume_requests(&["submit"], 15_000).await;
    assert_eq!(s.publish_id(JOBS, "submit", "1").await, (1, false));
    let request = s.take(JOBS, "dispatcher").await;
    s.ack(&request).await;
    assert_eq!(s.sequences(JOBS).await, [0; 0]);
    assert_eq!(s.publish_id(JOBS, "submit", "1").await, (1, true));
    assert_eq!(s.publish_id(JOBS, "submit", "2").await, (2, false));
}

pub async fn an_id_is_forgotten_after_the_window(s: &mut Session) {
    let began = s.now();
    assert_eq!(s.publish_id(EVENTS, "a", "1").await, (1, false));
    loop {
        match s.publish_id(EVENTS, "a", "1").await {
            (1, true) => s.pass(100).await,
            (2, false) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(s.now() - began >= SHORT_WINDOW, "{}", s.now() - began);
    assert_eq!(s.publish_id(EVENTS, "a", "1").await, (2, true));
}

pub async fn a_new_message_replaces_the_one_of_its_subject(s: &mut Session) {
    for subject in ["a", "b", "a"] {
        s.publish(TASKS, subject).await;
    }
    assert_eq!(s.sequences(TASKS).await, [2, 3]);
    for subject in ["a", "b", "a"] {
        s.publish(EVENTS, subject).await;
    }
    assert_eq!(s.sequences(EVENTS).await, [1, 2, 3]);
}

pub async fn a_purge_takes_what_is_under_its_filter(s: &mut Session) {
    for subject in ["n1.j1.x", "n1.j2.x", "n2.j1.x", "n2.j1.y", "n3.j3.x"] {
        s.publish(TASKS, subject).await;
    }
    assert_eq!(s.purge(TASKS, "*.j1.*", None).await, 3);
    assert_eq!(s.sequences(TASKS).await, [2, 5]);
    assert_eq!(s.purge(TASKS, "n1.>", None).await, 1);
    assert_eq!(s.purge(TASKS, "n3.j3.x", None).await, 1);
    assert_eq!(s.purge(TASKS, "n3.j3.x", None).await, 0);
    assert_eq!(s.sequences(TASKS).await, [0; 0]);
    assert_eq!(s.publish(TASKS, "n1.j1.x").await, 6);
}

pub async fn a_purge_with_a_sequence_leaves_what_is_newer(s: &mut Session) {
    for subject in ["n1.j1.x", "n2.j1.x", "n2.j2.x", "n3.j1.x"] {
        s.publish(TASKS, subject).await;
    }
    assert_eq!(s.purge(TASKS, "*.j1.*", Some(4)).await, 2);
    assert_eq!(s.sequences(TASKS).await, [3, 4]);
    assert_eq!(s.purge(TASKS, "n3.j1.x", Some(4)).await, 0);
    assert_eq!(s.purge(TASKS, "n3.j1.x", Some(5)).await, 1);
    assert_eq!(s.sequences(TASKS).await, [3]);
}

pub async fn the_newest_of_each_subject_comes_in_order_of_sequence(s: &mut Session) {
    for subject in ["c", "a", "b", "a"] {
        s.publish(EVENTS, subject).await;
    }
    let text = |subject: &str| (subject.to_owned(), Body::from(subject));
    let newest = s.newest(EVENTS).await.into_iter();
    let newest: Vec<_> = newest
        .map(|(at, subject, body)| (at, (subject, body)))
        .collect();
    assert_eq!(newest, [(1, text("c")), (3, text("b")), (4, text("a"))]);
    assert_eq!(s.last(EVENTS, "a").await, Some((4, "a".into())));
    assert_eq!(s.last(EVENTS, "d").await, None);
    let late = s.kept_from(EVENTS, 3).await;
    assert_eq!(late.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [3, 4]);
}

pub async fn a_key_is_written_by_compare_and_set(s: &mut Session) {
    let wrong = Err(Refusal::WrongLastSequence);
    assert_eq!(s.put_after(BUCKET, "lease", "one".into(), 0).await, Ok(1));
    assert_eq!(s.put_after(BUCKET, "lease", "two".into(), 0).await, wrong);
    assert_eq!(s.put_after(BUCKET, "lease", "one".into(), 1).await, Ok(2));
    assert_eq!(s.put_after(BUCKET, "lease", "two".into(), 1).await, wrong);
    assert_eq!(s.put_after(BUCKET, "lease", "two".into(), 2).await, Ok(3));
    assert_eq!(s.last(BUCKET, "lease").await, Some((3, "two".into())));
    assert_eq!(s.sequences(BUCKET).await, [3]);
}

pub async fn a_marker_stays_until_it_is_purged(s: &mut Session) {
    assert_eq!(s.put_after(BUCKET, "job", "one".into(), 0).await, Ok(1));
    assert_eq!(s.put_after(BUCKET, "other", "two".into(), 0).await, Ok(2));
    assert_eq!(s.put_after(BUCKET, "job", Body::Marker, 1).await, Ok(3));
    assert_eq!(s.last(BUCKET, "job").await, Some((3, Body::Marker)));
    let refused = s.put_after(BUCKET, "job", "again".into(), 0).await;
    assert_eq!(refused, Err(Refusal::WrongLastSequence));
    assert_eq!(s.sequences(BUCKET).await, [2, 3]);
    assert_eq!(s.purge(BUCKET, "job", None).await, 1);
    assert_eq!(s.last(BUCKET, "job").await, None);
    assert_eq!(s.put_after(BUCKET, "job", "again".into(), 0).await, Ok(4));
    assert_eq!(s.sequences(BUCKET).await, [2, 4]);
}
