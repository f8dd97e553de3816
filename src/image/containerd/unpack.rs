//! Layers into snapshots, in order, by containerd itself: prepare, apply, commit, under the names
//! that CRI looks for.

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Kind, PrepareSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::{Descriptor as WireDescriptor, Mount};

use super::Shared;
use super::client::Client;
use super::labels::{self, Labels};
use super::lease::{Lease, UNPACK_KEY_PREFIX};
use super::meter::LayerMeter;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::image::registry::manifest::{Descriptor, ImageConfig, Manifest};

/// How often a snapshot is prepared that is said to exist and then does not, because a collection
/// came in between.
const MAX_PREPARES: u32 = 3;

/// Unpacks the layers that have no snapshot of this snapshotter yet, and has the configuration keep the result. Tells of
/// each layer, by its number, once it is unpacked.
pub(super) async fn unpack(
    shared: &Shared,
    lease: &Lease<'_>,
    (snapshotter, meter): (&str, &impl Fn(usize) -> LayerMeter),
    manifest: &Manifest,
    config: &ImageConfig,
) -> Result<(), Failure> {
    let client = &lease.client;
    let chain = config.chain_ids();
    let diff_ids = &config.rootfs.diff_ids;
    let mut parent = None;
    let layers = manifest.layers.iter().enumerate();
    for (((number, layer), diff_id), chain_id) in layers.zip(diff_ids).zip(&chain) {
        let step = Step {
            shared,
            lease,
            snapshotter,
            layer,
            diff_id,
            chain_id,
            parent,
        };
        let meter = meter(number);
        if step.run().await? {
            meter.set(0);
        }
        meter.set(layer.size);
        parent = Some(chain_id);
    }
    keep(client, snapshotter, manifest, &chain).await
}

/// Has the configuration keep the topmost snapshot.
pub(super) async fn keep(
    client: &Client,
    snapshotter: &str,
    manifest: &Manifest,
    chain: &[Digest],
) -> Result<(), Failure> {
    let labels = chain
        .last()
        .map(|top| (labels::gc_snapshot(snapshotter), top.to_string()));
    client
        .label(&manifest.config.digest, labels.into_iter().collect())
        .await
}

/// A key for a snapshot that is being unpacked, as containerd writes them.
pub(super) fn unpack_key(name: &str) -> String {
    format!("{UNPACK_KEY_PREFIX}{:016x} {name}", rand::random::<u64>())
}

/// Whether a snapshot of this name is there and committed.
pub(super) async fn has_snapshot(
    client: &Client,
    snapshotter: &str,
    chain_id: &Digest,
) -> Result<bool, Failure> {
    let request = client.request(StatSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: chain_id.to_string(),
    });
    match Client::call(client.snapshots().stat(request)).await {
        Ok(answer) => Ok(answer
            .info
            .is_some_and(|info| info.kind == Kind::Committed as i32)),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => {
            Err(client.failure(format_args!("looking for snapshot {chain_id}"), &status))
        }
    }
}

/// One layer on top of its parent.
pub(super) struct Step<'a> {
    pub(super) shared: &'a Shared,
    pub(super) lease: &'a Lease<'a>,
    pub(super) snapshotter: &'a str,
    pub(super) layer: &'a Descriptor,
    pub(super) diff_id: &'a Digest,
    pub(super) chain_id: &'a Digest,
    pub(super) parent: Option<&'a Digest>,
}

