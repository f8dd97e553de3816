//! Asking the registry, once for the whole fleet, what a job's tags mean.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef};
use crate::image::registry::Registry;
use crate::wire::record::ResolvedImage;

/// Longest one image may take; after it the nodes resolve for themselves.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest all images of a job may take, waiting for their turn among other jobs included. Until then none of its
/// pulls is released, and a registry that does not answer would have each of 255 images wait for it.
const JOB_TIMEOUT: Duration = Duration::from_secs(30);
/// Images of one job asked for at once.
const AT_ONCE_PER_JOB: usize = 8;
/// Jobs asked for at once.
const JOBS_AT_ONCE: usize = 16;

/// Asks registries, as the dispatcher's settings allow.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    registry: Option<Registry>,
    jobs: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(registry: Option<Registry>) -> Self {
        Self {
            registry,
            jobs: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
        }
    }

    /// An answer for each image, in order. Never fails: what cannot be resolved says why.
    pub(super) async fn resolve(
        &self,
        images: Vec<ImageRef>,
        pull_secrets: &[String],
    ) -> Vec<ResolvedImage> {
        let until = Instant::now() + JOB_TIMEOUT;
        // The semaphore is never closed; whoever did not get a permit has no time left either.
        let _permit = timeout_at(until, self.jobs.acquire()).await;
        let answers = images
            .into_iter()
            .map(|image| self.resolve_one(image, pull_secrets, until));
        futures::stream::iter(answers)
            .buffered(AT_ONCE_PER_JOB)
            .collect()
            .await
    }

    /// Another one, whose questions do not hold up those of this one.
    pub(super) fn beside(&self) -> Self {
        Self::new(self.registry.clone())
    }

    /// What a tag means.
    ///
    /// # Errors
    /// The registry does not say, or there is none to ask.
    pub(super) async fn ask(
        &self,
        image: &ImageRef,
        pull_secrets: &[String],
    ) -> Result<Digest, Failure> {
        // The semaphore is never closed.
        let _permit = self.jobs.acquire().await;
        self.ask_now(image, pull_secrets, Instant::now() + TIMEOUT)
            .await
    }

    async fn ask_now(
        &self,
        image: &ImageRef,
        pull_secrets: &[String],
        until: Instant,
    ) -> Result<Digest, Failure> {
        let Some(registry) = &self.registry else {
            let words = "the dispatcher was given no access to registries";
            return Err(Failure::new(FailureKind::Unauthorized, words));
        };
        let asked = async {
            let repository = registry.repository(image, pull_secrets).await?;
            repository.resolve(image).await
        };
        match timeout_at(until.min(Instant::now() + TIMEOUT), asked).await {
            Ok(answer) => answer.map(|resolved| resolved.digest),
            Err(_) => {
                let words = format!(
                    "no answer within {} s, nor may all images of a job take longer than {} s",
                    TIMEOUT.as_secs(),
                    JOB_TIMEOUT.as_secs()
                );
                Err(Failure::new(FailureKind::RegistryUnavailable, words))
            }
        }
    }

    async fn resolve_one(
        &self,
        image: ImageRef,
        pull_secrets: &[String],
        until: Instant,
    ) -> ResolvedImage {
        let answer = match image.digest().cloned() {
            Some(digest) => Ok(digest),
            None => self.ask_now(&image, pull_secrets, until).await,
        };
        match answer {
            Ok(digest) => ResolvedImage {
                image,
                digest: Some(digest),
                problem: None,
            },
            Err(failure) => {
                let problem = failure.to_string();
                tracing::warn!(%image, problem, "the tag was not resolved; each node resolves it for itself");
                ResolvedImage {
                    image,
                    digest: None,
                    problem: Some(problem),
                }
            }
        }
    }
}
