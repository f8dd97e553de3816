//! Every source: what is a push, what is none, and who is believed.

use prewarm::webhook::source::Source;
use serde_json::{Value, json};

use super::events::{Event, REPOSITORY, digest, headers, payload, registry, tagged, tells_digests};
use super::receiver::{Receiver, SECRET, post, prove, send};

async fn tell(receiver: &Receiver, source: Source, event: &Event) -> (u16, Value) {
    let body = payload(source, event).to_string();
    receiver
        .post(source, body.as_bytes(), &headers(source, event))
        .await
}

/// Whether a source's pushes by digest are meant, and are not an index's children.
fn means_digests(source: Source) -> bool {
    matches!(source, Source::CloudEvents | Source::Generic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_with_a_tag_is_published_by_every_source() {
    let receiver = Receiver::start().await;
    for (number, source) in Source::ALL.into_iter().enumerate() {
        let event = tagged("1.4", number as u64 + 1);
        let (status, answer) = tell(&receiver, source, &event).await;
        assert_eq!(
            (status, &answer["published"]),
            (202, &json!(1)),
            "{source:?}: {answer}"
        );
        let push = receiver.pushes().await.pop().unwrap();
        assert_eq!(push["source"], source.as_str());
        let name = json!([registry(source), REPOSITORY, "1.4"]);
        assert_eq!(
            json!([push["registry"], push["repository"], push["tag"]]),
            name,
            "{source:?}"
        );
        let wanted = if tells_digests(source) {
            json!(event.digest)
        } else {
            Value::Null
        };
        assert_eq!(push["digest"], wanted, "{source:?}");
        let weak = matches!(source, Source::Quay | Source::DockerHub | Source::Aliyun);
        assert_eq!(push["unverified"] == json!(true), weak, "{source:?}");
    }
    assert_eq!(receiver.pushes().await.len(), Source::ALL.len());
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&receiver.metrics.gather())
        .unwrap();
    assert!(
        text.contains(r#"prewarm_webhook_requests_total{outcome="published",source="harbor"} 1"#),
        "{text}"
    );
    assert!(
        text.contains(r#"prewarm_webhook_publish_seconds_count{source="quay"} 1"#),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_by_digest_counts_where_it_is_meant_or_asked_for() {
    let receiver = Receiver::start().await;
    let asked = receiver.another("digest-only: true, ").await;
    for (number, source) in Source::ALL.into_iter().enumerate() {
        let event = Event {
            tag: None,
            ..tagged("", number as u64 + 1)
        };
        let (status, answer) = tell(&receiver, source, &event).await;
        let wanted = if means_digests(source) { 202 } else { 200 };
        assert_eq!(status, wanted, "{source:?}: {answer}");
        let event = Event {
            digest: digest(event.id + 100),
            id: event.id + 100,
            ..event
        };
        let body = payload(source, &event).to_string();
        let (status, answer) =
            post(&asked, source, body.as_bytes(), &headers(source, &event)).await;
        // These tell tags and nothing else.
        let never = matches!(source, Source::Quay | Source::DockerHub);
        assert_eq!(
            status,
            if never { 200 } else { 202 },
            "{source:?}: {answer}"
        );
        if !never {
            let push = receiver.pushes().await.pop().unwrap();
            assert_eq!(
                (&push["digest"], &push["tag"]),
                (&json!(event.digest), &Value::Null),
                "{source:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_with_children_is_one_push() {
    let receiver = Receiver::start().await;
    let mut pushes = 0;
    for (number, source) in Source::ALL.into_iter().enumerate() {
        let first = number as u64 * 10 + 1;
        let children = [first, first + 1].map(|id| Event {
            tag: None,
            ..tagged("", id)
        });
        let index = Event {
            index: true,
            ..tagged("1.4", first + 2)
        };
        // Whoever writes these two says what is to be warm; there are no children.
        let told: Vec<&Event> = if means_digests(source) {
            vec![&index]
        } else {
            children.iter().chain([&index]).collect()
        };
        for event in told {
            tell(&receiver, source, event).await;
        }
        pushes += 1;
        assert_eq!(receiver.pushes().await.len(), pushes, "{source:?}");
    }
    let event = |event: &Event| payload(Source::Acr, event);
    let index = Event {
        index: true,
        ..tagged("1.5", 1_003)
    };
    let blob = |mut event: Value| {
        event["target"]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        event
    };
    let child = Event {
        tag: None,
        ..tagged("", 1_001)
    };
    let envelope =
        json!({"events": [blob(event(&child)), event(&child), event(&index), event(&index)]});
    let (status, answer) = receiver
        .post(Source::Distribution, envelope.to_string().as_bytes(), &[])
        .await;
    assert_eq!((status, &answer["published"]), (202, &json!(1)), "{answer}");
    assert_eq!(answer["ignored"].as_array().unwrap().len(), 3, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_push_is_answered_with_200_and_not_published() {
    let receiver = Receiver::start().await;
    for source in Source::ALL {
        let event = Event {
            gone: true,
            ..tagged("1.4", 1)
        };
        let (status, answer) = tell(&receiver, source, &event).await;
        assert_eq!(
            (status, &answer["published"]),
            (200, &json!(0)),
            "{source:?}: {answer}"
        );
    }
    let mut pull = payload(Source::Acr, &tagged("1.4", 1));
    pull["action"] = json!("pull");
    for (source, body) in [
        (Source::Acr, pull.clone()),
        (Source::Distribution, json!({"events": [pull]})),
    ] {
        assert_eq!(
            receiver
                .post(source, body.to_string().as_bytes(), &[])
                .await
                .0,
            200
        );
    }
    assert!(receiver.pushes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_proof_nobody_is_believed() {
    let receiver = Receiver::start().await;
    for source in Source::ALL {
        let body = payload(source, &tagged("1.4", 1)).to_string();
        let (path, _) = prove(source, body.as_bytes(), SECRET);
        let plain = path.trim_end_matches(SECRET).trim_end_matches('/');
        let missing = send(&format!("{}{plain}", receiver.base), body.as_bytes(), &[]).await;
        let (path, proof) = prove(source, body.as_bytes(), "another-secret-of-some-length");
        let proof: Vec<_> = proof.into_iter().collect();
        let wrong = send(&format!("{}{path}", receiver.base), body.as_bytes(), &proof).await;
        for (status, answer) in [missing, wrong] {
            assert_eq!(status, 401, "{source:?}: {answer}");
            assert!(!answer.to_string().contains(SECRET));
        }
        // A proof of another body is none.
        let (path, proof) = prove(source, b"{}", SECRET);
        if proof
            .as_ref()
            .is_some_and(|(_, value)| !value.contains(SECRET))
        {
            let proof: Vec<_> = proof.into_iter().collect();
            assert_eq!(
                send(&format!("{}{path}", receiver.base), body.as_bytes(), &proof)
                    .await
                    .0,
                401
            );
        }
    }
    assert!(receiver.pushes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_5_mb_is_taken_a_larger_one_than_the_limit_and_broken_json_are_refused() {
    let receiver = Receiver::start().await;
    for (number, source) in Source::ALL.into_iter().enumerate() {
        let event = tagged("1.4", number as u64 + 1);
        let mut body = payload(source, &event).to_string();
        body.extend(std::iter::repeat_n(' ', 5_000_000));
        let (status, answer) = receiver
            .post(source, body.as_bytes(), &headers(source, &event))
            .await;
        assert_eq!(status, 202, "{source:?}: {answer}");
    }
    assert_eq!(receiver.pushes().await.len(), Source::ALL.len());
    for source in Source::ALL {
        let large = vec![b' '; 9_000_000];
        let (status, answer) = receiver.post(source, &large, &[]).await;
        assert_eq!(status, 413, "{source:?}: {answer}");
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .contains("8388608 bytes (--max-body)"),
            "{answer}"
        );
        let (status, answer) = receiver.post(source, b"{\"events\":\n [1,}", &[]).await;
        assert_eq!(status, 400, "{source:?}: {answer}");
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .starts_with("line 2 column 5: "),
            "{source:?}: {answer}"
        );
    }
    let gar = json!({"message": {"data": "ew==", "messageId": "1"}}).to_string();
    let (status, answer) = receiver.post(Source::Gar, gar.as_bytes(), &[]).await;
    assert_eq!(status, 400);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .starts_with("message.data: line 1 column 1: "),
        "{answer}"
    );
    let (status, answer) = receiver
        .post(
            Source::Harbor,
            br#"{"type":"PUSH_ARTIFACT","event_data":{}}"#,
            &[],
        )
        .await;
    let wanted = "event_data.repository.repo_full_name: expected a text, found nothing";
    assert_eq!((status, &answer["error"]), (400, &json!(wanted)));
    assert_eq!(receiver.pushes().await.len(), Source::ALL.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_event_twice_is_one_message() {
    let receiver = Receiver::start().await;
    let mut pushes = 0;
    for (number, source) in Source::ALL.into_iter().enumerate() {
        let event = tagged("1.4", number as u64 + 1);
        for _ in 0..2 {
            assert_eq!(tell(&receiver, source, &event).await.0, 202, "{source:?}");
        }
        // Quay sends the same bytes for the next push of a tag: dropping the second could lose one.
        pushes += if source == Source::Quay { 2 } else { 1 };
        assert_eq!(receiver.pushes().await.len(), pushes, "{source:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_tags_of_one_digest_are_ten_pushes() {
    let receiver = Receiver::start().await;
    let mut pushes = 0;
    for source in Source::ALL {
        let events: Vec<Event> = (0..10)
            .map(|tag| Event {
                digest: digest(1),
                ..tagged(&format!("t{tag}"), tag)
            })
            .collect();
        let told =
            futures::future::join_all(events.iter().map(|event| tell(&receiver, source, event)))
                .await;
        assert!(
            told.iter().all(|(status, _)| *status == 202),
            "{source:?}: {told:?}"
        );
        pushes += 10;
        assert_eq!(receiver.pushes().await.len(), pushes, "{source:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_speaks_only_of_its_own_registries() {
    let receiver = Receiver::start().await;
    let mut event = payload(Source::Acr, &tagged("1", 1));
    event["request"]["host"] = json!("evil.example.org");
    let (status, answer) = receiver
        .post(Source::Acr, event.to_string().as_bytes(), &[])
        .await;
    assert_eq!((status, &answer["published"]), (200, &json!(0)), "{answer}");
    assert!(
        answer["refused"][0]
            .as_str()
            .unwrap()
            .contains("evil.example.org"),
        "{answer}"
    );
    assert!(receiver.pushes().await.is_empty());
}