impl Step<'_> {
    /// Says whether the snapshot was not there before.
    async fn run(&self) -> Result<bool, Failure> {
        let _turn = self.shared.snapshots.turn(self.chain_id, |_| {}).await;
        self.fill(async |mounts| self.apply(mounts).await).await
    }

    /// Makes the snapshot out of what `fill` puts into its mounts, or finds it there. Others have to
    /// be kept from doing the same meanwhile. Says whether it was not there.
    pub(super) async fn fill(
        &self,
        fill: impl AsyncFnOnce(Vec<Mount>) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let key = unpack_key(self.chain_id.as_str());
        self.lease.unpacking(self.snapshotter, &key);
        let Some(mounts) = self.prepare(&key).await? else {
            self.lease.committed(self.snapshotter, &key);
            return Ok(false);
        };
        let done = match fill(mounts).await {
            Ok(()) => self.commit(&key).await,
            Err(failure) => Err(failure),
        };
        if done.is_err() {
            self.lease.remove(self.snapshotter, &key).await;
        }
        done.map(|()| true)
    }

    /// `None` when the snapshot is there already; it is held by the lease from now on.
    async fn prepare(&self, key: &str) -> Result<Option<Vec<Mount>>, Failure> {
        let client = &self.lease.client;
        for _ in 0..MAX_PREPARES {
            let request = client.request(PrepareSnapshotRequest {
                snapshotter: self.snapshotter.to_owned(),
                key: key.to_owned(),
                parent: self.parent.map(Digest::to_string).unwrap_or_default(),
                labels: self.snapshot_labels(),
            });
            match Client::call(client.snapshots().prepare(request)).await {
                Ok(answer) => return Ok(Some(answer.mounts)),
                Err(status) if status.code() == Code::AlreadyExists => {
                    if has_snapshot(client, self.snapshotter, self.chain_id).await? {
                        return Ok(None);
                    }
                }
                Err(status) => {
                    let what =
                        format_args!("preparing the snapshot for layer {}", self.layer.digest);
                    return Err(client.failure(what, &status));
                }
            }
        }
        Err(Failure::new(
            FailureKind::RuntimeUnavailable,
            format!("snapshot {} comes and goes", self.chain_id),
        ))
    }

    /// Has containerd inflate the layer into the snapshot, and compares what it unpacked with what
    /// the configuration says.
    async fn apply(&self, mounts: Vec<Mount>) -> Result<(), Failure> {
        let client = &self.lease.client;
        let request = client.request(ApplyRequest {
            diff: Some(WireDescriptor {
                media_type: self.layer.media_type.clone(),
                digest: self.layer.digest.to_string(),
                size: i64::try_from(self.layer.size).unwrap_or(i64::MAX),
                annotations: self.layer.annotations.clone().into_iter().collect(),
            }),
            mounts,
            ..ApplyRequest::default()
        });
        // As long as it takes: the attempt as a whole has a limit.
        let answer = client.diff().apply(request).await.map_err(|status| {
            client.failure(
                format_args!("unpacking layer {}", self.layer.digest),
                &status,
            )
        })?;
        let applied = answer
            .into_inner()
            .applied
            .map(|applied| applied.digest)
            .unwrap_or_default();
        if applied == self.diff_id.as_str() {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::DigestMismatch,
            format!(
                "layer {} unpacks to {applied}, while the image's configuration says {}",
                self.layer.digest, self.diff_id
            ),
        ))
    }

    async fn commit(&self, key: &str) -> Result<(), Failure> {
        let client = &self.lease.client;
        let request = client.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: self.chain_id.to_string(),
            key: key.to_owned(),
            labels: self.snapshot_labels(),
        });
        match Client::call(client.snapshots().commit(request)).await {
            Ok(()) => self.lease.committed(self.snapshotter, key),
            // Somebody else's pull was faster.
            Err(status) if status.code() == Code::AlreadyExists => {
                self.lease.remove(self.snapshotter, key).await
            }
            Err(status) => {
                let what = format_args!("committing the snapshot of layer {}", self.layer.digest);
                return Err(client.failure(what, &status));
            }
        }
        // Only now is it known to be true. Content that is not committed yet gets the label with its commit.
        let uncompressed = (labels::UNCOMPRESSED.to_owned(), self.diff_id.to_string());
        let Some(known) = client.info(&self.layer.digest).await? else {
            return Ok(());
        };
        if known.labels.get(labels::UNCOMPRESSED) == Some(&uncompressed.1) {
            return Ok(());
        }
        client
            .label(&self.layer.digest, Labels::from([uncompressed]))
            .await
    }

    fn snapshot_labels(&self) -> Labels {
        Labels::from([(labels::SNAPSHOT_REF.to_owned(), self.chain_id.to_string())])
    }
}
