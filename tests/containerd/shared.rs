//! Pulls at the same time: of the same image, of images with layers in common, and beside kubelet's.

use support::containerd::ContainerdVersion;
use support::images::{Layer, Recipe, generated};
use support::registry::{Registry, Request};

use super::node::{Node, pull, request};
use super::support;

fn blob_requests(requests: &[Request]) -> Vec<&str> {
    let mut paths: Vec<&str> = requests
        .iter()
        .filter(|request| request.gets_blob())
        .map(|request| request.path.as_str())
        .collect();
    paths.sort_unstable();
    paths
}

#[tokio::test]
async fn images_with_a_layer_in_common_download_it_once() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let common = Layer::generated(1, 0, 8_000_000);
    let of = |seed| Recipe::new(vec![common.clone(), Layer::generated(seed, 1, 10_000)]).build();
    let images = [of(2), of(3), of(4)];
    let mut pushed = Vec::new();
    for (image, name) in images.iter().zip(["a", "b", "c"]) {
        pushed.push(registry.push(name, "1", image).await);
    }
    let mark = registry.mark().await;
    let requests: Vec<_> = pushed
        .iter()
        .map(|pushed| request(&pushed.by_tag))
        .collect();
    let (a, b, c) = tokio::join!(
        node.pull(&requests[0]),
        node.pull(&requests[1]),
        node.pull(&requests[2])
    );
    let reports = [a.unwrap(), b.unwrap(), c.unwrap()];
    let requests = registry.requests_since(mark).await;
    let layer = &images[0].blobs[1].digest;
    let of_layer = blob_requests(&requests)
        .into_iter()
        .filter(|path| path.ends_with(layer.as_str()))
        .count();
    assert_eq!(of_layer, 1, "{requests:#?}");
    let fetched: u64 = reports.iter().map(|report| report.bytes_registry).sum();
    let present: u64 = reports.iter().map(|report| report.bytes_present).sum();
    let common_bytes = images[0].blobs[1].bytes.len() as u64;
    assert_eq!(present, 2 * common_bytes);
    let all: usize = images.iter().map(support::images::Image::size).sum();
    assert_eq!(fetched + present, all as u64);
    assert_eq!(node.is_clean().await, Ok(()));
}

#[tokio::test]
async fn pulls_of_one_image_at_once_all_succeed_and_download_it_once() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_6).await;
    node.daemon.allow_registry(&registry.addr());
    let image = generated(1, 3, 3_000_000).build();
    let pushed = registry.push("app", "1", &image).await;
    let mark = registry.mark().await;
    let request = request(&pushed.by_tag);
    let pulls = (0..4).map(|_| node.pull(&request));
    for outcome in futures::future::join_all(pulls).await {
        outcome.unwrap();
    }
    let requests = registry.requests_since(mark).await;
    let paths = blob_requests(&requests);
    assert_eq!(paths.len(), image.blobs.len(), "{paths:#?}");
}

/// How often ours and kubelet's pull of the same image are started together on each generation: 51 times in all.
const RACES: u64 = 17;

async fn beside_kubelet(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    node.daemon.allow_registry(&registry.addr());
    let cri = node.daemon.cri().await;
    let mut twice = Vec::new();
    for round in 0..RACES {
        let image = generated(round, 3, 200_000).build();
        let pushed = registry.push("app", &round.to_string(), &image).await;
        let mark = registry.mark().await;
        let request = request(&pushed.by_tag);
        let (ours, theirs) = tokio::join!(node.pull(&request), cri.pull_image(&pushed.by_tag));
        ours.unwrap_or_else(|failure| panic!("round {round}: {failure}"));
        theirs.unwrap_or_else(|status| panic!("round {round}: {status}"));
        let requests = registry.requests_since(mark).await;
        let paths = blob_requests(&requests);
        let more = paths.len().saturating_sub(image.blobs.len());
        twice.extend(std::iter::repeat_n(round, more));
        assert!(cri.image_status(&pushed.by_digest).await.unwrap().is_some());
    }
    println!("{version:?}: fetched twice in rounds {twice:?}");
    assert_eq!(twice, Vec::<u64>::new(), "blobs were fetched twice");
    assert_eq!(node.is_clean().await, Ok(()));
}

#[tokio::test]
async fn pulls_beside_kubelet_both_succeed_and_fetch_once_on_containerd_1_6() {
    beside_kubelet(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn pulls_beside_kubelet_both_succeed_and_fetch_once_on_containerd_1_7() {
    beside_kubelet(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn pulls_beside_kubelet_both_succeed_and_fetch_once_on_containerd_2_1() {
    beside_kubelet(ContainerdVersion::V2_1).await;
}

#[tokio::test]
async fn a_blob_that_another_process_fetches_is_waited_for() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let common = Layer::generated(1, 0, 8_000_000);
    let of = |seed| Recipe::new(vec![common.clone(), Layer::generated(seed, 1, 10_000)]).build();
    let (first, second) = (of(2), of(3));
    let one = request(&registry.push("a", "1", &first).await.by_tag);
    let two = request(&registry.push("b", "1", &second).await.by_tag);
    let other = node.another_runtime();
    let mark = registry.mark().await;
    let (ours, theirs) = tokio::join!(node.pull(&one), pull(&other, &two));
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    let requests = registry.requests_since(mark).await;
    assert_eq!(blob_requests(&requests).len(), 5, "{requests:#?}");
    let layer = first.blobs[1].bytes.len() as u64;
    assert_eq!(ours.bytes_present + theirs.bytes_present, layer);
}
