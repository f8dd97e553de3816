//! What a pull has to bring: the target, the manifests on the way to the platform's, and its blobs.

use super::Shared;
use super::labels::{self, Labels};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, Platform};
use crate::image::PullRequest;
use crate::image::registry::manifest::{Descriptor, Document, MAX_INDEX_DEPTH, Manifest};
use crate::image::registry::{MAX_MANIFEST_BYTES, Repository};

/// A manifest or index with its bytes and the labels that keep what it points at.
pub(super) struct Page {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
    pub(super) gc: Labels,
    /// Whether it was in the content store.
    pub(super) was_local: bool,
}

/// The way from a target to the platform's manifest.
pub(super) struct Image {
    /// The target first, the manifest last.
    pub(super) pages: Vec<Page>,
    pub(super) manifest: Manifest,
    pub(super) manifest_digest: Digest,
}

impl Image {
    /// What the names are to point at.
    pub(super) fn target(&self) -> &Descriptor {
        // There is at least the manifest's own page.
        &self.pages[0].descriptor
    }

    /// Whether a layer is to be decrypted before it is unpacked (`ocicrypt`).
    pub(super) fn is_encrypted(&self) -> bool {
        let mut layers = self.manifest.layers.iter();
        layers.any(|layer| layer.media_type.ends_with("+encrypted"))
    }

    /// Every blob beside the manifests, each once.
    pub(super) fn blobs(&self) -> Vec<&Descriptor> {
        let mut blobs: Vec<&Descriptor> = Vec::with_capacity(self.manifest.layers.len() + 1);
        for blob in std::iter::once(&self.manifest.config).chain(&self.manifest.layers) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob);
            }
        }
        blobs
    }
}

/// The platform to pull for.
pub(super) fn platform(request: &PullRequest) -> Platform {
    request.platform.clone().unwrap_or_else(Platform::host)
}

/// Reads the way to the manifest from the content store; `None` when a part of it is not there.
pub(super) async fn read_local(
    shared: &Shared,
    request: &PullRequest,
    target: &Digest,
    media_type: &str,
) -> Result<Option<Image>, Failure> {
    walk(shared, request, target, media_type, None).await
}

/// Reads the way to the manifest from the content store, or else from the registry.
pub(super) async fn read(
    shared: &Shared,
    request: &PullRequest,
    repository: &Repository,
    target: &Digest,
    media_type: &str,
) -> Result<Image, Failure> {
    walk(shared, request, target, media_type, Some(repository))
        .await?
        .ok_or_else(|| Failure::new(FailureKind::Internal, "a manifest came from nowhere"))
}

async fn walk(
    shared: &Shared,
    request: &PullRequest,
    target: &Digest,
    media_type: &str,
    repository: Option<&Repository>,
) -> Result<Option<Image>, Failure> {
    let platform = platform(request);
    let mut pages = Vec::new();
    let (mut digest, mut media_type) = (target.clone(), media_type.to_owned());
    while pages.len() <= MAX_INDEX_DEPTH {
        let local = shared.client.read(&digest, MAX_MANIFEST_BYTES).await?;
        let was_local = local.is_some();
        let bytes = match (local, repository) {
            (Some(bytes), _) => bytes,
            (None, None) => return Ok(None),
            (None, Some(repository)) => {
                let fetched = repository.manifest(&digest).await?;
                if media_type.is_empty() {
                    media_type = fetched.media_type;
                }
                fetched.bytes.to_vec()
            }
        };
        let (document, media_type_) = Document::with_media_type(&media_type, &bytes)
            .map_err(|failure| about(failure, request, &digest))?;
        let page = |gc| Page {
            descriptor: Descriptor {
                media_type: media_type_,
                digest: digest.clone(),
                size: bytes.len() as u64,
                platform: None,
                annotations: std::collections::BTreeMap::new(),
            },
            bytes: bytes.clone(),
            gc,
            was_local,
        };
        match document {
            Document::Manifest(manifest) => {
                pages.push(page(labels::gc_of_manifest(&manifest)));
                check(&manifest, request)?;
                return Ok(Some(Image {
                    pages,
                    manifest,
                    manifest_digest: digest,
                }));
            }
            Document::Index(index) => {
                pages.push(page(labels::gc_of_index(&index)));
                let chosen = index
                    .choose(&platform)
                    .map_err(|failure| about(failure, request, &digest))?;
                (digest, media_type) = (chosen.digest.clone(), chosen.media_type.clone());
            }
        }
    }
    Err(Failure::new(
        FailureKind::InvalidReference,
        format!(
            "{}: indexes lie more than {MAX_INDEX_DEPTH} deep in each other",
            request.image
        ),
    ))
}

fn about(failure: Failure, request: &PullRequest, digest: &Digest) -> Failure {
    Failure {
        message: format!("{} ({digest}): {}", request.image, failure.message),
        ..failure
    }
}

/// What cannot be unpacked is refused before anything is fetched.
fn check(manifest: &Manifest, request: &PullRequest) -> Result<(), Failure> {
    if !request.unpack {
        return Ok(());
    }
    let invalid = |message: String| Err(Failure::new(FailureKind::InvalidReference, message));
    let image = &request.image;
    if !manifest.is_image() {
        return invalid(format!(
            "{image} is not a container image but an artifact (its configuration is {:?}); set `unpack: false` to have its content",
            manifest.config.media_type
        ));
    }
    let strange = manifest
        .layers
        .iter()
        .find(|layer| !labels::is_layer(&layer.media_type));
    match strange {
        Some(layer) => invalid(format!(
            "{image}: layer {} is of type {:?}, which cannot be unpacked",
            layer.digest, layer.media_type
        )),
        None => Ok(()),
    }
}
