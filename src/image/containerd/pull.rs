//! One pull, from the question whether the image is there to the end of its lease.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::field::Empty;

use super::bring::cri_alone;
use super::engine::Wants;
use super::fetch::{Fetcher, Traffic};
use super::lease::{Ending, Lease};
use super::meter::Meter;
use super::native::Scratch;
use super::plan::{self, Image};
use super::presence::{self, Present};
use super::snapshotters::{self, Snapshotters};
use super::{Containerd, Shared, disk, lease, names, seen};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::domain::job::ImagePullPolicy;
use crate::image::cri;
use crate::image::registry::Repository;
use crate::image::{ProgressSink, PullReport, PullRequest, phase};

/// What ends a pull before its time.
#[derive(Clone)]
pub(super) struct Stop {
    /// The caller wants it gone.
    pub(super) cancelled: CancellationToken,
    /// The caller does not wait any more, but may come back.
    pub(super) abandoned: CancellationToken,
}

impl Stop {
    /// Runs `work` to its end, or drops it.
    async fn or<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> (Result<T, Failure>, Ending) {
        let stopped = |ending| {
            let failure = Failure::new(FailureKind::Internal, "the pull was cancelled");
            (Err(failure), ending)
        };
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => stopped(Ending::GivenUp),
            () = self.abandoned.cancelled() => stopped(Ending::Resumable),
            done = work => {
                let ending = match &done {
                    Ok(_) => Ending::Named,
                    Err(failure) if failure.kind.is_permanent() => Ending::GivenUp,
                    Err(_) => Ending::Resumable,
                };
                (done, ending)
            }
        }
    }
}

/// What is left to do once the image is known not to be there.
pub(super) struct Plan {
    pub(super) image: Image,
    pub(super) repository: Arc<Repository>,
    pub(super) resolve: Duration,
}

enum Planned {
    Present(Present),
    Pull(Box<Plan>),
}

pub(super) async fn run(
    containerd: Containerd,
    request: PullRequest,
    progress: ProgressSink,
    stop: Stop,
) -> Result<PullReport, Failure> {
    let shared = &*containerd.0;
    let started = Instant::now();
    let Some(snapshotters) = stop.or(snapshotters::look(shared)).await.0? else {
        return stop.or(through_cri(shared, &request, &progress)).await.0;
    };
    let meter = Meter::new(progress);
    let resolving = tracing::info_span!("resolve", error = Empty);
    let planning = phase(
        resolving,
        make_plan(shared, &request, &snapshotters, started),
    );
    let plan = match stop.or(planning).await.0? {
        Planned::Pull(plan) => *plan,
        Planned::Present(present) => {
            let crashed = lease::end_crashed(&shared.client, &shared.leases, &present.digest);
            if let Err(status) = crashed.await {
                tracing::debug!(%status, "leases of crashed pulls were not ended; they end by themselves");
            }
            stop.or(pin(shared, &request, &present.names)).await.0?;
            return Ok(PullReport {
                digest: present.digest,
                already_present: true,
                bytes_registry: 0,
                bytes_mirror: 0,
                bytes_present: present.bytes,
                resolve: started.elapsed(),
                download: Duration::ZERO,
                unpack: Duration::ZERO,
                engine: None,
                engine_reason: String::new(),
            });
        }
    };
    let target = &plan.image.target().digest;
    let lease = Lease::create(&shared.client, &shared.leases, target).await?;
    let workers = TaskTracker::new();
    let pull = Pull {
        shared,
        request: &request,
        snapshotters: &snapshotters,
        plan: &plan,
        lease: &lease,
        meter: &meter,
        workers: &workers,
    };
    let (done, ending) = stop.or(pull.perform()).await;
    // What they write to goes with the lease.
    workers.close();
    workers.wait().await;
    lease.end(ending).await;
    done
}

/// Pins the image that has these names, if that is asked for.
async fn pin(shared: &Shared, request: &PullRequest, names: &[String]) -> Result<(), Failure> {
    match &request.pin {
        Some(pin) => shared.pins.set(&shared.client, pin, names).await,
        None => Ok(()),
    }
}

/// A pull into a runtime that offers CRI and nothing else.
async fn through_cri(
    shared: &Shared,
    request: &PullRequest,
    progress: &ProgressSink,
) -> Result<PullReport, Failure> {
    let cri = shared.client.cri();
    let why = cri_alone(&cri).await?.reason;
    let node = cri::Node {
        cri: &cri,
        registry: &shared.registry,
        min_free_disk: shared.min_free_disk,
    };
    cri::pull(&node, request, progress, why).await
}

