//! Pulls through CRI: where nothing else is to be had, where only containerd's own pull will do, and where the worker's
//! own way fails.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use prewarm::domain::failure::FailureKind;
use prewarm::domain::image::{Digest, Platform};
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::progress::PullProgress;
use prewarm::image::Engine;
use prewarm::image::containerd::Containerd;
use prewarm::image::registry::{self, RegistryConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::faulty::{Fault, Faulty};
use super::node::{Node, moved_tag, on_all, pull, request, settings, settings_at};
use super::pinned::pin;
use super::support;
use support::containerd::ContainerdVersion;
use support::cri_only::CriOnly;
use support::gate::Gate;
use support::images::{Image, busybox, generated};
use support::parts;
use support::registry::Registry;
use support::run_container::run_container;
use support::wait::{eventually, within};

/// How long a test waits for a pull to reach a point.
const LIMIT: Duration = Duration::from_secs(20);
/// More faults than a pull asks a thing for.
const ALWAYS: usize = 20;

/// A node whose runtime shows prewarm nothing but CRI.
async fn cri_only(version: ContainerdVersion) -> (Node, CriOnly, Containerd) {
    let node = Node::start(version).await;
    let socket = node.daemon.scratch().join("cri.sock");
    let front = CriOnly::before(node.daemon.channel().await, &socket);
    let settings = settings_at(front.socket(), node.daemon.certs_dir());
    let runtime = Containerd::connect(settings).unwrap();
    (node, front, runtime)
}

async fn cri_alone_is_enough(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let (node, front, runtime) = cri_only(version).await;
    node.daemon.allow_registry(&registry.addr());
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = registry.push("team/busybox", "1.35", &image).await;
    let info = runtime.probe().await.unwrap();
    assert_eq!(info.name, "containerd");
    assert!(info.disk_free > 0 && info.disk_free <= info.disk_total);
    assert_eq!(runtime.engine().await.unwrap().0, Engine::Cri);

    let mut pinned = request(&pushed.by_tag);
    pinned.pin = Some(pin("a-1", 1));
    let report = pull(&runtime, &pinned).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Cri));
    assert!(report.engine_reason.contains("CRI alone"), "{report:?}");
    assert_eq!(report.digest.as_str(), pushed.digest);
    assert!(!report.already_present);
    assert_eq!(report.bytes_registry, 0, "CRI says no bytes");
    let cri = node.daemon.cri().await;
    for name in [&pushed.by_tag, &pushed.by_digest] {
        assert!(cri.image_status(name).await.unwrap().is_some(), "{name}");
    }
    let printed = run_container(&node.daemon, &pushed.by_tag, &["/bin/echo", "warm"]).await;
    assert_eq!(printed, "warm\n");

    let again = pull(&runtime, &request(&pushed.by_tag)).await.unwrap();
    assert!(again.already_present);
    assert_eq!(again.engine, None);
    assert_eq!(front.pulls(), 1, "what is there is not pulled");
    assert_eq!(runtime.pins().await.unwrap(), [], "CRI has no pins");
    runtime.unpin(&[pin("a-1", 1)]).await.unwrap();
    let mut always = request(&pushed.by_tag);
    always.policy = ImagePullPolicy::Always;
    assert!(pull(&runtime, &always).await.unwrap().already_present);
    assert_eq!(front.pulls(), 2, "the runtime asks the registry");

    let mut content_only = request(&pushed.by_tag);
    content_only.unpack = false;
    let failure = pull(&runtime, &content_only).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidReference);
    assert!(failure.message.contains("unpack: false"), "{failure}");
    let mut foreign = request(&pushed.by_tag);
    foreign.platform = Some(Platform {
        os: "linux".into(),
        architecture: "s390x".into(),
        variant: None,
    });
    let failure = pull(&runtime, &foreign).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoMatchingPlatform);
}

#[tokio::test]
async fn a_runtime_with_cri_alone_is_pulled_into() {
    on_all(cri_alone_is_enough).await;
}

