//! Asking the registry, once for the whole fleet, what a job's tags mean.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::Semaphore;

use crate::domain::image::ImageRef;
use crate::image::registry::Registry;
use crate::wire::record::ResolvedImage;

/// Longest one image may take; after it the nodes resolve for themselves.
const TIMEOUT: Duration = Duration::from_secs(10);
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
        // The semaphore is never closed.
        let _permit = self.jobs.acquire().await;
        let answers = images
            .into_iter()
            .map(|image| self.resolve_one(image, pull_secrets));
        futures::stream::iter(answers)
            .buffered(AT_ONCE_PER_JOB)
            .collect()
            .await
    }

    async fn resolve_one(&self, image: ImageRef, pull_secrets: &[String]) -> ResolvedImage {
        if let Some(digest) = image.digest().cloned() {
            return ResolvedImage {
                image,
                digest: Some(digest),
                problem: None,
            };
        }
        let answer = match &self.registry {
            None => Err("the dispatcher was given no access to registries".to_owned()),
            Some(registry) => {
                let asked = async {
                    let repository = registry.repository(&image, pull_secrets).await?;
                    repository.resolve(&image).await
                };
                match tokio::time::timeout(TIMEOUT, asked).await {
                    Ok(Ok(resolved)) => Ok(resolved.digest),
                    Ok(Err(failure)) => Err(failure.to_string()),
                    Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
                }
            }
        };
        match answer {
            Ok(digest) => ResolvedImage {
                image,
                digest: Some(digest),
                problem: None,
            },
            Err(problem) => {
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
