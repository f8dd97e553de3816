//! Our root file systems are containerd's own, entry by entry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use prewarm::image::Engine;
use sha2::{Digest as _, Sha256};

use super::nasty;
use super::node::{Node, request};
use super::support;
use support::containerd::{ContainerdVersion, NAMESPACE};
use support::images::{Compression, Layer, Recipe, busybox, generated};
use support::parts;
use support::registry::Registry;
use support::run_container::{chain_id, diff_ids};

/// The directories of an image's layers, the lowest first.
async fn layers(node: &Node, name: &str) -> Vec<PathBuf> {
    let channel = node.daemon.channel().await;
    let parent = chain_id(&diff_ids(&channel, name).await);
    let mut snapshots = SnapshotsClient::new(channel);
    let key = "look".to_owned();
    let view = ViewSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        key: key.clone(),
        parent,
        // Else a garbage collection may take it at once.
        labels: [("containerd.io/gc.root".to_owned(), "test".to_owned())].into(),
    };
    let mounts = snapshots
        .view(with_namespace!(view, NAMESPACE))
        .await
        .unwrap()
        .into_inner()
        .mounts;
    let remove = RemoveSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        key,
    };
    snapshots
        .remove(with_namespace!(remove, NAMESPACE))
        .await
        .unwrap();
    let mount = &mounts[0];
    if mount.r#type == "bind" {
        return vec![PathBuf::from(&mount.source)];
    }
    let lowers = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))
        .unwrap();
    lowers.rsplit(':').map(PathBuf::from).collect()
}

/// What can be seen of every entry below a directory, the directory itself included.
///
/// The time of a directory without an entry of its own in the archive, and of a whiteout, is that of
/// its unpacking, so it is left out; so is the time of access.
pub fn entries(root: &Path, implicit: &BTreeSet<Vec<u8>>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let meta = std::fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let shown = path.escape_ascii().to_string();
        let content = if kind.is_dir() {
            let children = std::fs::read_dir(&full).unwrap();
            let mut names: Vec<Vec<u8>> = children
                .map(|child| child.unwrap().file_name().as_bytes().to_vec())
                .collect();
            // The first of several links is then the same one everywhere.
            names.sort();
            pending.extend(names.into_iter().rev().map(|name| match path.is_empty() {
                true => name,
                false => [&path, &b"/"[..], &name].concat(),
            }));
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("-> {:?}", std::fs::read_link(&full).unwrap())
        } else if kind.is_file() {
            format!(
                "{} {:x?}",
                meta.len(),
                Sha256::digest(std::fs::read(&full).unwrap())
            )
        } else {
            format!("{} {}", kind.is_block_device(), meta.rdev())
        };
        let is_whiteout = kind.is_char_device() && meta.rdev() == 0;
        let is_unsaid = kind.is_dir() && (path.is_empty() || implicit.contains(&path));
        let time = match is_whiteout || is_unsaid {
            true => String::new(),
            false => format!("{}.{}", meta.mtime(), meta.mtime_nsec()),
        };
        let link = match kind.is_dir() || meta.nlink() == 1 {
            true => String::new(),
            false => {
                let first = inodes.entry(meta.ino()).or_insert_with(|| shown.clone());
                format!("same as {first}, {} in all", meta.nlink())
            }
        };
        let line = format!(
            "{:o} {}:{} {time} {content} {link} {:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            xattrs(&full)
        );
        found.insert(shown, line);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let key = OsStr::from_bytes(name);
            let length = rustix::fs::lgetxattr(path, key, &mut value[..]).unwrap();
            value.truncate(length);
            (name.escape_ascii().to_string(), value)
        })
        .collect()
}

/// Paths of directories that the archive has no entry for.
fn implicit(dir: &Path, described: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        for child in std::fs::read_dir(dir.join(OsStr::from_bytes(&path))).unwrap() {
            let child = child.unwrap();
            if child.file_type().unwrap().is_dir() {
                let name = child.file_name();
                let path = match path.is_empty() {
                    true => name.as_bytes().to_vec(),
                    false => [&path, &b"/"[..], name.as_bytes()].concat(),
                };
                if !described.contains(&path) {
                    found.insert(path.clone());
                }
                pending.push(path);
            }
        }
    }
    found
}

