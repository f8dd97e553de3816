//! docker-registry and the images made for it.

use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::images::{Entry, Format, Image, Layer, Recipe, generated, http};
use crate::support::registry::Registry;
use crate::support::wait::within;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_pushed_image_is_there_after_a_kill_and_on_the_same_port() {
    let mut registry = Registry::start().await;
    let pushed = registry
        .push("team/app", "1.0", &generated(1, 2, 100_000).build())
        .await;
    let address = registry.addr();
    registry.kill();
    registry.restart().await;
    assert_eq!(registry.addr(), address);
    let url = format!("http://{address}/v2/team/app/manifests/1.0");
    let manifest = http()
        .get(url)
        .header("accept", "application/vnd.oci.image.manifest.v1+json")
        .send()
        .await
        .unwrap();
    assert_eq!(
        manifest.headers()["docker-content-digest"],
        pushed.digest.as_str()
    );
}

#[tokio::test]
async fn requests_since_a_mark_are_the_ones_made_since() {
    let registry = Registry::start().await;
    let image = generated(1, 1, 1000).build();
    registry.push("app", "1", &image).await;
    let mark = registry.mark().await;
    assert_eq!(registry.requests_since(mark).await, []);

    let url = format!(
        "http://{}/v2/app/blobs/{}",
        registry.addr(),
        image.blobs[1].digest
    );
    let bytes = http().get(url).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(bytes, image.blobs[1].bytes);
    http()
        .get(format!("http://{}/v2/app/manifests/none", registry.addr()))
        .send()
        .await
        .unwrap();

    let requests = registry.requests_since(mark).await;
    assert_eq!(requests.len(), 2);
    assert!(
        requests[0].gets_blob()
            && requests[0].status == 200
            && requests[0].bytes == bytes.len() as u64
    );
    assert!(requests[1].gets_manifest() && requests[1].status == 404);
    let later = registry.mark().await;
    assert_eq!(registry.requests_since(later).await, []);
}

#[tokio::test]
async fn a_gate_holds_an_answer_until_it_is_opened() {
    let registry = Registry::start().await;
    let image = generated(1, 1, 1_000_000).build();
    registry.push("app", "1", &image).await;
    let gate = Gate::closed_after(200_000, &registry.addr()).await;
    let layer = &image.blobs[1];
    let url = format!("http://{}/v2/app/blobs/{}", gate.addr(), layer.digest);
    let pull =
        tokio::spawn(async move { http().get(url).send().await.unwrap().bytes().await.unwrap() });

    gate.holds(LIMIT).await;
    assert!(gate.passed() <= 200_000 && !pull.is_finished());
    gate.open();
    assert_eq!(
        within(LIMIT, "the rest of the layer", pull).await.unwrap(),
        layer.bytes
    );
}

#[test]
fn an_image_is_the_same_bytes_every_time() {
    let digest = |seed| generated(seed, 3, 200_000).build().digest().to_owned();
    assert_eq!(digest(7), digest(7));
    assert_ne!(digest(7), digest(8));
}

#[tokio::test]
async fn every_form_of_image_can_be_pushed() {
    let registry = Registry::start().await;
    let layer = Layer::of(&[
        Entry::dir("a", 0o755),
        Entry::whiteout("a/b"),
        Entry::opaque("a"),
        Entry::file("c", 0o644, "c"),
    ]);
    for format in [Format::Oci, Format::Docker] {
        let images = ["linux/amd64", "linux/arm64/v8"].map(|platform| {
            Recipe {
                format,
                platform: platform.to_owned(),
                ..Recipe::new(vec![layer.clone()])
            }
            .build()
        });
        registry.push("app", "one", &images[0]).await;
        registry
            .push("app", "many", &Image::index(format, &images))
            .await;
    }
    registry
        .push(
            "model",
            "1",
            &Image::artifact("application/vnd.example.model", "text/plain", b"weights"),
        )
        .await;
}
