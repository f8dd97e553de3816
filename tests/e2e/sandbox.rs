//! The image that is shipped works with no more rights than the manifests give it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use prewarm::domain::status::Outcome;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::cell::{Cell, LIMIT};
use super::pod::{self, Image, Volume};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::cri_only::CriOnly;
use crate::support::images::{Entry, Layer, Recipe};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;
use crate::support::wait::eventually;

/// Fewer public authorities than any bundle of the last years has.
const FEWEST_AUTHORITIES: usize = 100;
/// Where the image has them.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// `CAP_NET_RAW` (linux/capability.h), as a `ping` has it.
const NET_RAW: u32 = 13;

/// An image with owners, setuid and setgid programs, one with a capability, a device, what hides a file below and what hides a
/// folder's content.
pub(crate) fn demanding() -> Recipe {
    let below = Layer::of(&[
        Entry::dir("a", 0o700).owned_by(1000, 1000),
        Entry::file("a/hidden", 0o600, "x").owned_by(1000, 1000),
        Entry::dir("b", 0o755),
        Entry::file("b/gone", 0o644, "x"),
        Entry::file("su", 0o4755, "x").owned_by(33, 33),
        Entry::file("wall", 0o2755, "x").owned_by(0, 5),
        Entry::file("ping", 0o755, "x").capable_of(NET_RAW),
        Entry::char_device("urandom", 0o666, 1, 9),
        Entry::char_device("console", 0o620, 5, 1).owned_by(0, 5),
    ]);
    let above = Layer::of(&[
        Entry::dir("a", 0o700).owned_by(1000, 1000),
        Entry::opaque("a"),
        Entry::file("a/new", 0o400, "x").owned_by(1000, 1000),
        Entry::whiteout("b/gone"),
    ]);
    Recipe::new(vec![below, above])
}

/// What is made of it, in the one snapshot that has it.
pub(crate) fn assert_unpacked(containerd: &Containerd) {
    let snapshots = containerd
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let folders = fs::read_dir(&snapshots).unwrap();
    let layers = folders.map(|entry| entry.unwrap().path().join("fs"));
    let layers: Vec<_> = layers.filter(|layer| layer.join("su").exists()).collect();
    assert_eq!(layers.len(), 1, "{layers:?}");
    let layer = &layers[0];
    let told = |name: &str| {
        let stat = fs::symlink_metadata(layer.join(name)).unwrap();
        (stat.mode(), stat.uid(), stat.gid(), stat.rdev())
    };
    assert_eq!(told("su"), (0o104_755, 33, 33, 0));
    assert_eq!(told("wall"), (0o102_755, 0, 5, 0));
    assert_eq!(told("a/hidden"), (0o100_600, 1000, 1000, 0));
    let device = rustix::fs::makedev;
    assert_eq!(told("urandom"), (0o20_666, 0, 0, device(1, 9)));
    assert_eq!(told("console"), (0o20_620, 0, 5, device(5, 1)));
    let mut capability = [0; 20];
    let length = rustix::fs::getxattr(
        layer.join("ping"),
        "security.capability",
        &mut capability[..],
    );
    assert_eq!(length, Ok(capability.len()));
    assert_eq!(capability[4..8], (1_u32 << NET_RAW).to_le_bytes());
}

/// The child of a process, as soon as it has one.
pub(crate) async fn child_of(parent: u32) -> u32 {
    let line = format!("PPid:\t{parent}");
    eventually(&format!("a child of process {parent}"), LIMIT, async || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().ok()?;
            name.parse::<u32>().ok()
        });
        let mut processes = processes.filter(|pid| {
            // Others end while this one looks.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|found| found == line)
        });
        processes.next().ok_or("none")
    })
    .await
}

