//! One pull into a runtime that offers CRI and nothing else.

use std::time::{Duration, Instant};

use k8s_cri::v1::Image;
use tracing::field::Empty;

use super::{Cri, needs};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::domain::job::ImagePullPolicy;
use crate::domain::progress::PullPhase;
use crate::image::disk::Room;
use crate::image::registry::Registry;
use crate::image::size::DiskReserve;
use crate::image::{Engine, ProgressSink, PullReport, PullRequest, phase};

/// What a pull has at hand.
pub(in crate::image) struct Node<'a> {
    pub(in crate::image) cri: &'a Cri,
    pub(in crate::image) registry: &'a Registry,
    /// What is to stay free of the file system that the runtime says its images are on.
    pub(in crate::image) min_free_disk: DiskReserve,
}

/// Puts the image on the node, or finds that it is there.
///
/// What the job's tag meant when it began counts. CRI gives a tag's name only to what the tag means now: if that is
/// something else, the image gets the name with its digest alone, and the log says so.
pub(in crate::image) async fn pull(
    node: &Node<'_>,
    request: &PullRequest,
    progress: &ProgressSink,
    why: String,
) -> Result<PullReport, Failure> {
    refuse(request)?;
    let Node { cri, registry, .. } = *node;
    let started = Instant::now();
    let name = name(&request.image);
    let wanted = request.image.digest().or(request.digest.as_ref());
    let before = cri.image(&name).await?;
    let before = before.and_then(|image| digest(&image, &request.image, wanted));
    let good_enough = match (request.policy, wanted) {
        (_, Some(wanted)) => before.as_ref() == Some(wanted),
        (ImagePullPolicy::IfNotPresent, None) => before.is_some(),
        (ImagePullPolicy::Always, None) => false,
    };
    if let Some(digest) = before.clone().filter(|_| good_enough) {
        return Ok(report(digest, true, started, None));
    }
    let dir = cri.image_dir().await.unwrap_or_else(|failure| {
        tracing::debug!(%failure, "no disk check");
        None
    });
    let room = Room::of(None, dir, node.min_free_disk);
    needs::fits(node, request, wanted, &room).await?;
    progress.send_modify(|progress| progress.phase = PullPhase::Downloading);
    let logins = registry.logins(&request.image, &request.pull_secrets).await;
    let pulled = async |name: &str| {
        cri.pull_image(name, logins.clone(), None).await?;
        let image = cri.image(name).await?.ok_or_else(|| {
            Failure::new(
                FailureKind::RuntimeUnavailable,
                format!("{name}: the runtime pulled it, and does not have it"),
            )
        })?;
        Ok::<_, Failure>(digest(&image, &request.image, wanted))
    };
    let downloading = tracing::info_span!("download", engine = %Engine::Cri, error = Empty);
    let mut got = phase(downloading, room.or(pulled(&name))).await?;
    if let Some(wanted) = wanted
        && got.as_ref() != Some(wanted)
    {
        let by_digest = request.image.digest_name(wanted);
        tracing::warn!(image = %request.image, %by_digest, "the tag has moved since the job began; CRI cannot give it to what it meant then");
        got = room.or(pulled(&by_digest)).await?;
    }
    let got = got.filter(|got| wanted.is_none_or(|wanted| wanted == got));
    let got = got.ok_or_else(|| {
        Failure::new(
            FailureKind::DigestMismatch,
            format!("{name}: the runtime does not say that it has the digest that was asked for"),
        )
    })?;
    let already_present = before.as_ref() == Some(&got);
    let engine = (!already_present).then_some(why);
    Ok(report(got, already_present, started, engine))
}

/// What CRI cannot do is refused where leaving it out would leave something else on the node, and told in the log where
/// the image is the same without it.
fn refuse(request: &PullRequest) -> Result<(), Failure> {
    let image = &request.image;
    if !request.unpack {
        return Err(Failure::new(
            FailureKind::InvalidReference,
            format!(
                "{image}: this node's runtime is reached through CRI alone, which unpacks what it pulls; `unpack: false` needs containerd's own socket (containerd-address)"
            ),
        ));
    }
    if let Some(platform) = request
        .platform
        .as_ref()
        .filter(|&asked| *asked != Platform::host())
    {
        return Err(Failure::new(
            FailureKind::NoMatchingPlatform,
            format!(
                "{image}: this node's runtime is reached through CRI alone, which pulls for {} and cannot be asked for {platform}",
                Platform::host()
            ),
        ));
    }
    if request.pin.is_some() {
        tracing::warn!(%image, "the image is not pinned: CRI has no pins; set the runtime's own (CRI-O: pinned_images)");
    }
    if !request.labels.is_empty() {
        tracing::debug!(%image, "the image has no labels: CRI has none");
    }
    Ok(())
}

/// The name to pull by: with a digest there is no tag, as for kubelet.
fn name(image: &ImageRef) -> String {
    match image.digest() {
        Some(digest) => image.digest_name(digest),
        None => image.tag_name().unwrap_or_else(|| image.to_string()),
    }
}

/// By which digest the runtime knows the image in its repository: the wanted one, or else the first.
fn digest(known: &Image, image: &ImageRef, wanted: Option<&Digest>) -> Option<Digest> {
    let repository = image.name();
    let digests: Vec<Digest> = known
        .repo_digests
        .iter()
        .filter_map(|name| {
            let (name, digest) = name.split_once('@')?;
            (name == repository).then(|| digest.parse().ok())?
        })
        .collect();
    let is_wanted = wanted.filter(|wanted| digests.contains(wanted)).cloned();
    is_wanted.or_else(|| digests.into_iter().next())
}

fn report(
    digest: Digest,
    already_present: bool,
    started: Instant,
    why: Option<String>,
) -> PullReport {
    // CRI tells no bytes, and what a runtime calls an image's size may be that of its files.
    PullReport {
        digest,
        already_present,
        bytes_registry: 0,
        bytes_mirror: 0,
        bytes_present: 0,
        resolve: Duration::ZERO,
        download: started.elapsed(),
        unpack: Duration::ZERO,
        engine: why.is_some().then_some(Engine::Cri),
        engine_reason: why.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_images_own_repository() {
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let known = Image {
            repo_digests: vec![
                format!("localhost:5000/b@{other}"),
                format!("localhost:5000/a@{one}"),
                format!("localhost:5000/a@{other}"),
            ],
            ..Image::default()
        };
        let image: ImageRef = "localhost:5000/a:1".parse().unwrap();
        assert_eq!(digest(&known, &image, None), Some(one.clone()));
        assert_eq!(digest(&known, &image, Some(&other)), Some(other));
        assert_eq!(digest(&known, &image, Some(&Digest::of(b"3"))), Some(one));
    }
}
