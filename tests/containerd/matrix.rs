//! What a registry can do wrong, one row each: the kind of failure it ends in, what it costs, and that nothing is named.

use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::domain::image::Digest;

use super::faulty::{Fault, Faulty};
use super::node::{COLLECTION_LIMIT, Node, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Image, generated};
use support::wait::{eventually, within};

/// Longest that a pull may take which a registry answers wrongly, but answers.
const LIMIT: Duration = Duration::from_secs(20);
/// More faults than a pull asks a thing for.
const ALWAYS: usize = 20;
const LAYER_BYTES: usize = 3_000_000;

/// Where a fault is.
#[derive(Clone, Copy, Debug)]
enum At {
    Manifest,
    Config,
    Layer,
}

/// One of its own for every row, as what one pull has verified is of use to the next.
fn image(row: u64) -> Image {
    generated(row, 1, LAYER_BYTES).build()
}

/// The image with other bytes as its manifest, named by what they hash to.
fn with_manifest(media_type: &str, bytes: Vec<u8>) -> Image {
    let mut image = image(0);
    media_type.clone_into(&mut image.target.media_type);
    image.target.digest = Digest::of(&bytes).to_string();
    image.target.bytes = bytes.into();
    image
}

async fn nothing_is_named(node: &Node, row: &str) {
    assert_eq!(node.images().await, [], "{row}");
    let active = containerd_client::services::v1::snapshots::Kind::Active;
    eventually("scratch snapshots to go", COLLECTION_LIMIT, async || {
        let left = node.snapshots(active).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn every_fault_ends_in_its_kind_with_nothing_named() {
    use FailureKind::{
        DigestMismatch, ImageNotFound, RateLimited, RegistryUnavailable, Unauthorized,
    };
    let node = Node::start(ContainerdVersion::V2_1).await;
    let mut rows = 0;
    for (fault, kind) in [
        (Fault::Status(401), Unauthorized),
        (Fault::Status(403), Unauthorized),
        (Fault::Status(404), ImageNotFound),
        (Fault::Status(429), RateLimited),
        (Fault::Status(500), RegistryUnavailable),
        (Fault::Status(503), RegistryUnavailable),
        (Fault::CutAfter(0), RegistryUnavailable),
        (Fault::Corrupt, DigestMismatch),
    ] {
        for at in [At::Manifest, At::Config, At::Layer] {
            let row = format!("{fault:?} at {at:?}");
            rows += 1;
            let image = image(rows);
            let faulty = Faulty::serve(&image).await;
            node.daemon.allow_registry(faulty.addr());
            let what = match at {
                At::Manifest => image.digest(),
                At::Config => image.config_digest(),
                At::Layer => image.blobs[1].digest.as_str(),
            };
            faulty.break_next(what, [fault; ALWAYS]);
            let mut request = request(&faulty.image());
            request.digest = Some(image.digest().parse().unwrap());
            let failure = within(LIMIT, &row, node.pull(&request)).await.unwrap_err();
            assert_eq!(failure.kind, kind, "{row}: {failure}");
            assert!(failure.message.contains(faulty.addr()), "{row}: {failure}");
            nothing_is_named(&node, &row).await;
            let layer = &image.blobs[1].digest;
            assert!(faulty.ranges(layer).len() < 5, "{row}: asked on and on");
            assert!(!node.content().await.contains_key(layer), "{row}");
        }
    }
}

#[tokio::test]
async fn manifests_that_are_none_are_refused_for_good() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let schema_1 = br#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[],"history":[]}"#;
    for (row, media_type, bytes) in [
        ("5 MB", oci, vec![b' '; 5_000_000]),
        ("no JSON", oci, b"<html>".to_vec()),
        (
            "schema 1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            schema_1.to_vec(),
        ),
        (
            "an unknown media type",
            "application/x.thing",
            b"{}".to_vec(),
        ),
    ] {
        let faulty = Faulty::serve(&with_manifest(media_type, bytes)).await;
        node.daemon.allow_registry(faulty.addr());
        let failure = within(LIMIT, row, node.pull(&request(&faulty.image())))
            .await
            .unwrap_err();
        assert_eq!(
            failure.kind,
            FailureKind::InvalidReference,
            "{row}: {failure}"
        );
        nothing_is_named(&node, row).await;
        assert_eq!(node.is_clean().await, Ok(()), "{row}");
    }
}