/// What the kernel says that a process may do, and what its root is.
pub(crate) fn assert_confined(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // chown 0, dac_override 1, fowner 3, fsetid 4, sys_admin 21, mknod 27, setfcap 31 (linux/capability.h).
    for line in [
        "CapPrm:\t000000008820001b",
        "CapEff:\t000000008820001b",
        "CapBnd:\t000000008820001b",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        // 2 is a filter (proc_pid_status(5)).
        "Seccomp:\t2",
        "Uid:\t0\t0\t0\t0",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    // The mount point is the fifth field, its options the sixth (proc_pid_mountinfo(5)).
    let options = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(4);
        (fields.next() == Some("/")).then(|| fields.next().unwrap_or(""))
    });
    assert!(
        options.unwrap().split(',').any(|option| option == "ro"),
        "{mounts}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_worker_in_its_sandbox_unpacks_by_itself() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = demanding().build();
    // By name, so that the image is shown to be able to look one up.
    let address = cell.registry.addr().replace("127.0.0.1", "localhost");
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let wanted = pushed.by_tag.replace("127.0.0.1", "localhost");
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    containerd.allow_registry(&address);

    let scratch = containerd.scratch();
    let empty = |name: &str| {
        let folder = scratch.join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    let volume = |name: &str| -> (PathBuf, Option<PathBuf>) {
        match name {
            "run-containerd" => (containerd.socket().parent().unwrap().to_owned(), None),
            // At the same path as on the host, which is another one in a test.
            "containerd" => (containerd.root(), Some(containerd.root())),
            "certs" => (containerd.certs_dir(), None),
            // Absent secrets, and folders of the node that are new.
            _ => (empty(name), None),
        }
    };
    let hosts = scratch.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let shipped = Image::build();
    let url = cell.nats.url().replace("127.0.0.1", "localhost");
    let env = [
        ("PREWARM_NODE", "node"),
        ("PREWARM_NATS_URL", url.as_str()),
        ("PREWARM_METRICS_LISTEN", "off"),
        ("PREWARM_MIN_FREE_DISK", "0"),
        ("PREWARM_LOG", "info,prewarm=debug"),
    ];
    let pod = pod::template("base", "DaemonSet", "prewarm-worker");
    let mut worker = shipped
        .pod(&pod, &env, volume, &[Volume::file(&hosts, "/etc/hosts")])
        .spawn("the worker in its sandbox");
    cell.present("node").await;
    assert_confined(child_of(child_of(worker.pid()).await).await);

    cell.publish("base", json!({"images": [wanted]})).await;
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}\n{}",
        worker.log()
    );
    // Had it not been allowed what it needs, it would have left the layers to containerd.
    worker.logs("\"engine\":\"native\"", LIMIT).await;
    // The volume `state` of the pod.
    let results = scratch.join("state/results/prewarm/node");
    assert!(results.is_dir(), "{}", worker.log());
    let cri = containerd.cri().await;
    assert!(cri.image_status(&wanted).await.unwrap().is_some());
    assert_unpacked(&containerd);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_worker_for_cri_o_pulls_with_no_capability_at_all() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let pushed = cell
        .registry
        .push("team/app", "1", &demanding().build())
        .await;
    let containerd = Containerd::start(ContainerdVersion::V1_7).await;
    containerd.allow_registry(&cell.registry.addr());
    let scratch = containerd.scratch();
    let folder = |name: &str| {
        let folder = scratch.join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    // Where the overlay says that CRI-O's is.
    let socket = folder("run-crio").join("crio.sock");
    let runtime = CriOnly::before(containerd.channel().await, &socket);
    let url = cell.nats.url();
    let env = [
        ("PREWARM_NODE", "node"),
        ("PREWARM_NATS_URL", url.as_str()),
        ("PREWARM_METRICS_LISTEN", "off"),
    ];
    let pod = pod::template("overlays/cri-o", "DaemonSet", "prewarm-worker");
    let shipped = Image::build();
    let worker = shipped
        .pod(&pod, &env, |name| (folder(name), None), &[])
        .spawn("the worker in its sandbox");
    cell.present("node").await;
    let pid = child_of(child_of(worker.pid()).await).await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    cell.publish("base", json!({"images": [pushed.by_tag]}))
        .await;
    let outcome = cell.ended("base").await.status.outcome;
    assert_eq!(outcome, Some(Outcome::Succeeded), "{}", worker.log());
    assert_eq!(runtime.pulls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_as_nobody_and_has_what_it_needs_and_no_more() {
    let image = Image::build();
    assert_eq!(image.config["User"], json!("65532:65532"));
    let version = image.call(&["--version"], &[], &[]).run().await;
    assert_eq!(version.code, 0, "{version:?}");
    let expected = format!("prewarm {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.stdout.trim(), expected);
    let programs = fs::read_dir(image.root().join("usr/bin")).unwrap();
    let programs: Vec<_> = programs.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(programs, ["prewarm"]);
    let bundle = fs::read_to_string(image.root().join(BUNDLE)).unwrap();
    let authorities = bundle.matches("-----BEGIN CERTIFICATE-----").count();
    assert!(authorities >= FEWEST_AUTHORITIES, "{authorities}");
    trusts_whom_its_bundle_names(&image).await;
    runs_the_roles_that_are_nobody(&image).await;
}

/// An authority and a certificate of it for 127.0.0.1.
fn certificates(folder: &Path) {
    let write = |name: &str, pem: String| fs::write(folder.join(name), pem).unwrap();
    let (of_authority, of_server) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write(
        "ca.pem",
        authority.self_signed(&of_authority).unwrap().pem(),
    );
    let issuer = Issuer::new(authority, of_authority);
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    write(
        "server.pem",
        server.signed_by(&of_server, &issuer).unwrap().pem(),
    );
    write("server.key", of_server.serialize_pem());
}

async fn trusts_whom_its_bundle_names(image: &Image) {
    let dir = parts::temp_dir();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (path("server.pem"), path("server.key"));
    let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}");
    let nats = NatsServer::start_with(NatsVersion::V2_15, &tls).await;
    let url = format!("tls://127.0.0.1:{}", nats.port());
    let env = [("PREWARM_NATS_URL", url.as_str())];
    let stranger = image.call(&["get", "jobs"], &env, &[]).run().await;
    assert_eq!(stranger.code, 3, "{stranger:?}");
    assert!(stranger.stderr.contains("TLS"), "{stranger:?}");
    let bundle = Volume::file(&dir.path().join("ca.pem"), &format!("/{BUNDLE}"));
    let known = image.call(&["get", "jobs"], &env, &[bundle]).run().await;
    // The broker is reached; it has no streams yet.
    assert!(!known.stderr.contains("TLS"), "{known:?}");
    assert!(known.stderr.contains("dispatcher"), "{known:?}");
}

/// As their pods run them, with what the overlay has for them.
async fn runs_the_roles_that_are_nobody(image: &Image) {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let (url, dir) = (nats.url(), parts::temp_dir());
    let volume = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        (folder, None)
    };
    let env = [
        ("PREWARM_NATS_URL", url.as_str()),
        ("PREWARM_METRICS_LISTEN", "off"),
        ("PREWARM_LISTEN", "127.0.0.1:0"),
    ];
    let sources = include_str!("../../deploy/kubernetes/overlays/webhook/webhook.yaml");
    fs::write(volume("sources").0.join("webhook.yaml"), sources).unwrap();
    // As kubelet leaves a secret's file: for the pod's group (fsGroup), by defaultMode.
    let secret = volume("secrets").0.join("harbor");
    fs::write(&secret, "0123456789abcdef").unwrap();
    std::os::unix::fs::chown(&secret, None, Some(65532)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o440)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();

    let pod = pod::template("overlays/webhook", "Deployment", "prewarm-dispatcher");
    let mut dispatcher = image
        .pod(&pod, &env[..2], volume, &[])
        .spawn("the dispatcher in its sandbox");
    dispatcher.logs("leading", LIMIT).await;
    let pod = pod::template("overlays/webhook", "Deployment", "prewarm-webhook");
    let mut receiver = image
        .pod(&pod, &env, volume, &[])
        .spawn("the receiver in its sandbox");
    receiver.logs("webhooks are taken", LIMIT).await;
}
