//! Running a command in a container made from an image in containerd: the proof that the image is usable.
//!
//! It does what a runtime does for a container: a snapshot on top of the image's own, mounted as the root of a bundle,
//! and runc (Open Container Initiative runtime specification 1.0). runc runs without a shim, so nothing else is needed.

use std::path::Path;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    GetImageRequest, ReadContentRequest, content_client::ContentClient,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::types::Mount;
use containerd_client::with_namespace;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::containerd::{Containerd, NAMESPACE};
use super::{images, parts};

const SNAPSHOTTER: &str = "overlayfs";

/// What `command` prints in a container of the image called `name` in `containerd`.
///
/// # Panics
/// When the image, its content or its snapshot is not there, or the command fails.
pub async fn run_container(containerd: &Containerd, name: &str, command: &[&str]) -> String {
    let channel = containerd.channel().await;
    let parent = chain_id(&diff_ids(&channel, name).await);
    let bundle = tempfile::tempdir_in(containerd.scratch()).expect("a folder for a bundle");
    let id = bundle
        .path()
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a plain name")
        .to_owned();
    let rootfs = bundle.path().join("rootfs");
    std::fs::create_dir(&rootfs).expect("a folder for a root file system");
    std::fs::write(bundle.path().join("config.json"), spec(command).to_string())
        .expect("a bundle's config.json");

    let mut snapshots = SnapshotsClient::new(channel);
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: id.clone(),
        parent: parent.clone(),
        // Else the next garbage collection takes it while the container runs.
        labels: [("containerd.io/gc.root".to_owned(), "test".to_owned())].into(),
    };
    let mounts = snapshots
        .prepare(with_namespace!(prepare, NAMESPACE))
        .await
        .unwrap_or_else(|status| panic!("{name} is not unpacked: no snapshot {parent}: {status}"))
        .into_inner()
        .mounts;
    mount(&mounts, &rootfs).await;

    let runc = tokio::process::Command::new(parts::program("runc", "runc"))
        .arg("--root")
        .arg(bundle.path().join("runc"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .output()
        .await
        .expect("runc to start");
    run("umount", &[rootfs.as_os_str()]).await;
    let remove = RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: id,
    };
    snapshots
        .remove(with_namespace!(remove, NAMESPACE))
        .await
        .expect("the container's snapshot to go");

    let stderr = String::from_utf8_lossy(&runc.stderr);
    assert!(
        runc.status.success(),
        "{command:?} in a container of {name}: {}: {stderr}",
        runc.status
    );
    String::from_utf8_lossy(&runc.stdout).into_owned()
}

/// The chain id of layers (OCI image specification, "Layer ChainID"): the name of their snapshot.
pub fn chain_id(diff_ids: &[String]) -> String {
    let (first, rest) = diff_ids.split_first().expect("an image has layers");
    rest.iter().fold(first.clone(), |chain, diff_id| {
        let hex: String = Sha256::digest(format!("{chain} {diff_id}"))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256:{hex}")
    })
}

/// The digests of the image's unpacked layers, of this machine's platform if it has several.
pub async fn diff_ids(channel: &Channel, name: &str) -> Vec<String> {
    let get = GetImageRequest {
        name: name.to_owned(),
    };
    let image = ImagesClient::new(channel.clone())
        .get(with_namespace!(get, NAMESPACE))
        .await
        .unwrap_or_else(|status| panic!("containerd has no image {name}: {status}"));
    let target = image
        .into_inner()
        .image
        .and_then(|image| image.target)
        .expect("an image has a target");
    let mut manifest = read_json(channel, &target.digest).await;
    if let Some(manifests) = manifest["manifests"].as_array() {
        let host = images::host_platform();
        let architecture = host
            .split('/')
            .nth(1)
            .expect("a platform has an architecture");
        let ours = manifests
            .iter()
            .find(|entry| entry["platform"]["architecture"] == architecture);
        let digest = ours.unwrap_or_else(|| panic!("{name} has no manifest for {host}"))["digest"]
            .as_str()
            .unwrap();
        manifest = read_json(channel, digest).await;
    }
    let config = read_json(
        channel,
        manifest["config"]["digest"]
            .as_str()
            .expect("a manifest has a config"),
    )
    .await;
    let ids = config["rootfs"]["diff_ids"]
        .as_array()
        .expect("a config has diff_ids");
    ids.iter()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect()
}

/// A blob of the content store, as JSON.
async fn read_json(channel: &Channel, digest: &str) -> Value {
    let read = ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    };
    let mut stream = ContentClient::new(channel.clone())
        .read(with_namespace!(read, NAMESPACE))
        .await
        .unwrap_or_else(|status| panic!("{digest} is not in the content store: {status}"))
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.expect("content") {
        bytes.extend(part.data);
    }
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Mounts as containerd does (`core/mount/mount_linux.go`, `compactLowerdirOption`): the names of many layers have no room
/// in the page that mount(2) takes, so that they are told from the directory that all of them are in.
async fn mount(mounts: &[Mount], target: &Path) {
    for mount in mounts {
        let sources = mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("upperdir="))
            .and_then(|upper| Path::new(upper).parent()?.parent());
        let options = mount.options.iter().map(|option| match sources {
            Some(dir) if option.starts_with("lowerdir=") => {
                option.replace(&format!("{}/", dir.display()), "")
            }
            _ => option.clone(),
        });
        let options = options.collect::<Vec<_>>().join(",");
        let kind = if mount.r#type == "bind" {
            "none"
        } else {
            &mount.r#type
        };
        let args = ["-t", kind, "-o", &options, &mount.source].map(std::ffi::OsStr::new);
        let args = [&args[..], &[target.as_os_str()]].concat();
        run_in(sources.unwrap_or(Path::new("/")), "mount", &args).await;
    }
}

async fn run(program: &str, args: &[&std::ffi::OsStr]) {
    run_in(Path::new("/"), program, args).await;
}

async fn run_in(dir: &Path, program: &str, args: &[&std::ffi::OsStr]) {
    let output = tokio::process::Command::new(program)
        .args(args)
        .current_dir(dir)
        // The newer calls take no more than 256 bytes of an option.
        .env("LIBMOUNT_FORCE_MOUNT2", "always")
        .output()
        .await
        .expect("a program to start");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The least that runc needs: namespaces of its own, no network, no capabilities, no terminal.
fn spec(command: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
        ]},
    })
}
