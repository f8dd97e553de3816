//! Is the image there, all of it? A record alone proves nothing: content may have been collected,
//! a pull may have crashed, another tool may have left out what CRI needs.

use futures::StreamExt as _;
use futures::TryStreamExt as _;

use super::Shared;
use super::labels::{self, GC_LAYER_PREFIX};
use super::names;
use super::plan::read_local;
use super::snapshotters::Snapshotters;
use super::unpack::has_snapshot;
use crate::domain::failure::Failure;
use crate::domain::image::Digest;
use crate::image::PullRequest;
use crate::image::registry::manifest::{Descriptor, ImageConfig, Manifest};

/// Most calls at once while looking.
const LOOKS_AT_ONCE: usize = 8;
/// Largest image configuration that is read, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// An image that is wholly there.
pub(super) struct Present {
    /// What its names point at.
    pub(super) digest: Digest,
    /// Compressed bytes of it.
    pub(super) bytes: u64,
    /// All its names.
    pub(super) names: Vec<String>,
}

/// Finds what the reference's name points at on this node; `None` when there is no such name.
pub(super) async fn named(
    shared: &Shared,
    request: &PullRequest,
) -> Result<Option<(Digest, String)>, Failure> {
    let name = names::lookup(&request.image);
    let record = names::get(&shared.client, &name).await?;
    Ok(record
        .as_ref()
        .and_then(names::target_of)
        .map(|(digest, media_type)| (digest, media_type.to_owned())))
}

/// Looks whether the image with this target is complete: content, snapshots, names, labels.
pub(super) async fn find(
    shared: &Shared,
    request: &PullRequest,
    snapshotters: &Snapshotters,
    (target, media_type): (&Digest, &str),
) -> Result<Option<Present>, Failure> {
    let client = &shared.client;
    let Some(local) = read_local(shared, request, target, media_type).await? else {
        return Ok(None);
    };
    let manifest = &local.manifest;
    let is_image = manifest.is_image();
    let config_name = is_image.then_some(&manifest.config.digest);
    let wanted = names::labels(request);
    let names = names::all(&request.image, target, config_name);
    for name in &names {
        let record = names::get(client, name).await?;
        if !names::is_complete(record.as_ref(), target, &wanted) {
            return Ok(None);
        }
    }
    let unpacked = is_image && request.unpack;
    if unpacked && !is_unpacked(shared, request, snapshotters, manifest).await? {
        return Ok(None);
    }
    let Some(info) = client.info(&local.manifest_digest).await? else {
        return Ok(None);
    };
    // Where the node discards layers once unpacked, the manifest does not keep them, and the snapshots
    // are all there is to be.
    let keeps_layers = info
        .labels
        .keys()
        .any(|key| key.starts_with(GC_LAYER_PREFIX));
    let discards = unpacked && !keeps_layers;
    let blobs = manifest
        .layers
        .iter()
        .filter(|_| !discards)
        .chain([&manifest.config]);
    if !missing(shared, blobs).await?.is_empty() {
        return Ok(None);
    }
    let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
    Ok(Some(Present {
        digest: target.clone(),
        bytes: layers + manifest.config.size,
        names,
    }))
}

/// The blobs that the content store does not have in their full size.
pub(super) async fn missing<'a>(
    shared: &Shared,
    blobs: impl Iterator<Item = &'a Descriptor>,
) -> Result<Vec<&'a Descriptor>, Failure> {
    let looks: Vec<_> = blobs.map(|blob| is_missing(shared, blob)).collect();
    futures::stream::iter(looks)
        .buffered(LOOKS_AT_ONCE)
        .try_filter_map(futures::future::ok)
        .try_collect()
        .await
}

async fn is_missing<'a>(
    shared: &Shared,
    blob: &'a Descriptor,
) -> Result<Option<&'a Descriptor>, Failure> {
    let info = shared.client.info(&blob.digest).await?;
    let is_there = info.is_some_and(|info| u64::try_from(info.size) == Ok(blob.size));
    Ok((!is_there).then_some(blob))
}

/// Whether the snapshots are there for every snapshotter, and the configuration keeps them.
async fn is_unpacked(
    shared: &Shared,
    request: &PullRequest,
    snapshotters: &Snapshotters,
    manifest: &Manifest,
) -> Result<bool, Failure> {
    let client = &shared.client;
    let digest = &manifest.config.digest;
    let Some(bytes) = client.read(digest, MAX_CONFIG_BYTES).await? else {
        return Ok(false);
    };
    let platform = super::plan::platform(request);
    let chain = ImageConfig::parse(&bytes, manifest, &platform)?.chain_ids();
    let Some(top) = chain.last() else {
        return Ok(true);
    };
    let Some(info) = client.info(digest).await? else {
        return Ok(false);
    };
    for snapshotter in snapshotters.names() {
        let kept = info.labels.get(&labels::gc_snapshot(snapshotter));
        let kept = kept.map(String::as_str) == Some(top.as_str());
        if !kept || !has_snapshot(client, snapshotter, top).await? {
            return Ok(false);
        }
    }
    Ok(true)
}
