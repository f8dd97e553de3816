//! A registry whose tags move, that is down at times, and misses an image.

use std::collections::{BTreeMap, BTreeSet};

use prewarm::domain::failure::{Failure, FailureKind};
use prewarm::domain::image::{Digest, ImageRef};
use prewarm::wire::record::ResolvedImage;

use crate::broker::Millis;

/// What it has.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    pub down_until: Millis,
    /// Pulls fail now and then until this.
    pub flaky_until: Millis,
    /// Every pull takes longer than any attempt may until this.
    pub stalls_until: Millis,
    versions: BTreeMap<String, u32>,
    digests: BTreeMap<(String, u32), Digest>,
    pub missing: BTreeSet<String>,
}

impl Registry {
    pub fn is_up(&self, now: Millis) -> bool {
        self.down_until <= now
    }

    /// A tag now means something else.
    pub fn move_tag(&mut self, image: &ImageRef) {
        *self.versions.entry(image.to_string()).or_insert(0) += 1;
    }

    /// What a tag means.
    pub fn digest(&mut self, now: Millis, image: &ImageRef) -> Result<Digest, Failure> {
        let name = image.to_string();
        if !self.is_up(now) {
            let message = "no route to host";
            return Err(Failure::new(FailureKind::RegistryUnavailable, message));
        }
        if self.missing.contains(&name) {
            return Err(Failure::new(FailureKind::ImageNotFound, "not found"));
        }
        let version = self.versions.get(&name).copied().unwrap_or(0);
        let make = || Digest::of(format!("{name}@{version}").as_bytes());
        let digest = self
            .digests
            .entry((name.clone(), version))
            .or_insert_with(make);
        Ok(digest.clone())
    }

    /// Whether the tag has ever meant this.
    pub fn has_had(&self, image: &ImageRef, digest: &Digest) -> bool {
        let name = image.to_string();
        let mut known = self.digests.iter();
        known.any(|((of, _), had)| *of == name && had == digest)
    }

    /// What tags mean, as a dispatcher asks it.
    pub fn resolve(&mut self, now: Millis, images: Vec<ImageRef>) -> Vec<ResolvedImage> {
        let resolve = |image: ImageRef| match self.digest(now, &image) {
            Ok(digest) => ResolvedImage {
                image,
                digest: Some(digest),
                problem: None,
            },
            Err(failure) => ResolvedImage {
                image,
                digest: None,
                problem: Some(failure.message),
            },
        };
        images.into_iter().map(resolve).collect()
    }
}
