//! What a runtime that says nothing of it would write: the layers of which none of its images is known to be made.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_cri::v1::{ImageSpec, ImageStatusRequest, ListImagesRequest};
use serde::Deserialize;

use super::{Cri, Node, call};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::image::PullRequest;
use crate::image::disk::Room;
use crate::image::registry::manifest::{
    Descriptor, Document, ImageConfig, MAX_INDEX_DEPTH, Manifest,
};
use crate::image::registry::{Part, Repository};

/// With so much free beyond what is to stay so, the registry is not asked how large an image is: some count each look at
/// a manifest as a pull, and the disk is watched in any case.
const AMPLE_BYTES: u64 = 32 << 30;
/// Longest that is spent on the question.
const LIMIT: Duration = Duration::from_secs(10);
/// Most images of the runtime that are looked at; kubelet's garbage collection keeps fewer.
const MAX_IMAGES: usize = 1_000;
/// Looks at images at once.
const LOOKS_AT_ONCE: usize = 8;
/// Largest image configuration that is read, in bytes.
const MAX_CONFIG_BYTES: usize = 16 << 20;

/// What matters of an image in the words that a runtime has for those who debug it (containerd and CRI-O alike).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    image_spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Refuses a pull that would leave less free than is to stay so. What cannot be found out refuses nothing: the runtime may
/// reach a registry that this process does not.
///
/// # Errors
/// `InsufficientDisk`.
pub(super) async fn fits(
    node: &Node<'_>,
    request: &PullRequest,
    wanted: Option<&Digest>,
    room: &Room,
) -> Result<(), Failure> {
    room.is_left()?;
    if room.spare().is_none_or(|spare| spare >= AMPLE_BYTES) {
        return Ok(());
    }
    let asked = tokio::time::timeout(LIMIT, missing(node, request, wanted, room)).await;
    let unknown = match asked {
        Ok(Ok(missing)) => return room.fits(&missing.iter().collect::<Vec<_>>(), &[""]),
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => format!("no answer within {LIMIT:?}"),
    };
    tracing::debug!(image = %request.image, unknown, "the pull begins without knowing its size");
    Ok(())
}

/// The layers that the runtime is not known to have.
async fn missing(
    node: &Node<'_>,
    request: &PullRequest,
    wanted: Option<&Digest>,
    room: &Room,
) -> Result<Vec<Descriptor>, Failure> {
    let image = &request.image;
    let repository = node
        .registry
        .repository(image, &request.pull_secrets)
        .await?;
    let manifest = manifest(&repository, image, wanted).await?;
    let all: Vec<_> = manifest.layers.iter().collect();
    if room.fits(&all, &[""]).is_ok() {
        return Ok(manifest.layers);
    }
    let config = config(&repository, &manifest).await?;
    let present = node.cri.diff_ids().await?;
    Ok(without(manifest, &config.rootfs.diff_ids, &present))
}

/// The layers of a manifest whose archives are not among those that are there.
fn without(manifest: Manifest, diff_ids: &[Digest], present: &HashSet<Digest>) -> Vec<Descriptor> {
    let layers = manifest.layers.into_iter().zip(diff_ids);
    layers
        .filter(|(_, diff_id)| !present.contains(*diff_id))
        .map(|(layer, _)| layer)
        .collect()
}

async fn manifest(
    repository: &Repository,
    image: &ImageRef,
    wanted: Option<&Digest>,
) -> Result<Manifest, Failure> {
    let mut digest = match wanted {
        Some(digest) => digest.clone(),
        None => repository.resolve(image).await?.digest,
    };
    for _ in 0..=MAX_INDEX_DEPTH {
        let raw = repository.manifest(&digest).await?;
        match Document::parse(&raw.media_type, &raw.bytes)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(index) => digest = index.choose(&Platform::host())?.digest.clone(),
        }
    }
    let words = "indexes lie too deep in each other";
    Err(Failure::new(FailureKind::InvalidReference, words))
}

async fn config(repository: &Repository, manifest: &Manifest) -> Result<ImageConfig, Failure> {
    let Descriptor { digest, size, .. } = &manifest.config;
    let blob = repository.blob(digest, *size, Part::from(0), 0).await?;
    let (mut stream, mut bytes) = (blob.stream, Vec::new());
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > MAX_CONFIG_BYTES {
            let words =
                format!("the configuration {digest} has more than {MAX_CONFIG_BYTES} bytes");
            return Err(Failure::new(FailureKind::InvalidReference, words));
        }
    }
    ImageConfig::parse(&bytes, manifest, &Platform::host())
}

impl Cri {
    /// The archives that the runtime's images were unpacked from.
    ///
    /// # Errors
    /// `RuntimeUnavailable`, also when it does not say so of an image, or has too many: what is not known may be there.
    async fn diff_ids(&self) -> Result<HashSet<Digest>, Failure> {
        let listed = call(
            self.images()
                .list_images(ListImagesRequest { filter: None }),
        )
        .await;
        let listed = listed.map_err(|status| self.failure("listing images", &status))?;
        if listed.images.len() > MAX_IMAGES {
            let words = format!("the runtime has more than {MAX_IMAGES} images");
            return Err(Failure::new(FailureKind::RuntimeUnavailable, words));
        }
        let images = listed.images.into_iter();
        let looks = images.map(|image| self.diff_ids_of(image.id));
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let mut found = HashSet::new();
        while let Some(of_one) = looks.next().await {
            found.extend(of_one?);
        }
        Ok(found)
    }

    async fn diff_ids_of(&self, image: String) -> Result<Vec<Digest>, Failure> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: image.clone(),
                ..ImageSpec::default()
            }),
            verbose: true,
        };
        let answer = call(self.images().image_status(request)).await;
        let what = format_args!("looking at image {image}");
        let answer = answer.map_err(|status| self.failure(what, &status))?;
        if answer.image.is_none() {
            // It has gone meanwhile.
            return Ok(Vec::new());
        }
        let info = answer.info.get("info").map_or("", String::as_str);
        match serde_json::from_str::<Info>(info) {
            Ok(info) => Ok(info.image_spec.rootfs.diff_ids),
            Err(error) => Err(Failure::new(
                FailureKind::RuntimeUnavailable,
                format!("the runtime does not say which layers image {image} has: {error}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_image_has_is_not_missing() {
        let descriptor = |number: u8| Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: Digest::of(&[number]),
            size: number.into(),
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let manifest = Manifest {
            config: descriptor(0),
            layers: vec![descriptor(1), descriptor(2)],
        };
        let diff_ids = [Digest::of(b"one"), Digest::of(b"two")];
        let missing = |present: &[&str]| {
            let present = present.iter().map(|name| Digest::of(name.as_bytes()));
            without(manifest.clone(), &diff_ids, &present.collect())
        };
        assert_eq!(missing(&[]), manifest.layers);
        assert_eq!(missing(&["one", "three"]), [descriptor(2)]);
        assert_eq!(missing(&["two", "one"]), []);
    }
}
