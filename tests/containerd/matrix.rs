//! What a registry can do wrong, one row each: the kind of failure it ends in, what it costs, and that nothing is named.

use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::domain::image::Digest;
use prewarm::image::containerd::Containerd;

use super::faulty::{Fault, Faulty, Length};
use super::node::{COLLECTION_LIMIT, Node, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Entry, Image, Layer, Recipe, generated};
use support::wait::{eventually, within};

/// Longest that a pull may take which a registry answers wrongly, but answers.
const LIMIT: Duration = Duration::from_secs(20);
/// More faults than a pull asks a thing for.
const ALWAYS: usize = 20;
const LAYER_BYTES: usize = 3_000_000;
/// From so many bytes on a blob is asked for in parts.
const PARTS_FROM: usize = 16 << 20;
/// Compressed to about half, it is larger than that.
const LARGE_LAYER_BYTES: usize = 44_000_000;
/// The disk of a bomb, in MiB.
const DISK_MIB: u32 = 48;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

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
fn as_manifest(mut image: Image, media_type: &str, bytes: Vec<u8>) -> Image {
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

/// What each fault ends in, where it is in the manifest, and where it is in a blob.
fn faults() -> Vec<(Fault, [FailureKind; 2])> {
    use FailureKind::{
        DigestMismatch, ImageNotFound, RateLimited, RegistryUnavailable, Unauthorized,
    };
    vec![
        (Fault::Status(401), [Unauthorized; 2]),
        (Fault::Status(403), [Unauthorized; 2]),
        (Fault::Status(404), [ImageNotFound; 2]),
        (Fault::Status(429), [RateLimited; 2]),
        (Fault::Later(429, "7"), [RateLimited; 2]),
        (
            Fault::Later(429, "Sat, 21 Nov 2099 07:28:00 GMT"),
            [RateLimited; 2],
        ),
        (Fault::Status(500), [RegistryUnavailable; 2]),
        (Fault::Status(503), [RegistryUnavailable; 2]),
        (Fault::Later(503, "7"), [RegistryUnavailable; 2]),
        (Fault::CutAfter(0), [RegistryUnavailable; 2]),
        (Fault::CutAfter(20), [RegistryUnavailable; 2]),
        (Fault::Corrupt, [DigestMismatch; 2]),
        (Fault::Short(20, Length::Said), [DigestMismatch; 2]),
        (
            Fault::Short(20, Length::NotSaid),
            [DigestMismatch, RegistryUnavailable],
        ),
        (Fault::Long(Length::Said), [DigestMismatch; 2]),
        (Fault::Long(Length::NotSaid), [DigestMismatch; 2]),
        (Fault::Circle, [RegistryUnavailable; 2]),
    ]
}

#[tokio::test]
async fn every_fault_ends_in_its_kind_with_nothing_named() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    let mut rows = 0;
    for (fault, [in_manifest, in_blob]) in faults() {
        for at in [At::Manifest, At::Config, At::Layer] {
            let row = format!("{fault:?} at {at:?}");
            rows += 1;
            let image = image(rows);
            let faulty = Faulty::serve(&image).await;
            let hosts = format!("server = \"http://{}\"\n", faulty.addr());
            node.daemon.registry_hosts(faulty.addr(), &hosts);
            let (what, kind) = match at {
                At::Manifest => (image.digest(), in_manifest),
                At::Config => (image.config_digest(), in_blob),
                At::Layer => (image.blobs[1].digest.as_str(), in_blob),
            };
            faulty.break_next(what, [fault; ALWAYS]);
            let mut request = request(&faulty.image());
            request.digest = Some(image.digest().parse().unwrap());
            let failure = within(LIMIT, &row, node.pull(&request)).await.unwrap_err();
            assert_eq!(failure.kind, kind, "{row}: {failure}");
            assert!(failure.message.contains(faulty.addr()), "{row}: {failure}");
            let wait = failure.retry_after.map(|wait| wait.as_secs());
            match fault {
                Fault::Later(_, "7") => assert_eq!(wait, Some(7), "{row}"),
                // An hour is the longest that is believed.
                Fault::Later(..) => assert_eq!(wait, Some(3600), "{row}"),
                Fault::Status(429) => {}
                _ => assert_eq!(wait, None, "{row}"),
            }
            nothing_is_named(&node, &row).await;
            let layer = &image.blobs[1].digest;
            let most = match fault {
                // Each redirect is one.
                Fault::Circle => 6,
                _ => 3,
            };
            assert!(faulty.ranges(layer).len() <= most, "{row}: asked on and on");
            assert!(!node.content().await.contains_key(layer), "{row}");
        }
    }
}

