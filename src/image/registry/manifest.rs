//! Manifests, indexes and image configurations (OCI image spec 1.1; Docker image manifest v2,
//! schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::platform;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, Platform};

/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of Docker's index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What is asked for; in the order of containerd, which some registries look at.
pub(super) const ACCEPT: &str = concat!(
    "application/vnd.docker.distribution.manifest.v2+json, ",
    "application/vnd.docker.distribution.manifest.list.v2+json, ",
    "application/vnd.oci.image.manifest.v1+json, ",
    "application/vnd.oci.image.index.v1+json, */*"
);

/// How deep an index in an index may lie.
pub const MAX_INDEX_DEPTH: usize = 3;

/// A pointer to a blob or manifest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// What it hashes to.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// For entries of an index: what it runs on.
    #[serde(default, deserialize_with = "platform_or_none")]
    pub platform: Option<Platform>,
    /// Free-form notes.
    #[serde(default, deserialize_with = "map_or_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An index: manifests of several platforms.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Index {
    /// The manifests, in the order of preference.
    pub manifests: Vec<Descriptor>,
}

/// A manifest: one configuration and its layers.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Manifest {
    /// The image configuration, or for an artifact whatever it has in its place.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Either kind of manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Document {
    /// An index.
    Index(Index),
    /// A manifest.
    Manifest(Manifest),
}

/// What an image's configuration says that matters for unpacking.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ImageConfig {
    /// GOARCH; empty in images that were made by hand.
    #[serde(default)]
    pub architecture: String,
    /// GOOS.
    #[serde(default)]
    pub os: String,
    /// The architecture's variant.
    #[serde(default)]
    pub variant: Option<String>,
    /// What the layers are when inflated.
    pub rootfs: RootFs,
}

/// The layers of a root file system.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Digests of the layers' tar archives, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Platforms may have empty parts, and words that ours have not; such an entry matches nothing.
fn platform_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Platform>, D::Error> {
    #[derive(Deserialize)]
    struct Parts {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        variant: Option<String>,
    }
    let parts: Option<Parts> = Option::deserialize(deserializer)?;
    Ok(parts.map(|parts| Platform {
        os: parts.os.into(),
        architecture: parts.architecture.into(),
        variant: parts
            .variant
            .filter(|variant| !variant.is_empty())
            .map(Into::into),
    }))
}

/// Go writes an empty map as `null`.
fn map_or_empty<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn invalid(message: String) -> Failure {
    Failure::new(FailureKind::InvalidReference, message)
}

impl Document {
    /// Reads the bytes of a manifest. `media_type` is what the registry or the index said they are,
    /// and may be empty; what the document says of itself has to agree.
    ///
    /// # Errors
    /// `InvalidReference` for what is not a manifest that can be pulled.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, Failure> {
        Self::with_media_type(media_type, bytes).map(|(document, _)| document)
    }

    /// Like [`parse`](Self::parse), and says what the document is.
    ///
    /// # Errors
    /// As for `parse`.
    pub fn with_media_type(media_type: &str, bytes: &[u8]) -> Result<(Self, String), Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            schema_version: Option<u32>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let broken =
            |error: serde_json::Error| invalid(format!("the manifest cannot be read: {error}"));
        let outline: Outline = serde_json::from_slice(bytes).map_err(broken)?;
        let own = outline.media_type.as_deref().filter(|own| !own.is_empty());
        if outline.schema_version == Some(1)
            || media_type.starts_with(DOCKER_SCHEMA1)
            || own.is_some_and(|own| own.starts_with(DOCKER_SCHEMA1))
        {
            return Err(invalid(
                "the manifest is of Docker's schema 1, which containerd no longer pulls; push the image again with a builder of this decade".to_owned(),
            ));
        }
        // A document that could be read both ways would be two images under one digest.
        if outline.manifests.is_some() && outline.layers.is_some() {
            return Err(invalid(
                "the manifest has both layers and manifests".to_owned(),
            ));
        }
        let known = |kind: &&str| {
            matches!(
                *kind,
                OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST
            )
        };
        let said = Some(media_type).filter(known);
        let kind = match (said, own) {
            (Some(said), Some(own)) if said != own => {
                return Err(invalid(format!(
                    "the manifest was announced as {said} and calls itself {own}"
                )));
            }
            (Some(said), _) => said,
            (None, Some(own)) => own,
            (None, None) if outline.manifests.is_some() => OCI_INDEX,
            (None, None) if outline.layers.is_some() => OCI_MANIFEST,
            (None, None) => media_type,
        };
        let document = match kind {
            OCI_INDEX | DOCKER_LIST => Self::Index(serde_json::from_slice(bytes).map_err(broken)?),
            OCI_MANIFEST | DOCKER_MANIFEST => {
                Self::Manifest(serde_json::from_slice(bytes).map_err(broken)?)
            }
            other => {
                return Err(invalid(format!(
                    "{other:?} is not the media type of an image manifest or index"
                )));
            }
        };
        Ok((document, kind.to_owned()))
    }
}

