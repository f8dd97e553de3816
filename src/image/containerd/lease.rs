//! The lease that holds what a pull makes until the image has a name.
//!
//! containerd cannot prolong a lease. So a lease is made for longer than any attempt takes; what a
//! failed attempt leaves for the next one is moved to a lease that ends soon; and a pull that succeeds,
//! or finds the image there, ends the leases for the same target that no pull of this process holds,
//! which are those of attempts that crashed, be it after the image had its names. Should a second worker run beside this one, its pull of the same target
//! fails at its next step, since containerd refuses what comes under a lease that is gone, and finds
//! the image there when it is tried again.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest,
};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Code, Status};

use super::client::Client;
use super::labels::{GC_EXPIRE, Labels};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;

/// How long a lease lives that nobody ends: longer than any attempt, as containerd's own pulls do
/// (`client/lease.go`).
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long what a failed attempt downloaded waits for the next one. Attempts are at most an hour
/// apart, which is the longest delay that a registry may ask for.
const RESUME_LIFETIME: Duration = Duration::from_secs(90 * 60);
/// On a lease: the digest of the manifest or index that the pull is for.
const TARGET: &str = "dev.prewarm/target";
/// The beginning of the keys of snapshots that are being unpacked, as containerd writes them.
pub(super) const UNPACK_KEY_PREFIX: &str = "extract-";

/// How a pull ended, as far as its lease is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The image has its names.
    Named,
    /// It does not, but another attempt may go on with what is there.
    Resumable,
    /// It does not, and what is there is of no use.
    GivenUp,
}

/// Ids of the leases that pulls of this process hold.
pub(super) type HeldLeases = Mutex<HashSet<String>>;

/// A lease that exists.
pub(super) struct Lease<'a> {
    held: &'a HeldLeases,
    /// Makes requests under the lease.
    pub(super) client: Client,
    id: String,
    target: Digest,
    /// Snapshots that are being unpacked, by snapshotter and key.
    unpacking: Mutex<BTreeSet<(String, String)>>,
    /// The directory of the scratch snapshot, if there is one.
    scratch: Mutex<Option<PathBuf>>,
}

impl<'a> Lease<'a> {
    pub(super) async fn create(
        client: &Client,
        held: &'a HeldLeases,
        target: &Digest,
    ) -> Result<Self, Failure> {
        let id = new_id();
        lock(held).insert(id.clone());
        if let Err(status) = create(client, &id, target, LIFETIME).await {
            lock(held).remove(&id);
            return Err(client.failure("making a lease", &status));
        }
        let value: MetadataValue<Ascii> = id
            .parse()
            .map_err(|_| Failure::new(FailureKind::Internal, format!("{id:?} is no lease id")))?;
        Ok(Self {
            held,
            client: client.with_lease(value),
            id,
            target: target.clone(),
            unpacking: Mutex::default(),
            scratch: Mutex::default(),
        })
    }

    /// Notes a snapshot that has to be removed unless it is [`committed`](Self::committed).
    pub(super) fn unpacking(&self, snapshotter: &str, key: &str) {
        lock(&self.unpacking).insert((snapshotter.to_owned(), key.to_owned()));
    }

    /// Notes a directory whose content goes with the lease.
    pub(super) fn scratch(&self, dir: PathBuf) {
        lock(&self.scratch).replace(dir);
    }

    /// Notes that there is no such snapshot any more.
    pub(super) fn committed(&self, snapshotter: &str, key: &str) {
        lock(&self.unpacking).remove(&(snapshotter.to_owned(), key.to_owned()));
    }

    /// Removes a snapshot that was being unpacked.
    pub(super) async fn remove(&self, snapshotter: &str, key: &str) {
        let request = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let removed =
            Client::call(self.client.snapshots().remove(self.client.request(request))).await;
        match removed {
            Err(status) if status.code() != Code::NotFound => {
                tracing::warn!(key, %status, "a half-unpacked snapshot is left to garbage collection");
            }
            _ => self.committed(snapshotter, key),
        }
    }

