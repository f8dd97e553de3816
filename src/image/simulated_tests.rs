use std::time::Instant;

use tokio::sync::watch;

use super::*;

fn config(latency: &str, failure_rate: &str) -> SimulatedConfig {
    SimulatedConfig {
        node: "node-1".to_owned(),
        latency: latency.parse().unwrap(),
        failure_rate: failure_rate.parse().unwrap(),
        ..SimulatedConfig::default()
    }
}

fn request(image: &str) -> PullRequest {
    PullRequest {
        image: image.parse().unwrap(),
        digest: None,
        policy: ImagePullPolicy::IfNotPresent,
        platform: None,
        pull_secrets: Vec::new(),
        pin: None,
        unpack: true,
        labels: BTreeMap::new(),
    }
}

async fn pull(runtime: &Simulated, request: &PullRequest) -> Result<PullReport, Failure> {
    let (progress, _) = watch::channel(PullProgress::default());
    runtime
        .pull(request, &progress, &CancellationToken::new())
        .await
}

#[tokio::test]
async fn a_second_pull_finds_the_image() {
    let runtime = Simulated::new(config("0", "0"));
    let first = pull(&runtime, &request("a.io/b:1")).await.unwrap();
    assert!(!first.already_present && first.bytes_registry > 0);
    let second = pull(&runtime, &request("a.io/b:1")).await.unwrap();
    assert!(second.already_present && second.bytes_registry == 0);
    assert_eq!(second.digest, first.digest);
}

#[tokio::test]
async fn always_pulls_again_when_the_digest_moved() {
    let runtime = Simulated::new(config("0", "0"));
    let mut request = request("a.io/b:1");
    request.policy = ImagePullPolicy::Always;
    pull(&runtime, &request).await.unwrap();
    assert!(pull(&runtime, &request).await.unwrap().already_present);
    request.digest = Some(Digest::of(b"new"));
    let moved = pull(&runtime, &request).await.unwrap();
    assert!(!moved.already_present);
    assert_eq!(moved.digest, Digest::of(b"new"));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_run() {
    let run = async || {
        let runtime = Simulated::new(config("0..1ms", "0.5"));
        let mut outcomes = Vec::new();
        for n in 0..20 {
            outcomes.push(
                pull(&runtime, &request(&format!("a.io/b:{n}")))
                    .await
                    .map(|report| (report.bytes_registry, report.download)),
            );
        }
        outcomes
    };
    let outcomes = run().await;
    assert_eq!(outcomes, run().await);
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!(
        (1..20).contains(&failed),
        "{failed} of 20 failed at a rate of a half"
    );
}

#[tokio::test]
async fn an_attempt_that_failed_may_succeed_when_repeated() {
    let runtime = Simulated::new(config("0", "0.5"));
    let image = request("a.io/b:1");
    let mut succeeded = false;
    for _ in 0..100 {
        succeeded |= pull(&runtime, &image).await.is_ok();
    }
    assert!(succeeded, "every attempt drew the same failure");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_pull_ends_at_once_and_keeps_nothing() {
    let runtime = Simulated::new(config("1000s", "0"));
    let (progress, mut seen) = watch::channel(PullProgress::default());
    let cancelled = CancellationToken::new();
    let image = request("a.io/b:1");
    let started = Instant::now();
    let pulling = runtime.pull(&image, &progress, &cancelled);
    let cancel = async {
        seen.wait_for(|progress| progress.bytes_done > 0)
            .await
            .unwrap();
        cancelled.cancel();
    };
    let (outcome, ()) = tokio::join!(pulling, cancel);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Internal);
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(runtime.state.lock().unwrap().images.is_empty());
}

#[test]
fn settings_are_read_or_refused() {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(2));
    assert_eq!("100ms..2s".parse(), Ok(Latency::Even { least, most }));
    let (least, most) = (Duration::ZERO, Duration::ZERO);
    assert_eq!("0".parse(), Ok(Latency::Even { least, most }));
    for bad in [
        "", "5", "2s..1s", "1s..", "..1s", "-1s", "1h", "1e999s", "NaNs",
    ] {
        assert!(bad.parse::<Latency>().is_err(), "{bad:?} was accepted");
    }
    for bad in ["", "-0.1", "1.1", "NaN", "ten"] {
        assert!(bad.parse::<FailureRate>().is_err(), "{bad:?} was accepted");
    }
}
