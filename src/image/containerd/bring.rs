//! The engines at work: one is chosen, and another one takes over if that one cannot.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use tracing::Span;
use tracing::field::Empty;

use super::engine::{self, Choice, Obstacle, Offers, Wants};
use super::fetch::Fetcher;
use super::labels::Labels;
use super::lease::{Ending, Lease};
use super::native::{Native, Scratch};
use super::plan::{self, Image, Page};
use super::presence::MAX_CONFIG_BYTES;
use super::pull::Pull;
use super::snapshotters::Snapshotters;
use super::{Shared, unpack};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::image::cri::{Cri, Unpacks, Version};
use crate::image::registry::manifest::ImageConfig;
use crate::image::{Engine, PullRequest, phase};

/// Most blobs of one image that are fetched at once, as containerd does by default.
const BLOBS_AT_ONCE: usize = 3;

/// What there is to choose where nothing but CRI is offered.
pub(super) async fn cri_alone(cri: &Cri) -> Result<Choice, Failure> {
    let Version { name, version } = cri.version().await?;
    Ok(Choice {
        engine: Engine::Cri,
        reason: format!("{name} {version} offers CRI alone at this address"),
    })
}

/// The engine for images with nothing special about them.
pub(super) async fn usual_choice(shared: &Shared) -> Result<Choice, Failure> {
    if shared.client.version().await?.is_none() {
        return cri_alone(&shared.client.cri()).await;
    }
    let nothing = Digest::of(b"");
    let lease = Lease::create(&shared.client, &shared.leases, &nothing).await?;
    let scratch = Scratch::open(shared, &lease).await;
    lease.end(Ending::GivenUp).await;
    let offers = Offers {
        snapshotter: &shared.snapshotter,
        obstacle: scratch?.err(),
        cri: Snapshotters::of(shared).await?.own_by_cri.is_some(),
    };
    let wants = Wants {
        unpack: true,
        encrypted: false,
    };
    engine::choose(&offers, wants)
}

/// What an engine is to do.
enum Work<'a> {
    /// Bring everything, and unpack it for the worker's own snapshotter.
    Bring {
        fetcher: &'a Fetcher<'a>,
        scratch: Option<&'a Scratch>,
    },
    /// Unpack what was brought for another snapshotter, the so manyth.
    Unpack(usize, &'a Unpacks),
}

/// Bringing the layers; the native engine unpacks them meanwhile.
fn download(engine: Engine) -> Span {
    tracing::info_span!("download", %engine, error = Empty)
}

fn unpacking(snapshotter: &str) -> Span {
    tracing::info_span!("unpack", snapshotter, error = Empty)
}