/// What is wrong once, or can be got around, does not fail a pull: the ranges that a layer is asked for.
#[tokio::test]
async fn what_can_be_taken_up_again_is() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    let cut = Fault::CutAfter(500_000);
    let short = Fault::Short(500_000, Length::NotSaid);
    for (row, (faults, asked)) in [
        (vec![cut], vec!["all", "rest"]),
        (
            vec![cut, cut, Fault::CutAfter(0)],
            vec!["all", "rest", "rest", "rest"],
        ),
        (vec![short], vec!["all", "rest"]),
        (vec![cut, Fault::NoRange], vec!["all", "rest"]),
        // One that lies about ranges is asked for everything.
        (vec![cut, Fault::OtherRange], vec!["all", "rest", "all"]),
        (vec![cut, Fault::Status(416)], vec!["all", "rest", "all"]),
        (vec![Fault::Elsewhere], vec!["all"]),
        // And what goes on from elsewhere is asked for here first.
        (vec![cut, Fault::Elsewhere], vec!["all", "rest"]),
        // More bytes than there should be may be those of an attempt before.
        (
            vec![cut, Fault::Long(Length::NotSaid)],
            vec!["all", "rest", "all"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let image = image(100 + row as u64);
        let (faulty, store) = (Faulty::serve(&image).await, Faulty::serve(&image).await);
        faulty.elsewhere(store.addr());
        node.daemon.allow_registry(faulty.addr());
        let layer = &image.blobs[1].digest;
        let row = format!("{faults:?}");
        faulty.break_next(layer, faults);
        within(LIMIT, &row, node.pull(&request(&faulty.image())))
            .await
            .unwrap();
        let ranges = faulty.ranges(layer);
        let ranges: Vec<_> = ranges
            .iter()
            .map(|range| range.as_ref().map_or("all", |_| "rest"))
            .collect();
        assert_eq!(ranges, asked, "{row}");
    }
    eventually("the pulls' traces to go", COLLECTION_LIMIT, async || {
        node.is_clean().await
    })
    .await;
}

/// A layer that comes over several connections where it can.
#[tokio::test]
async fn a_large_layer_comes_from_a_registry_that_is_wrong_about_ranges() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    for (row, fault) in [Fault::NoRange, Fault::OtherRange].into_iter().enumerate() {
        let image = generated(400 + row as u64, 1, LARGE_LAYER_BYTES).build();
        let layer = &image.blobs[1];
        assert!(
            layer.bytes.len() > PARTS_FROM,
            "{} bytes",
            layer.bytes.len()
        );
        let faulty = Faulty::serve(&image).await;
        node.daemon.allow_registry(faulty.addr());
        faulty.break_next(&layer.digest, [fault; 10 * ALWAYS]);
        let row = format!("{fault:?}");
        within(LIMIT, &row, node.pull(&request(&faulty.image())))
            .await
            .unwrap();
        assert!(node.content().await.contains_key(&layer.digest), "{row}");
        let asked = faulty.ranges(&layer.digest).len();
        assert!(asked <= ALWAYS, "{row}: asked {asked} times");
    }
}

