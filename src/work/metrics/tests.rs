//! What is counted of what a worker sees.

use super::*;
use crate::domain::image::Digest;
use crate::wire::event::FailureReport;
use crate::wire::task::Run;

fn event(state: PullState, attempt: u32) -> TaskEvent {
    TaskEvent {
        job: "base".parse().unwrap(),
        run: Run {
            uid: "u".to_owned(),
            generation: 1,
            round: 1,
        },
        node: "node-1".parse().unwrap(),
        image: "nginx".parse().unwrap(),
        state,
        attempt,
        failure: None,
        next_attempt_at: None,
        result: None,
        labels: [].into(),
        annotations: [].into(),
    }
}

fn failed(state: PullState, attempt: u32, kind: FailureKind) -> TaskEvent {
    let failure = FailureReport {
        kind,
        message: "secret-host says no".to_owned(),
    };
    TaskEvent {
        failure: Some(failure),
        ..event(state, attempt)
    }
}

fn succeeded(engine: &str, already_present: bool) -> TaskEvent {
    let result = PullResult {
        digest: Digest::of(b"x"),
        already_present,
        bytes_registry: 70,
        bytes_elsewhere: 20,
        bytes_present: 10,
        resolve_millis: 100,
        download_millis: 2_000,
        unpack_millis: 0,
        engine: engine.to_owned(),
        engine_reason: String::new(),
    };
    TaskEvent {
        result: Some(result),
        ..event(PullState::Succeeded, 2)
    }
}

fn counted() -> (Registry, Arc<Metrics>) {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    (registry, Arc::new(metrics))
}

fn text(registry: &Registry) -> String {
    prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|there| there == *line), "{line}\n{text}");
    }
}

#[test]
fn every_series_of_a_counter_is_there_before_anything_happened() {
    let (registry, _metrics) = counted();
    has(
        &text(&registry),
        &[
            r#"prewarm_worker_retries_total{kind="RateLimited"} 0"#,
            r#"prewarm_worker_failures_total{kind="ImageNotFound"} 0"#,
            r#"prewarm_worker_pulls_total{engine="native",outcome="succeeded"} 0"#,
            r#"prewarm_worker_bytes_total{source="mirror"} 0"#,
            r#"prewarm_worker_pull_phase_duration_seconds_count{phase="unpack"} 0"#,
            "prewarm_worker_queue_wait_seconds_count 0",
        ],
    );
}

#[test]
fn a_pull_that_is_retried_and_succeeds_is_counted_by_what_it_did() {
    let (registry, metrics) = counted();
    let listener = Metrics::listener(&metrics);
    let told = |event: TaskEvent| listener.saw(Seen::Told(&event));
    told(event(PullState::Started, 1));
    let kind = FailureKind::RateLimited;
    told(failed(PullState::Retrying, 1, kind));
    told(event(PullState::Started, 2));
    told(succeeded("native", false));
    told(succeeded("", true));
    let kind = FailureKind::ImageNotFound;
    told(failed(PullState::Failed, 1, kind));
    let text = text(&registry);
    has(
        &text,
        &[
            "prewarm_worker_attempts_total 2",
            r#"prewarm_worker_retries_total{kind="RateLimited"} 1"#,
            r#"prewarm_worker_failures_total{kind="ImageNotFound"} 1"#,
            r#"prewarm_worker_pulls_total{engine="native",outcome="succeeded"} 1"#,
            r#"prewarm_worker_pulls_total{engine="none",outcome="succeeded"} 1"#,
            r#"prewarm_worker_pulls_total{engine="none",outcome="failed"} 1"#,
            r#"prewarm_worker_bytes_total{source="registry"} 140"#,
            r#"prewarm_worker_bytes_total{source="mirror"} 40"#,
            r#"prewarm_worker_bytes_total{source="present"} 20"#,
            r#"prewarm_worker_attempt_duration_seconds_count{outcome="retrying"} 1"#,
            r#"prewarm_worker_attempt_duration_seconds_count{outcome="succeeded"} 1"#,
            r#"prewarm_worker_pull_phase_duration_seconds_sum{phase="download"} 2"#,
            r#"prewarm_worker_pull_phase_duration_seconds_count{phase="download"} 1"#,
        ],
    );
    for name in ["base", "node-1", "nginx", "secret-host"] {
        assert!(!text.contains(name), "{name} is in {text}");
    }
}

#[test]
fn only_the_first_delivery_of_a_task_tells_how_long_it_waited() {
    let (registry, metrics) = counted();
    let listener = Metrics::listener(&metrics);
    let task = crate::wire::task::PullTask {
        job: "base".parse().unwrap(),
        run: event(PullState::Started, 1).run,
        node: "node-1".parse().unwrap(),
        image: "nginx".parse().unwrap(),
        digest: None,
        platform: None,
        image_pull_policy: crate::domain::job::ImagePullPolicy::IfNotPresent,
        pull_policy: crate::domain::job::PullPolicy::default(),
        priority: 0,
        pull_secrets: vec![],
        pin: false,
        unpack: true,
        expires_at: None,
        released_at: None,
        labels: [].into(),
        annotations: [].into(),
        traceparent: None,
    };
    for deliveries in [1, 2] {
        listener.saw(Seen::Delivered {
            task: Some(&task),
            deliveries,
            stored_at: Some(SystemTime::now() - Duration::from_secs(20)),
        });
        listener.saw(Seen::Told(&event(PullState::Started, deliveries)));
    }
    has(
        &text(&registry),
        &[
            "prewarm_worker_queue_wait_seconds_count 1",
            r#"prewarm_worker_queue_wait_seconds_bucket{le="10"} 0"#,
            r#"prewarm_worker_queue_wait_seconds_bucket{le="30"} 1"#,
            r#"prewarm_worker_tasks_received_total{delivery="again"} 1"#,
        ],
    );
}

#[test]
fn a_loop_that_stands_is_named() {
    let (_, metrics) = counted();
    let worker = Metrics::listener(&metrics);
    worker.saw(Seen::Turned {
        slots: 0,
        registered: true,
    });
    assert_eq!(worker.liveness(), Ok(()));
    let long_ago = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1));
    worker.known().turned = long_ago;
    let told = worker.liveness().unwrap_err();
    assert_eq!(told, "worker: its loop has stood for 61 s");
}

#[test]
fn workers_of_one_process_are_added_up_and_say_each_why_they_are_not_registered() {
    let (registry, metrics) = counted();
    let [one, other] = [(); 2].map(|()| Metrics::listener(&metrics));
    let turned = |slots, registered| Seen::Turned { slots, registered };
    one.saw(Seen::Began { capacity: 3 });
    other.saw(Seen::Began { capacity: 4 });
    one.saw(turned(2, true));
    other.saw(turned(1, true));
    other.saw(turned(3, false));
    other.saw(Seen::NotRegistered("no dispatcher is there"));
    has(
        &text(&registry),
        &[
            "prewarm_worker_capacity 7",
            "prewarm_worker_slots_taken 5",
            "prewarm_worker_registered 1",
        ],
    );
    assert_eq!(one.registration(), Ok(()));
    let refusal = Err("no dispatcher is there".to_owned());
    assert_eq!(other.registration(), refusal);
    assert_eq!(one.liveness(), Ok(()));
}
