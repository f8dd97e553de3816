//! What a node really has, by its containerd, its disk, and the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, Lease, ListImagesRequest, ListRequest, ListStatusesRequest,
    content_client::ContentClient,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::with_namespace;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::stage::{RUNNABLE, Stage};
use crate::support::containerd::{Containerd, NAMESPACE};
use crate::support::images::http;
use crate::support::run_container::{chain_id, run_container};

/// The media type of all manifests here; the registry answers no other with them.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What was looked at, for the report.
#[derive(Default)]
pub(crate) struct Looked {
    pub(crate) images: u64,
    pub(crate) blobs: u64,
    pub(crate) containers: u64,
    /// Leases of attempts that died, of images that nobody pulled since: they end by themselves.
    pub(crate) leases_left: u64,
}

/// A node's images: names and what they mean.
type Images = BTreeMap<String, String>;

/// Everything that is not as it should be on the nodes. `warm` is what nodes said they have.
pub(crate) async fn broken(
    stage: &Stage,
    warm: &[(String, String, String, i64)],
    looked: &mut Looked,
) -> Vec<String> {
    let mut broken = Vec::new();
    for (node, daemon) in stage.daemons() {
        let emptied = stage.emptied.get(node).copied().unwrap_or(0);
        let of_node: Vec<_> = warm
            .iter()
            .filter(|(of, _, _, stored)| of == node && *stored > emptied)
            .collect();
        let mut found = broken_on(stage, daemon, &of_node, looked).await;
        broken.extend(found.drain(..).map(|what| format!("{node}: {what}")));
    }
    broken
}

async fn broken_on(
    stage: &Stage,
    daemon: &Containerd,
    warm: &[&(String, String, String, i64)],
    looked: &mut Looked,
) -> Vec<String> {
    let channel = daemon.channel().await;
    let images = images(&channel).await;
    let mut broken = Vec::new();
    for (_, image, digest, _) in warm {
        let (repository, _) = image.rsplit_once(':').expect("an image with a tag");
        for name in [image.clone(), format!("{repository}@{digest}")] {
            if !images.contains_key(&name) {
                broken.push(format!("{name} is said to be warm and has no name"));
            }
        }
    }
    let store = daemon
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let snapshots = snapshots(&channel, Kind::Committed).await;
    let targets: BTreeSet<&String> = images.values().collect();
    for target in targets {
        looked.images += 1;
        if let Err(problem) = complete(&store, target, &snapshots, looked) {
            broken.push(format!("image {target}: {problem}"));
        }
        if let Err(problem) = same_as_registry(stage, &store, target, &images).await {
            broken.push(format!("image {target}: {problem}"));
        }
    }
    broken.extend(unlisted(daemon, &images).await);
    let runnable = format!("{}/{}:{}", stage.registry, RUNNABLE.0, RUNNABLE.1);
    if images.contains_key(&runnable) {
        looked.containers += 1;
        let printed = run_container(daemon, &runnable, &["/bin/echo", "warm"]).await;
        if printed != "warm\n" {
            broken.push(format!("a container of {runnable} said {printed:?}"));
        }
    }
    broken.extend(left_over(&channel, &images, warm, looked).await);
    broken
}

async fn images(channel: &Channel) -> Images {
    let request = with_namespace!(ListImagesRequest { filters: vec![] }, NAMESPACE);
    let images = ImagesClient::new(channel.clone())
        .list(request)
        .await
        .expect("images");
    let images = images.into_inner().images.into_iter();
    images
        .map(|image| (image.name, image.target.expect("a target").digest))
        .collect()
}

/// Reads a blob from the disk, and says whether it is what its name says.
fn blob(store: &Path, digest: &str, looked: &mut Looked) -> Result<Vec<u8>, String> {
    let hex = digest.strip_prefix("sha256:").ok_or("no sha256")?;
    let path: PathBuf = store.join(hex);
    let bytes = std::fs::read(&path).map_err(|error| format!("blob {digest}: {error}"))?;
    looked.blobs += 1;
    let found: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == hex {
        Ok(bytes)
    } else {
        Err(format!("blob {digest} is {found}"))
    }
}

/// Whether all of an image is there and unpacked. All images of a run are of one platform.
fn complete(
    store: &Path,
    target: &str,
    snapshots: &BTreeSet<String>,
    looked: &mut Looked,
) -> Result<(), String> {
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let manifest = json(blob(store, target, looked)?)?;
    let config = json(blob(store, &text(&manifest["config"]["digest"]), looked)?)?;
    for layer in manifest["layers"].as_array().ok_or("no layers")? {
        blob(store, &text(&layer["digest"]), looked)?;
    }
    let diff_ids = config["rootfs"]["diff_ids"]
        .as_array()
        .ok_or("no diff ids")?;
    let chain = chain_id(&diff_ids.iter().map(text).collect::<Vec<_>>());
    if snapshots.contains(&chain) {
        Ok(())
    } else {
        Err(format!("it is not unpacked: there is no snapshot {chain}"))
    }
}

