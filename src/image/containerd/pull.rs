//! One pull, from the question whether the image is there to the end of its lease.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fetch::{Fetcher, Traffic};
use super::labels::Labels;
use super::lease::{Ending, Lease};
use super::meter::Meter;
use super::native::{Native, Scratch};
use super::plan::{self, Image, Page};
use super::presence::{self, MAX_CONFIG_BYTES, Present};
use super::{Containerd, Shared, cri, disk, lease, names, unpack};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::domain::job::ImagePullPolicy;
use crate::domain::progress::PullPhase;
use crate::image::registry::Repository;
use crate::image::registry::manifest::ImageConfig;
use crate::image::{Engine, ProgressSink, PullReport, PullRequest};

/// Most blobs of one image that are fetched at once, as containerd does by default.
const BLOBS_AT_ONCE: usize = 3;

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
struct Plan {
    image: Image,
    repository: Arc<Repository>,
    resolve: Duration,
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
    let meter = Meter::new(progress);
    let started = Instant::now();
    let plan = match stop.or(make_plan(shared, &request, started)).await.0? {
        Planned::Pull(plan) => *plan,
        Planned::Present(present) => {
            let crashed = lease::end_crashed(&shared.client, &shared.leases, &present.digest);
            if let Err(status) = crashed.await {
                tracing::debug!(%status, "leases of crashed pulls were not ended; they end by themselves");
            }
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
            });
        }
    };
    let target = &plan.image.target().digest;
    let lease = Lease::create(&shared.client, &shared.leases, target, &shared.snapshotter).await?;
    let workers = TaskTracker::new();
    let pull = Pull {
        shared,
        request: &request,
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

async fn make_plan(
    shared: &Shared,
    request: &PullRequest,
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
            && let Some(present) = presence::find(shared, request, digest, media_type).await?
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
                        presence::find(shared, request, &digest, &media_type).await?
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
struct Pull<'a> {
    shared: &'a Shared,
    request: &'a PullRequest,
    plan: &'a Plan,
    lease: &'a Lease<'a>,
    meter: &'a Meter,
    workers: &'a TaskTracker,
}

impl Pull<'_> {
    async fn perform(&self) -> Result<PullReport, Failure> {
        let (shared, request, lease) = (self.shared, self.request, self.lease);
        let image = &self.plan.image;
        let blobs = image.blobs();
        let total = blobs.iter().map(|blob| blob.size);
        let pages = image.pages.iter().map(|page| page.descriptor.size);
        self.meter
            .start(total.chain(pages).fold(0, u64::saturating_add));
        let started = Instant::now();
        let missing = presence::missing(shared, blobs.iter().copied()).await?;
        disk::check(shared, &missing, request.unpack).await?;
        let scratch = match request.unpack {
            true => Scratch::open(shared, lease).await?,
            false => None,
        };
        let engine = match &scratch {
            None => Engine::Containerd,
            Some(_) => Engine::Native,
        };
        tracing::debug!(image = %request.image, engine = engine.as_str(), "pulling");
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
        };
        let download = match &scratch {
            Some(scratch) => self.stream(&fetcher, scratch, started).await?,
            None => self.fetch_and_unpack(&fetcher, started).await?,
        };
        if shared.sync_filesystem && request.unpack {
            disk::sync(shared).await?;
        }
        self.name().await?;
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
            engine: Some(engine),
        })
    }

    /// Everything at once. Says how long it took.
    async fn stream(
        &self,
        fetcher: &Fetcher<'_>,
        scratch: &Scratch,
        started: Instant,
    ) -> Result<Duration, Failure> {
        let (lease, image) = (self.lease, &self.plan.image);
        fetcher.blob(&image.manifest.config, Labels::new()).await?;
        let config = read_config(lease, self.request, image).await?;
        let native = Native {
            shared: self.shared,
            lease,
            fetcher,
            meter: self.meter,
            scratch,
            workers: self.workers,
            manifest: &image.manifest,
            config: &config,
        };
        native.run().await?;
        put_pages(fetcher, image).await?;
        Ok(started.elapsed())
    }

    /// First all blobs, then layer by layer. Says how long the first took.
    async fn fetch_and_unpack(
        &self,
        fetcher: &Fetcher<'_>,
        started: Instant,
    ) -> Result<Duration, Failure> {
        let (lease, image) = (self.lease, &self.plan.image);
        fetch(fetcher, image).await?;
        let download = started.elapsed();
        if self.request.unpack {
            self.meter.phase(PullPhase::Unpacking);
            let config = read_config(lease, self.request, image).await?;
            unpack::unpack(self.shared, lease, &image.manifest, &config).await?;
        }
        Ok(download)
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
        if let (Some(config), Some(last)) = (config, names.last()) {
            cri::wait_until_seen(&self.lease.client, last, config).await;
        }
        Ok(())
    }
}

/// Brings everything into the content store: blobs, then the manifests that keep them.
async fn fetch(fetcher: &Fetcher<'_>, image: &Image) -> Result<(), Failure> {
    let fetches: Vec<_> = image
        .blobs()
        .into_iter()
        .map(|blob| fetcher.blob(blob, Labels::new()))
        .collect();
    futures::stream::iter(fetches)
        .buffer_unordered(BLOBS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    put_pages(fetcher, image).await
}

/// Puts the manifests into the content store, once what they keep is there.
async fn put_pages(fetcher: &Fetcher<'_>, image: &Image) -> Result<(), Failure> {
    for Page {
        descriptor,
        bytes,
        gc,
        was_local,
    } in image.pages.iter().rev()
    {
        tracing::debug!(digest = %descriptor.digest, was_local, "manifest");
        fetcher.put(descriptor, bytes, gc.clone()).await?;
    }
    Ok(())
}

async fn read_config(
    lease: &Lease<'_>,
    request: &PullRequest,
    image: &Image,
) -> Result<ImageConfig, Failure> {
    let digest = &image.manifest.config.digest;
    let bytes = lease
        .client
        .read(digest, MAX_CONFIG_BYTES)
        .await?
        .ok_or_else(|| {
            Failure::new(
                FailureKind::InvalidReference,
                format!("the configuration {digest} is larger than {MAX_CONFIG_BYTES} bytes"),
            )
        })?;
    ImageConfig::parse(&bytes, &image.manifest, &plan::platform(request))
}