#[tokio::test]
async fn the_digest_of_the_job_wins_through_cri_as_well() {
    let registry = Registry::start().await;
    let (node, _front, runtime) = cri_only(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let first = moved_tag(&registry).await;
    let mut fixed = request(&first.by_tag);
    fixed.digest = Some(first.digest.parse().unwrap());
    let report = pull(&runtime, &fixed).await.unwrap();
    assert_eq!(report.digest.as_str(), first.digest);
    let cri = node.daemon.cri().await;
    assert!(cri.image_status(&first.by_digest).await.unwrap().is_some());
}

async fn refusals_have_their_kinds(version: ContainerdVersion) {
    let (node, _front, runtime) = cri_only(version).await;
    let mut seed = 0;
    for (fault, kind) in [
        (Fault::Status(401), FailureKind::Unauthorized),
        (Fault::Status(403), FailureKind::Unauthorized),
        (Fault::Status(404), FailureKind::ImageNotFound),
        (Fault::Status(429), FailureKind::RateLimited),
        (Fault::Status(503), FailureKind::RegistryUnavailable),
        (Fault::Corrupt, FailureKind::DigestMismatch),
    ] {
        seed += 1;
        let image = generated(seed, 1, 100_000).build();
        let faulty = Faulty::serve(&image).await;
        node.daemon.allow_registry(faulty.addr());
        let what = match fault {
            Fault::Corrupt => image.blobs[1].digest.as_str(),
            _ => "1",
        };
        faulty.break_next(what, [fault; ALWAYS]);
        let request = request(&faulty.image());
        let row = format!("{fault:?} on {version:?}");
        let failure = within(LIMIT, &row, pull(&runtime, &request))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, kind, "{row}: {failure}");
        assert!(
            failure.message.contains(&faulty.image()),
            "{row}: {failure}"
        );
    }
    let failure = pull(&runtime, &request("127.0.0.1:1/app:1"))
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
}

#[tokio::test]
async fn what_a_registry_refuses_through_cri_has_its_kind() {
    on_all(refusals_have_their_kinds).await;
}

#[tokio::test]
async fn credentials_of_the_node_go_along() {
    let (node, front, _) = cri_only(ContainerdVersion::V1_6).await;
    let faulty = Faulty::serve(&generated(1, 1, 10_000).build()).await;
    node.daemon.allow_registry(faulty.addr());
    faulty.want("reader", "a-good-password");
    let dir = tempfile::tempdir().unwrap();
    let with_password = |password: &str| {
        let config = serde_json::json!({
            "auths": {faulty.addr(): {"username": "reader", "password": password}}
        });
        let path = dir.path().join(format!("{password}.json"));
        std::fs::write(&path, config.to_string()).unwrap();
        let mut settings = settings_at(front.socket(), node.daemon.certs_dir());
        settings.registry = registry::Registry::new(RegistryConfig {
            hosts_dirs: vec![node.daemon.certs_dir()],
            docker_config: Some(path),
            secrets_dir: None::<PathBuf>,
            ..RegistryConfig::default()
        });
        Containerd::connect(settings).unwrap()
    };
    let request = request(&faulty.image());
    let failure = pull(&with_password("a-bad-password"), &request)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unauthorized, "{failure}");
    assert!(!failure.message.contains("a-bad-password"), "{failure}");
    pull(&with_password("a-good-password"), &request)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_cancelled_pull_ends_the_runtimes_own() {
    let registry = Registry::start().await;
    let (node, _front, runtime) = cri_only(ContainerdVersion::V1_7).await;
    registry
        .push("app", "1", &generated(1, 1, 4_000_000).build())
        .await;
    let gate = Gate::closed_after(1_000_000, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let (progress, _) = watch::channel(PullProgress::default());
    let cancelled = CancellationToken::new();
    let request = request(&format!("{}/app:1", gate.addr()));
    let pulling = runtime.pull(&request, &progress, &cancelled);
    let cancelling = async {
        gate.holds(LIMIT).await;
        cancelled.cancel();
    };
    let (outcome, ()) = tokio::join!(pulling, cancelling);
    assert_eq!(outcome.unwrap_err().kind, FailureKind::Internal);
    // Nothing but the cancellation can end it while the gate is closed.
    eventually("the runtime's lease to go", LIMIT, async || {
        node.leases().await.is_empty()
    })
    .await;
    gate.open();
    assert_eq!(node.images().await, []);
}

/// The image with layers that say they are encrypted. What "decrypts" them here is a program that copies.
fn encrypted(seed: u64) -> Image {
    let mut image = generated(seed, 2, 50_000).build();
    let manifest = String::from_utf8(image.target.bytes.to_vec()).unwrap();
    let manifest = manifest.replace("tar+gzip", "tar+gzip+encrypted");
    assert!(manifest.contains("+encrypted"));
    image.target.digest = Digest::of(manifest.as_bytes()).to_string();
    image.target.bytes = manifest.into_bytes().into();
    image
}

/// containerd's own way to say who decrypts (`docs/stream_processors.md`), in the place of what its defaults name.
const DECRYPTS: &str = r#"
[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
returns = "application/vnd.oci.image.layer.v1.tar+gzip"
path = "/bin/cat"
"#;

async fn encrypted_layers_are_decrypted(version: ContainerdVersion) {
    let daemon = support::containerd::Containerd::start_with_config(version, DECRYPTS).await;
    let image = encrypted(1);
    let faulty = Faulty::serve(&image).await;
    daemon.allow_registry(faulty.addr());
    let runtime = Containerd::connect(settings(&daemon)).unwrap();
    let mut pinned = request(&faulty.image());
    pinned.pin = Some(pin("a-1", 1));
    let report = pull(&runtime, &pinned).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Cri), "{version:?}");
    assert!(report.engine_reason.contains("encrypted"), "{report:?}");
    assert_eq!(report.digest.as_str(), image.digest());
    assert!(pull(&runtime, &pinned).await.unwrap().already_present);
    let node = Node { daemon, runtime };
    let record = node.image(&faulty.image()).await.unwrap();
    assert_eq!(record.labels["io.cri-containerd.pinned"], "pinned");
    node.runtime.unpin(&[pin("a-1", 1)]).await.unwrap();
    let record = node.image(&faulty.image()).await.unwrap();
    assert!(!record.labels.contains_key("io.cri-containerd.pinned"));

    // Where CRI does not look, nobody decrypts.
    let mut elsewhere = settings(&node.daemon);
    "elsewhere".clone_into(&mut elsewhere.namespace);
    let runtime = Containerd::connect(elsewhere).unwrap();
    let failure = pull(&runtime, &request(&faulty.image())).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidReference, "{failure}");
    assert!(failure.message.contains("encrypted"), "{failure}");
}

