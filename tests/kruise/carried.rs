//! What a job says of its pulls, followed to where it is asked for: the runtime, the events, the registry.

use prewarm::domain::image::Platform;
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::pin::Pin;
use prewarm::image::PullRequest;
use prewarm::image::simulated::{Simulated, SimulatedConfig};
use prewarm::wire::event::{JobEventKind, PullState};
use prewarm::wire::subject::JobVerb;
use serde_json::json;
use std::collections::BTreeMap;

use crate::cell::Cell;
use crate::guarded::Guarded;
use crate::node::{Setup, names};

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    entries.iter().map(owned).collect()
}

#[tokio::test]
async fn everything_a_job_says_of_a_pull_reaches_the_runtime_and_the_events() {
    let guarded = Guarded::start("a-password").await;
    guarded.write_secret("team-registry", "a-password");
    let cell = Cell::that_asks(guarded.registry()).await;
    let runtime = Simulated::new(SimulatedConfig {
        latency: "0".parse().unwrap(),
        ..SimulatedConfig::default()
    });
    let _node = cell
        .worker(Setup::new("node").runtime(runtime.clone()))
        .await;
    // Nothing of it is the default, which a field that is left out would be.
    let manifest = json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
        "metadata": {"name": "job", "labels": {"team": "infra"}},
        "spec": {
            "images": [guarded.image()], "imagePullPolicy": "Always", "platform": "linux/arm64",
            "pullSecrets": ["team-registry"], "pin": true, "unpack": false,
            "sandboxConfig": {"labels": {"app": "web"}, "annotations": {"why": "release 7"}},
        },
    });
    let job = cell.apply(&manifest.to_string()).await;
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 1);
    let image: prewarm::domain::image::ImageRef = guarded.image().parse().unwrap();
    let asked = PullRequest {
        image: image.clone(),
        digest: Some(guarded.digest()),
        policy: ImagePullPolicy::Always,
        platform: Some("linux/arm64".parse::<Platform>().unwrap()),
        pull_secrets: vec!["team-registry".to_owned()],
        pin: Some(Pin {
            uid: job.metadata.uid,
            image: image.token(),
            generation: 1,
        }),
        unpack: false,
        labels: map(&[("app", "web")]),
    };
    assert_eq!(runtime.last_asked(), Some(asked));

    let annotations = map(&[("why", "release 7")]);
    for state in [PullState::Started, PullState::Succeeded] {
        let told = cell.hears("job", state).await;
        assert_eq!(told.labels, map(&[("app", "web")]), "{state:?}");
        assert_eq!(told.annotations, annotations, "{state:?}");
    }
    let labels = map(&[("app", "web"), ("team", "infra")]);
    for kind in [
        JobEventKind::Accepted,
        JobEventKind::Started,
        JobEventKind::Completed,
    ] {
        let told = cell.job_event(Some("job"), kind, 1).await;
        assert_eq!(told.labels, labels, "{kind:?}");
        assert_eq!(told.annotations, annotations, "{kind:?}");
    }
}

#[tokio::test]
async fn all_four_operators_choose_nodes() {
    let cell = Cell::start().await;
    let pool = ("pool", "gpu");
    for (node, labels) in [
        ("all-hold", &[("zone", "x"), ("arch", "amd64"), pool][..]),
        ("other-zone", &[("zone", "z"), ("arch", "amd64"), pool]),
        ("no-zone", &[("arch", "amd64"), pool]),
        ("excluded-arch", &[("zone", "x"), ("arch", "arm64"), pool]),
        ("no-arch", &[("zone", "y"), ("pool", "")]),
        ("no-pool", &[("zone", "x"), ("arch", "amd64")]),
        (
            "is-spot",
            &[("zone", "x"), ("arch", "amd64"), pool, ("spot", "")],
        ),
    ] {
        cell.silent(node, labels).await;
    }
    let manifest = "apiVersion: apps.kruise.io/v1beta1
kind: ImagePullJob
metadata: {name: job}
spec:
  image: app:1
  parallelism: 10
  selector:
    matchExpressions:
    - {key: zone, operator: In, values: [x, y]}
    - {key: arch, operator: NotIn, values: [arm64, s390x]}
    - {key: pool, operator: Exists}
    - {key: spot, operator: DoesNotExist}
";
    cell.apply(manifest).await;
    let tasks = cell.released("job", 2).await;
    assert_eq!(names(&tasks), ["all-hold", "no-arch"]);
    let job = cell.record("job").await.unwrap();
    assert_eq!(job.status.counts.desired, 2);
    for task in &tasks {
        cell.tell_success(task).await;
    }
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 2);
}

#[tokio::test]
async fn a_paused_job_releases_nothing_until_it_is_resumed() {
    let cell = Cell::start().await;
    for node in ["a", "b", "c"] {
        cell.silent(node, &[]).await;
    }
    let ear = cell.listen().await;
    let spec = json!({"images": ["app:1"], "parallelism": 1});
    cell.submit("job", spec.clone()).await;
    let first = cell.released("job", 1).await;
    cell.order(JobVerb::Pause, "job").await;
    cell.job_event(Some("job"), JobEventKind::Paused, 1).await;
    // What is out may end; its slot stays empty, also for a node that joins.
    cell.tell_success(&first[0]).await;
    let paused = cell.succeeded("job", 1).await;
    assert!(paused.status.paused);
    cell.silent("d", &[]).await;
    // A job that comes later, and ends, had its turn after this one had its chance.
    cell.submit("later", spec).await;
    for pull in 1..=4 {
        let tasks = cell.released("later", pull).await;
        cell.tell_success(&tasks[pull - 1]).await;
    }
    cell.ended("later").await;
    let heard = ear.hears_tasks("job", 1).await;
    assert_eq!(heard.len(), 1, "{heard:?}");
    // A record follows what it tells of.
    let what = "where three pulls wait and none is out";
    cell.job("job", what, |job| {
        let counts = &job.status.counts;
        (counts.pending, counts.active) == (3, 0)
    })
    .await;
    let heard = ear.hears_tasks("job", 1).await;
    assert_eq!(heard.len(), 1, "{heard:?}");

    cell.order(JobVerb::Resume, "job").await;
    cell.job_event(Some("job"), JobEventKind::Resumed, 1).await;
    for pull in 2..=4 {
        let tasks = cell.released("job", pull).await;
        cell.tell_success(&tasks[pull - 1]).await;
    }
    assert_eq!(cell.ended("job").await.status.counts.succeeded, 4);
    assert_eq!(ear.hears_tasks("job", 4).await.len(), 4);
}