#[tokio::test]
async fn tokens_that_expire_in_mid_pull_are_replaced() {
    let image = generated(1, 6, 100_000).build();
    // One token is enough for as long as it is good for.
    for (uses, most) in [(3, 9), (1_000, 1)] {
        let faulty = Faulty::serve(&image).await;
        faulty.want_tokens(uses);
        let node = Node::start(ContainerdVersion::V2_1).await;
        node.daemon.allow_registry(faulty.addr());
        let pulled = within(LIMIT, "a pull", node.pull(&request(&faulty.image()))).await;
        assert_eq!(pulled.unwrap().bytes_registry, image.size() as u64);
        // For a tag, a manifest, a configuration and six layers.
        let tokens = faulty.tokens();
        let least = 9_usize.div_ceil(uses);
        assert!(
            (least..=most).contains(&tokens),
            "{tokens} tokens for {uses} requests each"
        );
    }
}

/// A layer whose manifest says that it has more or fewer bytes than it has.
#[tokio::test]
async fn a_size_that_is_wrong_in_the_manifest_is_a_mismatch() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    for (row, (part, difference)) in [
        ("layers", 1_i64),
        ("layers", -1),
        ("config", 1),
        ("config", -1),
    ]
    .into_iter()
    .enumerate()
    {
        let image = image(200 + row as u64);
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.target.bytes).unwrap();
        let descriptor = match part {
            "layers" => &mut manifest["layers"][0],
            _ => &mut manifest["config"],
        };
        let size = descriptor["size"].as_i64().unwrap() + difference;
        descriptor["size"] = size.into();
        let image = as_manifest(image, MANIFEST, serde_json::to_vec(&manifest).unwrap());
        let faulty = Faulty::serve(&image).await;
        node.daemon.allow_registry(faulty.addr());
        let row = format!("{part} {difference}");
        let pulled = within(LIMIT, &row, node.pull(&request(&faulty.image()))).await;
        let failure = pulled.unwrap_err();
        assert_eq!(
            failure.kind,
            FailureKind::DigestMismatch,
            "{row}: {failure}"
        );
        nothing_is_named(&node, &row).await;
    }
}

/// Small on its way, and larger than the disk once it is unpacked.
#[tokio::test]
async fn a_bomb_ends_at_the_disk_and_gives_it_back() {
    let version = ContainerdVersion::V2_1;
    let daemon = support::containerd::Containerd::start_on_small_disk(version, DISK_MIB).await;
    let runtime = Containerd::connect(settings(&daemon)).unwrap();
    let node = Node { daemon, runtime };
    let file = vec![b'a'; (3 * DISK_MIB as usize) << 20];
    let bomb = Recipe::new(vec![Layer::of(&[Entry::file("bomb", 0o644, file)])]).build();
    assert!(bomb.size() < 2 << 20, "{} bytes", bomb.size());
    let faulty = Faulty::serve(&bomb).await;
    node.daemon.allow_registry(faulty.addr());
    let pulled = within(LIMIT, "a bomb", node.pull(&request(&faulty.image()))).await;
    let failure = pulled.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InsufficientDisk, "{failure}");
    nothing_is_named(&node, "a bomb").await;
    let small = image(300);
    let faulty = Faulty::serve(&small).await;
    node.daemon.allow_registry(faulty.addr());
    node.pull(&request(&faulty.image())).await.unwrap();
}

/// A manifest with a layer that is something else.
fn unknown_layer() -> Vec<u8> {
    let image = image(0);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.target.bytes).unwrap();
    manifest["layers"][0]["mediaType"] = "application/x.thing".into();
    serde_json::to_vec(&manifest).unwrap()
}

#[tokio::test]
async fn manifests_that_are_none_are_refused_for_good() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    let schema_1 = br#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[],"history":[]}"#;
    for (row, media_type, bytes) in [
        ("5 MB", MANIFEST, vec![b' '; 5_000_000]),
        ("no JSON", MANIFEST, b"<html>".to_vec()),
        (
            "schema 1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            schema_1.to_vec(),
        ),
        (
            "a layer of an unknown media type",
            MANIFEST,
            unknown_layer(),
        ),
        (
            "an unknown media type",
            "application/x.thing",
            b"{}".to_vec(),
        ),
    ] {
        let faulty = Faulty::serve(&as_manifest(image(0), media_type, bytes)).await;
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