async fn make_plan(
    shared: &Shared,
    request: &PullRequest,
    snapshotters: &Snapshotters,
    started: Instant,
) -> Result<Planned, Failure> {
    let pinned_down = request.image.digest().or(request.digest.as_ref());
    let named = presence::named(shared, request).await?;
    if let Some((digest, media_type)) = &named {
        let good_enough = match request.policy {
            ImagePullPolicy::IfNotPresent => true,
            ImagePullPolicy::Always => pinned_down == Some(digest),
        };
        if good_enough
            && let Some(present) =
                presence::find(shared, request, snapshotters, (digest, media_type)).await?
        {
            return Ok(Planned::Present(present));
        }
    }
    let repository = shared
        .registry
        .repository(&request.image, &request.pull_secrets)
        .await?;
    let (target, media_type) = match pinned_down {
        Some(digest) => (digest.clone(), String::new()),
        // What an IfNotPresent pull finds half there is made whole, without a look at what the tag
        // means by now, as far as the registry is not needed for it.
        None => match half_present(shared, request, named).await? {
            Some(known) => known,
            None => {
                let resolved = repository.resolve(&request.image).await?;
                let (digest, media_type) = (resolved.digest, resolved.media_type);
                if request.policy == ImagePullPolicy::Always
                    && let Some(present) =
                        presence::find(shared, request, snapshotters, (&digest, &media_type))
                            .await?
                {
                    return Ok(Planned::Present(present));
                }
                (digest, media_type)
            }
        },
    };
    let image = plan::read(shared, request, &repository, &target, &media_type).await?;
    Ok(Planned::Pull(Box::new(Plan {
        image,
        repository: Arc::new(repository),
        resolve: started.elapsed(),
    })))
}

/// What the name points at, if all its content is there and only snapshots, names or labels are not.
async fn half_present(
    shared: &Shared,
    request: &PullRequest,
    named: Option<(Digest, String)>,
) -> Result<Option<(Digest, String)>, Failure> {
    let Some((digest, media_type)) =
        named.filter(|_| request.policy == ImagePullPolicy::IfNotPresent)
    else {
        return Ok(None);
    };
    let Some(image) = plan::read_local(shared, request, &digest, &media_type).await? else {
        return Ok(None);
    };
    let missing = presence::missing(shared, image.blobs().into_iter()).await?;
    Ok(missing.is_empty().then_some((digest, media_type)))
}

/// A pull that is planned and has its lease.
pub(super) struct Pull<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a PullRequest,
    pub(super) snapshotters: &'a Snapshotters,
    pub(super) plan: &'a Plan,
    pub(super) lease: &'a Lease<'a>,
    pub(super) meter: &'a Meter,
    pub(super) workers: &'a TaskTracker,
}

impl Pull<'_> {
    async fn perform(&self) -> Result<PullReport, Failure> {
        let (shared, request, lease) = (self.shared, self.request, self.lease);
        let image = &self.plan.image;
        let blobs = image.blobs();
        let started = Instant::now();
        let missing = presence::missing(shared, blobs.iter().copied()).await?;
        let names: Vec<_> = self
            .snapshotters
            .names()
            .filter(|_| request.unpack && image.manifest.is_image())
            .collect();
        self.meter.start(image, names.len());
        let room = disk::room(shared).await?;
        room.fits(&missing, &names)?;
        let wants = Wants {
            unpack: request.unpack,
            encrypted: image.is_encrypted(),
        };
        let (scratch, obstacle) = match wants {
            Wants {
                unpack: true,
                encrypted: false,
            } => match Scratch::open(shared, lease).await? {
                Ok(scratch) => (Some(scratch), None),
                Err(obstacle) => (None, Some(obstacle)),
            },
            _ => (None, None),
        };
        let fetcher = Fetcher {
            shared,
            client: &lease.client,
            image: &request.image,
            repository: &self.plan.repository,
            meter: self.meter,
            traffic: Mutex::default(),
            store: match &scratch {
                None => None,
                Some(_) => shared.client.content_root().await?,
            },
            room: &room,
        };
        // Boxed, as all layers' state is in it.
        let brought = Box::pin(self.bring(&fetcher, scratch, (obstacle, wants)));
        let (choice, download) = room.or(brought).await?;
        self.meter.committing();
        for name in names.iter().filter(|_| shared.sync_filesystem) {
            disk::sync(shared, name).await?;
        }
        phase(tracing::info_span!("name", error = Empty), self.name()).await?;
        let Traffic {
            registry,
            mirror,
            present,
        } = *fetcher
            .traffic
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(PullReport {
            digest: image.target().digest.clone(),
            already_present: false,
            bytes_registry: registry,
            bytes_mirror: mirror,
            bytes_present: present,
            resolve: self.plan.resolve,
            download,
            unpack: started.elapsed().saturating_sub(download),
            engine: Some(choice.engine),
            engine_reason: choice.reason,
        })
    }

    /// Makes the image visible.
    async fn name(&self) -> Result<(), Failure> {
        let (request, image) = (self.request, &self.plan.image);
        let is_image = image.manifest.is_image();
        let config = is_image.then_some(&image.manifest.config.digest);
        let labels = names::labels(request);
        let names = names::all(&request.image, &image.target().digest, config);
        for name in &names {
            names::set(&self.lease.client, name, image.target(), &labels).await?;
        }
        pin(self.shared, request, &names).await?;
        if let (Some(config), Some(last)) = (config, names.last()) {
            seen::wait_until_seen(&self.lease.client, last, config).await;
        }
        Ok(())
    }
}
