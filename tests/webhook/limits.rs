//! What the receiver does when it cannot do its work.

use std::time::{Duration, Instant};

use prewarm::webhook::server::ServerSettings;
use prewarm::webhook::source::Source;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::events::{payload, tagged};
use super::receiver::{LIMIT, Receiver, SECRET, post, send};
use crate::support::wait::{eventually, within};

fn body(id: u64) -> Vec<u8> {
    payload(Source::Harbor, &tagged("1.4", id))
        .to_string()
        .into_bytes()
}

/// Begins a request and leaves most of its body out.
async fn begin(receiver: &Receiver) -> TcpStream {
    let address = receiver.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /webhooks/harbor HTTP/1.1\r\nhost: a\r\nauthorization: {SECRET}\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_answer_is_503_within_its_limit() {
    let mut receiver = Receiver::start_with(
        |settings| settings.publish_timeout = Duration::from_secs(1),
        "",
    )
    .await;
    receiver.nats.kill();
    let (status, answer) = within(
        LIMIT,
        "the answer",
        receiver.post(Source::Harbor, &body(1), &[]),
    )
    .await;
    assert_eq!(status, 503, "{answer}");
    receiver.nats.restart().await;
    eventually("the push to be taken", LIMIT, async || {
        receiver.post(Source::Harbor, &body(1), &[]).await.0 == 202
    })
    .await;
    assert_eq!(receiver.pushes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_is_waited_for_within_the_limit_and_the_retry_is_no_second_push() {
    let mut receiver = Receiver::start_with(
        |settings| settings.publish_timeout = Duration::from_millis(300),
        "",
    )
    .await;
    receiver.nats.process().signal(Signal::STOP);
    let (status, answer) = receiver.post(Source::Harbor, &body(1), &[]).await;
    assert_eq!(status, 503, "{answer}");
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("--publish-timeout"),
        "{answer}"
    );
    receiver.nats.process().signal(Signal::CONT);
    eventually("the push to be taken", LIMIT, async || {
        receiver.post(Source::Harbor, &body(1), &[]).await.0 == 202
    })
    .await;
    // What was sent before the answer was 503 has come, too, and is the same message.
    assert_eq!(receiver.pushes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_stream_is_503() {
    let receiver = Receiver::start().await;
    let stream = receiver.bus.subjects.jobs_stream();
    receiver.bus.jetstream.delete_stream(stream).await.unwrap();
    let (status, answer) = receiver.post(Source::Harbor, &body(1), &[]).await;
    assert_eq!(status, 503, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_more_than_there_are_places_for_is_told_to_come_again() {
    let change = |settings: &mut ServerSettings| {
        settings.max_in_flight = 1;
        settings.publish_timeout = LIMIT;
    };
    let mut receiver = Receiver::start_with(change, "").await;
    receiver.nats.process().signal(Signal::STOP);
    let base = receiver.base.clone();
    let held = tokio::spawn(async move {
        // What looks for a busy receiver below has the only place for a moment, too.
        loop {
            match post(&base, Source::Harbor, &body(2), &[]).await {
                (503, _) => {}
                answer => return answer,
            }
        }
    });
    let url = format!("{}/webhooks/harbor", receiver.base);
    let busy = eventually("the only place to be taken", LIMIT, async || {
        let client = crate::support::images::http();
        let answer = client
            .post(&url)
            .header("authorization", SECRET)
            .body("{}")
            .send()
            .await
            .unwrap();
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert_eq!(busy.headers()["retry-after"], "1");
    receiver.nats.process().signal(Signal::CONT);
    assert_eq!(held.await.unwrap().0, 202);
    eventually("the place to be free", LIMIT, async || {
        post(&receiver.base, Source::Harbor, &body(1), &[]).await.0 == 202
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_408() {
    let receiver = Receiver::start_with(
        |settings| settings.request_timeout = Duration::from_millis(200),
        "",
    )
    .await;
    let mut stream = begin(&receiver).await;
    let mut text = String::new();
    within(LIMIT, "the answer", stream.read_to_string(&mut text))
        .await
        .unwrap();
    assert!(
        text.starts_with("HTTP/1.1 408 ") && text.contains("--request-timeout"),
        "{text}"
    );
}

/// Those who send nothing, half a head, or half a body, are many more than there are connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_keep_nobody_out() {
    let change = |settings: &mut ServerSettings| {
        settings.max_connections = 8;
        settings.max_in_flight = 1;
        settings.request_timeout = Duration::from_secs(600);
    };
    let receiver = Receiver::start_with(change, "").await;
    let address = receiver.base.trim_start_matches("http://");
    let mut slow = Vec::new();
    for number in 0..50 {
        slow.push(begin(&receiver).await);
        let mut silent = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            silent.write_all(b"POST /webhooks/harbor HT").await.unwrap();
        }
        slow.push(silent);
        let began = Instant::now();
        let (status, answer) = post(&receiver.base, Source::Harbor, &body(number), &[]).await;
        assert_eq!(status, 202, "{answer}");
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(9),
            "it waited for others: {took:?}"
        );
    }
    assert_eq!(receiver.pushes().await.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_404_and_what_is_not_posted_405() {
    let receiver = Receiver::start().await;
    for path in ["/webhooks/nowhere", "/webhooks/", "/", "/webhook/harbor"] {
        assert_eq!(
            send(&format!("{}{path}", receiver.base), b"{}", &[])
                .await
                .0,
            404,
            "{path}"
        );
    }
    let answer = crate::support::images::http()
        .get(format!("{}/webhooks/harbor", receiver.base))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 405);
}

/// Each has told of a large body and sent a little more than is always taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_that_do_not_come_keep_no_other_large_one_out() {
    let receiver = Receiver::start().await;
    let address = receiver.base.trim_start_matches("http://");
    let mut slow = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "POST /webhooks/harbor HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b' '; 70_000]).await.unwrap();
        slow.push(stream);
    }
    let mut large = body(1);
    large.extend(std::iter::repeat_n(b' ', 5_000_000));
    let (status, answer) = post(&receiver.base, Source::Harbor, &large, &[]).await;
    assert_eq!(status, 202, "{answer}");
}