/// Whether the manifest is the one that the registry has under its digest.
async fn same_as_registry(
    stage: &Stage,
    store: &Path,
    target: &str,
    images: &Images,
) -> Result<(), String> {
    let prefix = format!("{}/", stage.registry);
    let repository = images
        .iter()
        .filter(|(_, digest)| *digest == target)
        .find_map(|(name, _)| {
            Some(
                name.strip_prefix(&prefix)?
                    .split(['@', ':'])
                    .next()?
                    .to_owned(),
            )
        })
        .ok_or("it has no name of the registry's")?;
    let url = format!(
        "http://{}/v2/{repository}/manifests/{target}",
        stage.registry_direct
    );
    let asked = http().get(url).header("accept", MANIFEST).send().await;
    let bytes = asked.map_err(|error| error.to_string())?.bytes().await;
    let bytes = bytes.map_err(|error| error.to_string())?;
    let hex = target.strip_prefix("sha256:").ok_or("no sha256")?;
    let here = std::fs::read(store.join(hex)).map_err(|error| error.to_string())?;
    if here == bytes {
        Ok(())
    } else {
        Err("the registry has another manifest".to_owned())
    }
}

/// Tags that the CRI plugin, and so kubelet, does not see.
async fn unlisted(daemon: &Containerd, images: &Images) -> Vec<String> {
    let cri = daemon.cri().await;
    let listed = cri.list_images().await.expect("the images that CRI lists");
    let tags: BTreeSet<&String> = listed.iter().flat_map(|image| &image.repo_tags).collect();
    let is_tag = |name: &&String| !name.contains('@') && !name.starts_with("sha256:");
    let missing = images
        .keys()
        .filter(is_tag)
        .filter(|name| !tags.contains(name));
    missing
        .map(|name| format!("CRI does not list {name}"))
        .collect()
}

async fn snapshots(channel: &Channel, kind: Kind) -> BTreeSet<String> {
    let request = ListSnapshotsRequest {
        snapshotter: "overlayfs".to_owned(),
        filters: vec![],
    };
    let mut client = SnapshotsClient::new(channel.clone());
    let pages = client
        .list(with_namespace!(request, NAMESPACE))
        .await
        .expect("snapshots");
    let mut pages = pages.into_inner();
    let mut found = BTreeSet::new();
    while let Some(page) = pages.message().await.expect("snapshots") {
        let of_kind = page
            .info
            .into_iter()
            .filter(|info| info.kind == kind as i32);
        found.extend(of_kind.map(|info| info.name));
    }
    found
}

async fn leases(channel: &Channel) -> Vec<Lease> {
    let request = with_namespace!(ListRequest { filters: vec![] }, NAMESPACE);
    let leases = LeasesClient::new(channel.clone())
        .list(request)
        .await
        .expect("leases");
    leases.into_inner().leases
}

/// Has containerd collect what nothing holds: the end of a lease is the only way to ask for it.
async fn collect(channel: &Channel) {
    let mut client = LeasesClient::new(channel.clone());
    let id = "collect".to_owned();
    let create = CreateRequest {
        id: id.clone(),
        ..CreateRequest::default()
    };
    client
        .create(with_namespace!(create, NAMESPACE))
        .await
        .expect("a lease");
    let delete = DeleteRequest { id, sync: true };
    client
        .delete(with_namespace!(delete, NAMESPACE))
        .await
        .expect("the end of a lease");
}

/// What attempts left: nothing but leases that end by themselves, of images that were not pulled since.
async fn left_over(
    channel: &Channel,
    images: &Images,
    warm: &[&(String, String, String, i64)],
    looked: &mut Looked,
) -> Vec<String> {
    let mut broken = Vec::new();
    let left = leases(channel).await;
    for lease in &left {
        let made = lease.created_at.as_ref().map_or(0, |at| at.seconds);
        let target = lease
            .labels
            .get("dev.prewarm/target")
            .cloned()
            .unwrap_or_default();
        let pulled_since = warm
            .iter()
            .any(|(.., digest, stored)| *digest == target && *stored > made);
        if !lease.labels.contains_key("containerd.io/gc.expire") {
            broken.push(format!("lease {} never ends: {:?}", lease.id, lease.labels));
        } else if pulled_since && images.values().any(|digest| *digest == target) {
            broken.push(format!(
                "lease {} is left of {target}, which was pulled since",
                lease.id
            ));
        }
    }
    looked.leases_left += u64::try_from(left.len()).unwrap();
    if !left.is_empty() {
        return broken;
    }
    collect(channel).await;
    let active = snapshots(channel, Kind::Active).await;
    if !active.is_empty() {
        broken.push(format!(
            "snapshots are left that are being unpacked: {active:?}"
        ));
    }
    let request = with_namespace!(ListStatusesRequest { filters: vec![] }, NAMESPACE);
    let ingests = ContentClient::new(channel.clone())
        .list_statuses(request)
        .await
        .expect("ingests");
    let ingests = ingests.into_inner().statuses;
    if !ingests.is_empty() {
        broken.push(format!("half-written blobs are left: {ingests:?}"));
    }
    broken
}
