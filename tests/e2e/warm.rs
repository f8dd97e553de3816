//! One published message warms real images on real nodes.

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::Cell;
use crate::support::containerd::ContainerdVersion;
use crate::support::images::{busybox, generated};
use crate::support::nats::NatsVersion;
use crate::support::parts;
use crate::support::registry::Request;
use crate::support::run_container::run_container;

const GENERATIONS: [(&str, ContainerdVersion); 3] = [
    ("node-1.6", ContainerdVersion::V1_6),
    ("node-1.7", ContainerdVersion::V1_7),
    ("node-2.1", ContainerdVersion::V2_1),
];

/// The tag was asked for once, by the dispatcher; the nodes asked for its digest.
fn assert_resolved_once(requests: &[Request], repository: &str, tag: &str, digest: &str) {
    let asked = |reference: &str| {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let of = requests.iter().filter(|request| request.path == path);
        of.count()
    };
    assert_eq!(asked(tag), 1, "{repository}:{tag} in {requests:?}");
    assert!(asked(digest) >= GENERATIONS.len(), "{requests:?}");
}

async fn one_message_warms_every_generation(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = cell.registry.push("library/busybox", "1.0", &image).await;
    let layered = generated(7, 5, 200_000).build();
    let layered = cell.registry.push("team/app", "2", &layered).await;
    let mut nodes = Vec::new();
    for (name, generation) in GENERATIONS {
        nodes.push(cell.node(name, generation, &cell.registry.addr()).await);
    }
    let before = cell.registry.mark().await;
    let spec = json!({"images": [pushed.by_tag, layered.by_tag], "selector": {"matchLabels": {"pool": "test"}}});
    cell.publish("base", spec).await;
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(
        (record.status.counts.desired, record.status.counts.succeeded),
        (6, 6)
    );
    let requests = cell.registry.requests_since(before).await;
    for (repository, tag, digest) in [
        ("library/busybox", "1.0", &pushed.digest),
        ("team/app", "2", &layered.digest),
    ] {
        assert_resolved_once(&requests, repository, tag, digest);
    }

    for node in &nodes {
        let cri = node.containerd.cri().await;
        let listed = cri.list_images().await.unwrap();
        let found = listed
            .iter()
            .find(|found| found.id == pushed.config)
            .unwrap_or_else(|| panic!("{} does not list {}: {listed:?}", node.name, pushed.by_tag));
        assert_eq!(
            found.repo_tags,
            std::slice::from_ref(&pushed.by_tag),
            "{}",
            node.name
        );
        assert_eq!(
            found.repo_digests,
            std::slice::from_ref(&pushed.by_digest),
            "{}",
            node.name
        );
        assert!(found.size > 0, "{}", node.name);
        let mark = cell.registry.mark().await;
        for name in [&pushed.by_tag, &pushed.by_digest, &layered.by_digest] {
            assert!(
                cri.image_status(name).await.unwrap().is_some(),
                "{}: {name}",
                node.name
            );
            cri.pull_image(name).await.unwrap();
        }
        let requests = cell.registry.requests_since(mark).await;
        assert!(
            !requests.iter().any(|request| request.gets_blob()),
            "{}: {requests:?}",
            node.name
        );
        let printed =
            run_container(&node.containerd, &pushed.by_tag, &["/bin/echo", "one line"]).await;
        assert_eq!(printed, "one line\n", "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_warms_every_containerd_generation_over_nats_2_10() {
    one_message_warms_every_generation(NatsVersion::V2_10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_warms_every_containerd_generation_over_nats_2_15() {
    one_message_warms_every_generation(NatsVersion::V2_15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_finds_everything_there() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = generated(3, 2, 100_000).build();
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let _node = cell
        .node("node", ContainerdVersion::V1_7, &cell.registry.addr())
        .await;
    let first = cell
        .run(&["run", &pushed.by_tag, "--name", "again", "--wait"])
        .await;
    assert_eq!(first.code, 0, "{first:?}");
    let mark = cell.registry.mark().await;
    let second = cell
        .run(&[
            "run",
            &pushed.by_tag,
            "--name",
            "again",
            "--wait",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(second.code, 0, "{second:?}");
    let requests = cell.registry.requests_since(mark).await;
    assert!(
        !requests.iter().any(|request| request.gets_blob()),
        "{requests:?}"
    );
    let record = cell.record("again").await.unwrap();
    assert_eq!(
        (record.metadata.generation, record.status.bytes_registry),
        (2, 0)
    );
}