/// Names of an archive's directory entries, without slashes at either end.
fn described(tar: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map_while(Result::ok);
    entries
        .filter(|entry| entry.header().entry_type().is_dir())
        .map(|entry| {
            let path = entry.path_bytes().into_owned();
            let parts: Vec<&[u8]> = path
                .split(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."))
                .collect();
            parts.join(&b'/')
        })
        .collect()
}

/// Names and images to compare.
fn corpus() -> Vec<(String, Recipe)> {
    let mut corpus: Vec<(String, Recipe)> = nasty::all()
        .into_iter()
        .flat_map(|image| {
            let packed = |compression| {
                let layers = image.layers.iter().cloned();
                let layers = layers.map(|tar| Layer::archive(tar).packed_as(compression));
                let recipe = Recipe::new(layers.collect());
                (
                    format!("{}-{compression:?}", image.name).to_lowercase(),
                    recipe,
                )
            };
            [packed(Compression::Gzip), packed(Compression::Zstd)]
        })
        .collect();
    corpus.push((
        "busybox".to_owned(),
        busybox(&parts::program("busybox", "busybox")),
    ));
    corpus.push(("generated".to_owned(), generated(1, 3, 3_000_000)));
    corpus.push(("debian-packages".to_owned(), debian_packages()));
    corpus
}

/// Real packages as an image's layers, each as another tool would write it.
fn debian_packages() -> Recipe {
    let layer = |(part, format): (&str, &str)| {
        let output = std::process::Command::new("tar")
            .args(["--create", "--numeric-owner", format])
            .arg("--directory")
            .arg(parts::dir().join(part))
            .arg(".")
            .output()
            .expect("tar to start");
        assert!(output.status.success(), "{output:?}");
        Layer::archive(output.stdout)
    };
    let formats = ["--format=gnu", "--format=posix", "--format=gnu"];
    let parts = ["busybox", "runc", "buildah"];
    Recipe::new(parts.into_iter().zip(formats).map(layer).collect())
}

async fn same_root_file_systems(version: ContainerdVersion) {
    let registry = Registry::start().await;
    let (ours, theirs) = both(version, &registry).await;
    for (name, recipe) in corpus() {
        let archives: Vec<_> = recipe
            .layers
            .iter()
            .map(|layer| layer.tar().to_vec())
            .collect();
        let pushed = registry.push(&name, "1", &recipe.build()).await;
        pulled_alike([&ours, &theirs], &pushed.by_tag, &archives).await;
    }
}

/// A node that prewarm pulls on, and one that containerd does.
pub async fn both(version: ContainerdVersion, registry: &Registry) -> (Node, Node) {
    let (ours, theirs) = tokio::join!(Node::start(version), Node::start(version));
    for node in [&ours, &theirs] {
        node.daemon.allow_registry(&registry.addr());
    }
    (ours, theirs)
}

/// Pulls on both nodes, and holds each layer of the one against that of the other.
pub async fn pulled_alike([ours, theirs]: [&Node; 2], image: &str, archives: &[Vec<u8>]) {
    let began = std::time::Instant::now();
    let report = ours.pull(&request(image)).await.unwrap();
    assert_eq!(report.engine, Some(Engine::Native), "{image}");
    let our_time = began.elapsed();
    theirs.daemon.cri().await.pull_image(image).await.unwrap();
    let their_time = began.elapsed() - our_time;
    println!("{image}: ours {our_time:?}, containerd's {their_time:?}");
    let (our_layers, their_layers) = (layers(ours, image).await, layers(theirs, image).await);
    assert_eq!(our_layers.len(), archives.len());
    for (number, tar) in archives.iter().enumerate() {
        let implicit = implicit(&their_layers[number], &described(tar));
        let our = entries(&our_layers[number], &implicit);
        let their = entries(&their_layers[number], &implicit);
        assert!(!their.is_empty());
        let names: BTreeSet<_> = our.keys().chain(their.keys()).collect();
        let differences: Vec<_> = names
            .into_iter()
            .filter(|name| our.get(*name) != their.get(*name))
            .map(|name| {
                format!(
                    "{name}\n  ours   {:?}\n  theirs {:?}",
                    our.get(name),
                    their.get(name)
                )
            })
            .collect();
        assert!(
            differences.is_empty(),
            "{image}, layer {number}, {:?}:\n{}",
            ours.daemon.version(),
            differences.join("\n")
        );
    }
}

#[tokio::test]
async fn root_file_systems_are_those_of_containerd_1_6() {
    same_root_file_systems(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn root_file_systems_are_those_of_containerd_1_7() {
    same_root_file_systems(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn root_file_systems_are_those_of_containerd_2_1() {
    same_root_file_systems(ContainerdVersion::V2_1).await;
}