impl Index {
    /// The manifest to pull for a platform: the one for the platform itself, else for the best that
    /// the platform runs as well; among equals the first. Entries without a platform match any, last.
    ///
    /// # Errors
    /// `NoMatchingPlatform`, with the platforms there are.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, Failure> {
        let candidates = || {
            self.manifests
                .iter()
                .filter(|entry| is_document(&entry.media_type))
        };
        for runnable in platform::runnable(wanted) {
            let found = candidates().find(|entry| {
                entry
                    .platform
                    .as_ref()
                    .is_some_and(|platform| platform::normalize(platform) == runnable)
            });
            if let Some(entry) = found {
                return Ok(entry);
            }
        }
        if let Some(entry) = candidates().find(|entry| entry.platform.is_none()) {
            return Ok(entry);
        }
        let there: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // Attestations of BuildKit call themselves so.
            .filter(|platform| &*platform.os != "unknown")
            .map(ToString::to_string)
            .collect();
        Err(Failure::new(
            FailureKind::NoMatchingPlatform,
            format!(
                "the image is not there for {wanted}, but for: {}",
                there.join(", ")
            ),
        ))
    }
}

fn is_document(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST
    )
}

impl Manifest {
    /// Whether this is a container image, and not some other artifact.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
    }
}

impl ImageConfig {
    /// Reads an image configuration, which has to go with the manifest and the platform.
    ///
    /// # Errors
    /// `InvalidReference` when it cannot be read or has another number of layers;
    /// `NoMatchingPlatform` when it says that it is for something the platform does not run.
    pub fn parse(bytes: &[u8], manifest: &Manifest, wanted: &Platform) -> Result<Self, Failure> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| {
            invalid(format!("the image's configuration cannot be read: {error}"))
        })?;
        if !matches!(config.rootfs.kind.as_str(), "" | "layers") {
            return Err(invalid(format!(
                "the image's root file system is of type {:?}, not layers",
                config.rootfs.kind
            )));
        }
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(invalid(format!(
                "the manifest has {layers} layers and the configuration {diff_ids}"
            )));
        }
        if !config.os.is_empty() && !config.architecture.is_empty() {
            let own = platform::normalize(&Platform {
                os: config.os.as_str().into(),
                architecture: config.architecture.as_str().into(),
                variant: config.variant.as_deref().map(Into::into),
            });
            if !platform::runnable(wanted).contains(&own) {
                return Err(Failure::new(
                    FailureKind::NoMatchingPlatform,
                    format!("the image is for {own}, not for {wanted}"),
                ));
            }
        }
        Ok(config)
    }

    /// The names of the snapshots, the lowest first (OCI image spec, "Layer ChainID").
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            let next = match chain.last() {
                None => diff_id.clone(),
                Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            };
            chain.push(next);
        }
        chain
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