impl Pull<'_> {
    /// Has an engine bring the image and unpack it for the worker's snapshotter, then for the others. Says which engine
    /// brought it, and how long it took to download.
    pub(super) async fn bring(
        &self,
        fetcher: &Fetcher<'_>,
        scratch: Option<Scratch>,
        (obstacle, wants): (Option<Obstacle>, Wants),
    ) -> Result<(Choice, Duration), Failure> {
        let offers = Offers {
            snapshotter: &self.snapshotters.own,
            obstacle,
            cri: self.snapshotters.own_by_cri.is_some(),
        };
        let work = Work::Bring {
            fetcher,
            scratch: scratch.as_ref(),
        };
        let (choice, download) = self.by_turns(&offers, wants, &work).await?;
        for (number, other) in (1..).zip(&self.snapshotters.others) {
            if wants.unpack {
                self.unpack_for(number, other, wants).await?;
            }
        }
        Ok((choice, download))
    }

    /// Unpacks what was brought for another snapshotter, the so manyth.
    async fn unpack_for(
        &self,
        number: usize,
        other: &Unpacks,
        wants: Wants,
    ) -> Result<(), Failure> {
        let snapshotter = other.snapshotter.as_str();
        let offers = Offers {
            snapshotter,
            obstacle: Some(Obstacle::NotOwn(snapshotter.to_owned())),
            cri: true,
        };
        let work = Work::Unpack(number, other);
        self.by_turns(&offers, wants, &work).await.map(drop)
    }

    /// Has an engine do its part. Says how long it took to download.
    async fn work(&self, engine: Engine, work: &Work<'_>) -> Result<Duration, Failure> {
        let own_by_cri = self.snapshotters.own_by_cri.as_ref();
        match (work, engine, own_by_cri) {
            (Work::Unpack(number, other), Engine::Cri, _) => {
                let unpacked = self.pull_image(*number, other);
                phase(unpacking(&other.snapshotter), unpacked).await
            }
            (Work::Unpack(number, other), ..) => {
                let unpacked = self.unpack(*number, &other.snapshotter);
                phase(unpacking(&other.snapshotter), unpacked).await?;
                Ok(Duration::ZERO)
            }
            (
                Work::Bring {
                    fetcher,
                    scratch: Some(scratch),
                },
                Engine::Native,
                _,
            ) => phase(download(engine), self.stream(fetcher, scratch)).await,
            (Work::Bring { .. }, Engine::Cri, Some(unpacks)) => {
                phase(download(engine), self.pull_image(0, unpacks)).await
            }
            (Work::Bring { fetcher, .. }, ..) => self.fetch_and_unpack(fetcher).await,
        }
    }

    /// Has the engine that is chosen do its work, and another one if that one cannot.
    async fn by_turns(
        &self,
        offers: &Offers<'_>,
        wants: Wants,
        work: &Work<'_>,
    ) -> Result<(Choice, Duration), Failure> {
        let image = &self.request.image;
        let about = |failure: Failure, why: &str| Failure {
            message: format!("{image}: {}{why}", failure.message),
            ..failure
        };
        let mut choice = engine::choose(offers, wants).map_err(|failure| about(failure, ""))?;
        let mut failed = String::new();
        loop {
            let (engine, reason) = (choice.engine, &choice.reason);
            let snapshotter = offers.snapshotter;
            tracing::debug!(%image, %engine, reason, snapshotter, "pulling");
            let failure = match self.work(engine, work).await {
                Ok(download) => return Ok((choice, download)),
                Err(failure) if failed.is_empty() => failure,
                Err(failure) => about(failure, &format!(" ({failed})")),
            };
            let Some(next) = engine::choose_after(engine, &failure, offers) else {
                return Err(failure);
            };
            tracing::warn!(%image, snapshotter, next = %next.engine, "{}", next.reason);
            failed = next.reason.clone();
            choice = next;
        }
    }

    /// Has containerd pull by itself, what the tag means for this pull. The names are given afterwards, as by the
    /// other engines.
    async fn pull_image(&self, number: usize, unpacks: &Unpacks) -> Result<Duration, Failure> {
        let started = Instant::now();
        let (shared, image) = (self.shared, &self.plan.image);
        let request = self.request;
        let logins = shared
            .registry
            .logins(&request.image, &request.pull_secrets);
        let logins = logins.await;
        let name = request.image.digest_name(&image.target().digest);
        let cri = shared.client.cri();
        cri.pull_image(&name, logins, unpacks.handler.as_deref())
            .await?;
        self.meter.complete(number);
        Ok(started.elapsed())
    }

    /// Everything at once. Says how long it took.
    async fn stream(&self, fetcher: &Fetcher<'_>, scratch: &Scratch) -> Result<Duration, Failure> {
        let started = Instant::now();
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
        Box::pin(native.run()).await?;
        put_pages(fetcher, image).await?;
        Ok(started.elapsed())
    }

    /// First all blobs, then layer by layer. Says how long the first took.
    async fn fetch_and_unpack(&self, fetcher: &Fetcher<'_>) -> Result<Duration, Failure> {
        let started = Instant::now();
        let fetched = fetch(fetcher, &self.plan.image);
        phase(download(Engine::Containerd), fetched).await?;
        let download = started.elapsed();
        if self.request.unpack {
            let own = &self.snapshotters.own;
            phase(unpacking(own), self.unpack(0, own)).await?;
        }
        Ok(download)
    }

    /// Has containerd unpack what was brought, for the so manyth snapshotter.
    async fn unpack(&self, number: usize, snapshotter: &str) -> Result<(), Failure> {
        let (lease, image) = (self.lease, &self.plan.image);
        let config = read_config(lease, self.request, image).await?;
        let layer = |layer| self.meter.layer(number, layer);
        let to = (snapshotter, &layer);
        unpack::unpack(self.shared, lease, to, &image.manifest, &config).await
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