    /// Ends the lease. What goes wrong is only logged: the lease ends by itself in the end.
    pub(super) async fn end(self, ending: Ending) {
        let scratch = lock(&self.scratch).take();
        if let Some(dir) = scratch {
            empty(dir).await;
        }
        let keys = std::mem::take(&mut *lock(&self.unpacking));
        for (snapshotter, key) in keys {
            self.remove(&snapshotter, &key).await;
        }
        let ended = match ending {
            Ending::Named => self.end_all().await,
            Ending::Resumable => self.keep_for_a_while().await,
            // Waits for the collection, so that the disk is free when the failure is told.
            Ending::GivenUp => delete(&self.client, &self.id, true).await,
        };
        if let Err(status) = ended {
            tracing::warn!(lease = self.id, %status, "a lease was not ended; it ends by itself");
        }
        lock(self.held).remove(&self.id);
    }

    async fn end_all(&self) -> Result<(), Status> {
        delete(&self.client, &self.id, false).await?;
        end_crashed(&self.client, self.held, &self.target).await
    }

    /// Moves what the lease holds to one that ends soon.
    async fn keep_for_a_while(&self) -> Result<(), Status> {
        let mut leases = self.client.leases();
        let request = ListResourcesRequest {
            id: self.id.clone(),
        };
        let held = Client::call(leases.list_resources(self.client.request(request)))
            .await?
            .resources;
        let kept = new_id();
        create(&self.client, &kept, &self.target, RESUME_LIFETIME).await?;
        for resource in held {
            if resource.id.starts_with(UNPACK_KEY_PREFIX) {
                continue;
            }
            let request = AddResourceRequest {
                id: kept.clone(),
                resource: Some(resource),
            };
            Client::call(leases.add_resource(self.client.request(request))).await?;
        }
        delete(&self.client, &self.id, false).await
    }
}

/// Ends the leases for a target that no pull of this process holds. The image is there, so that nothing
/// they hold is needed any more.
pub(super) async fn end_crashed(
    client: &Client,
    held: &HeldLeases,
    target: &Digest,
) -> Result<(), Status> {
    let filters = vec![format!("labels.\"{TARGET}\"==\"{target}\"")];
    let request = client.request(ListRequest { filters });
    let answer = Client::call(client.leases().list(request)).await?;
    for lease in answer.leases {
        let is_held = lock(held).contains(&lease.id);
        if !is_held {
            // It may hold half a snapshot, so it goes with a collection.
            delete(client, &lease.id, true).await?;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is in a directory. containerd would do it as well, but not while the disk is full: its
/// records need space to be changed, and what it failed to remove it tries again much later.
async fn empty(dir: PathBuf) {
    let emptying = tokio::task::spawn_blocking(move || {
        for entry in std::fs::read_dir(dir)? {
            std::fs::remove_dir_all(entry?.path())?;
        }
        Ok::<_, std::io::Error>(())
    });
    if let Ok(Err(error)) = emptying.await {
        tracing::warn!(%error, "half-unpacked layers are left to garbage collection");
    }
}

fn new_id() -> String {
    format!("prewarm-{:032x}", rand::random::<u128>())
}

async fn create(
    client: &Client,
    id: &str,
    target: &Digest,
    lifetime: Duration,
) -> Result<(), Status> {
    let expires = jiff::Timestamp::now()
        .checked_add(lifetime)
        .unwrap_or(jiff::Timestamp::MAX);
    let labels = Labels::from([
        (GC_EXPIRE.to_owned(), format!("{expires:.0}")),
        (TARGET.to_owned(), target.to_string()),
    ]);
    let request = client.request(CreateRequest {
        id: id.to_owned(),
        labels,
    });
    Client::call(client.leases().create(request))
        .await
        .map(drop)
}

async fn delete(client: &Client, id: &str, sync: bool) -> Result<(), Status> {
    let request = client.request(DeleteRequest {
        id: id.to_owned(),
        sync,
    });
    match Client::call(client.leases().delete(request)).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}