#[tokio::test]
async fn encrypted_layers_are_left_to_containerds_own_pull() {
    on_all(encrypted_layers_are_decrypted).await;
}

/// The directory of the scratch snapshot that the lowest layer is unpacked in.
fn scratch_layer(node: &Node) -> Option<PathBuf> {
    let snapshots = node.daemon.root();
    let snapshots = snapshots.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    std::fs::read_dir(snapshots)
        .ok()?
        .map(|entry| entry.unwrap().path().join("fs/0"))
        .find(|layer| layer.is_dir())
}

async fn another_engine_takes_over(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let node = Node::start(version).await;
    let image = busybox(&parts::program("busybox", "busybox")).build();
    registry.push("busybox", "1", &image).await;
    let gate = Gate::closed_after(200_000, &registry.addr()).await;
    node.daemon.allow_registry(&gate.addr());
    let name = format!("{}/busybox:1", gate.addr());
    let request = request(&name);
    let breaking = async {
        let layer = eventually("a layer that is being unpacked", LIMIT, async || {
            scratch_layer(&node)
        })
        .await;
        gate.holds(LIMIT).await;
        // What is mounted on cannot be renamed.
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "in-the-way"])
            .arg(&layer)
            .status();
        assert!(mounted.unwrap().success());
        gate.open();
    };
    let (report, ()) = tokio::join!(node.pull(&request), breaking);
    let report = report.unwrap();
    assert_eq!(report.engine, Some(Engine::Cri), "{version:?}");
    let reason = &report.engine_reason;
    assert!(reason.starts_with("the native engine failed"), "{reason}");
    assert!(node.pull(&request).await.unwrap().already_present);
    let printed = run_container(&node.daemon, &name, &["/bin/echo", "warm"]).await;
    assert_eq!(printed, "warm\n");
}

#[tokio::test]
async fn where_the_native_engine_cannot_containerds_own_pull_does_it() {
    on_all(another_engine_takes_over).await;
}
