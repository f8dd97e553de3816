//! The engines at work: one is chosen, and another one takes over if that one cannot.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};

use super::engine::{self, Choice, Obstacle, Offers, Wants};
use super::fetch::Fetcher;
use super::labels::Labels;
use super::lease::{Ending, Lease};
use super::native::{Native, Scratch};
use super::plan::{self, Image, Page};
use super::presence::MAX_CONFIG_BYTES;
use super::pull::Pull;
use super::{Shared, seen, unpack};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::domain::progress::PullPhase;
use crate::image::cri::{Cri, Unpacks, Version};
use crate::image::registry::manifest::ImageConfig;
use crate::image::{Engine, PullRequest};

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

/// How to have the CRI plugin unpack for this worker's snapshotter; `None` if it cannot.
async fn by_cri(shared: &Shared) -> Option<Unpacks> {
    if !shared.client.is_in_namespace(seen::CRI_NAMESPACE) {
        return None;
    }
    let unpacks = shared.client.cri().unpacks().await;
    let unpacks = unpacks
        .inspect_err(|failure| tracing::debug!(%failure, "no CRI"))
        .ok()?;
    unpacks
        .into_iter()
        .find(|unpacks| unpacks.snapshotter == shared.snapshotter)
}

/// The engine for images with nothing special about them.
pub(super) async fn usual_choice(shared: &Shared) -> Result<Choice, Failure> {
    if shared.client.version().await?.is_none() {
        return cri_alone(&shared.client.cri()).await;
    }
    let nothing = Digest::of(b"");
    let lease = Lease::create(
        &shared.client,
        &shared.leases,
        &nothing,
        &shared.snapshotter,
    )
    .await?;
    let scratch = Scratch::open(shared, &lease).await;
    lease.end(Ending::GivenUp).await;
    let offers = Offers {
        snapshotter: &shared.snapshotter,
        obstacle: scratch?.err(),
        cri: by_cri(shared).await.is_some(),
    };
    let wants = Wants {
        unpack: true,
        encrypted: false,
    };
    engine::choose(&offers, wants)
}

impl Pull<'_> {
    /// Has an engine bring the image, and another one if that one cannot. Says which it was, and how long it took to
    /// download.
    pub(super) async fn bring(
        &self,
        fetcher: &Fetcher<'_>,
        scratch: Option<Scratch>,
        (obstacle, wants): (Option<Obstacle>, Wants),
    ) -> Result<(Choice, Duration), Failure> {
        let (shared, image) = (self.shared, &self.request.image);
        let unpacks = by_cri(shared).await;
        let offers = Offers {
            snapshotter: &shared.snapshotter,
            obstacle,
            cri: unpacks.is_some(),
        };
        let about = |failure: Failure, why: &str| Failure {
            message: format!("{image}: {}{why}", failure.message),
            ..failure
        };
        let mut choice = engine::choose(&offers, wants).map_err(|failure| about(failure, ""))?;
        let mut failed = String::new();
        loop {
            let (engine, reason) = (choice.engine, &choice.reason);
            tracing::debug!(%image, %engine, reason, "pulling");
            let brought = match (engine, &scratch, &unpacks) {
                (Engine::Native, Some(scratch), _) => self.stream(fetcher, scratch).await,
                (Engine::Cri, _, Some(unpacks)) => self.pull_image(unpacks).await,
                _ => self.fetch_and_unpack(fetcher).await,
            };
            let failure = match brought {
                Ok(download) => return Ok((choice, download)),
                Err(failure) if failed.is_empty() => failure,
                Err(failure) => about(failure, &format!(" ({failed})")),
            };
            let Some(next) = engine::choose_after(engine, &failure, &offers) else {
                return Err(failure);
            };
            tracing::warn!(%image, next = %next.engine, "{}", next.reason);
            failed = next.reason.clone();
            choice = next;
        }
    }

    /// Has containerd pull by itself, what the tag means for this pull. The names are given afterwards, as by the
    /// other engines.
    async fn pull_image(&self, unpacks: &Unpacks) -> Result<Duration, Failure> {
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
        for blob in image.blobs() {
            self.meter.set(&blob.digest, blob.size);
        }
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
        native.run().await?;
        put_pages(fetcher, image).await?;
        Ok(started.elapsed())
    }

    /// First all blobs, then layer by layer. Says how long the first took.
    async fn fetch_and_unpack(&self, fetcher: &Fetcher<'_>) -> Result<Duration, Failure> {
        let started = Instant::now();
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
