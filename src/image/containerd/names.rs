//! The names an image has on the node, as CRI gives them: tag, digest, and the configuration's digest.

use std::collections::BTreeMap;

use containerd_client::services::v1::{
    CreateImageRequest, GetImageRequest, Image, UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Descriptor as WireDescriptor;
use prost_types::FieldMask;

use super::client::Client;
use super::labels::{CRI_IMAGE, Labels};
use crate::domain::failure::Failure;
use crate::domain::image::{Digest, ImageRef};
use crate::image::PullRequest;
use crate::image::registry::manifest::Descriptor;

/// All names of an image, the tag last: whoever finds the tag finds the others.
///
/// A reference with tag and digest gets no tag name, as from CRI: what the tag means is not known.
/// An artifact's configuration names nothing that CRI could run, so it gives no name.
pub(super) fn all(image: &ImageRef, target: &Digest, config: Option<&Digest>) -> Vec<String> {
    let mut names: Vec<String> = config.map(ToString::to_string).into_iter().collect();
    names.push(image.digest_name(target));
    names.extend(lookup_tag(image));
    names
}

/// The name that says what the reference means on this node.
pub(super) fn lookup(image: &ImageRef) -> String {
    match image.digest() {
        Some(digest) => image.digest_name(digest),
        None => lookup_tag(image).unwrap_or_else(|| image.to_string()),
    }
}

fn lookup_tag(image: &ImageRef) -> Option<String> {
    image.tag_name().filter(|_| image.digest().is_none())
}

/// The labels an image's records need; pins are beside them.
pub(super) fn labels(request: &PullRequest) -> Labels {
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let user: &BTreeMap<String, String> = &request.labels;
    user.clone().into_iter().chain([own(CRI_IMAGE)]).collect()
}

/// Whether a record is there, points at the target and has the labels.
pub(super) fn is_complete(record: Option<&Image>, target: &Digest, labels: &Labels) -> bool {
    record.is_some_and(|record| {
        target_of(record).is_some_and(|(digest, _)| digest == *target)
            && labels
                .iter()
                .all(|(key, value)| record.labels.get(key) == Some(value))
    })
}

/// What a record points at: digest and media type.
pub(super) fn target_of(record: &Image) -> Option<(Digest, &str)> {
    let target = record.target.as_ref()?;
    Some((target.digest.parse().ok()?, target.media_type.as_str()))
}

pub(super) async fn get(client: &Client, name: &str) -> Result<Option<Image>, Failure> {
    let request = client.request(GetImageRequest {
        name: name.to_owned(),
    });
    match Client::call(client.images().get(request)).await {
        Ok(answer) => Ok(answer.image),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(client.failure(format_args!("looking for image {name}"), &status)),
    }
}

/// Makes a record or changes the one there is. Labels of others stay, a pin among them.
pub(super) async fn set(
    client: &Client,
    name: &str,
    target: &Descriptor,
    labels: &Labels,
) -> Result<(), Failure> {
    let image = Image {
        name: name.to_owned(),
        labels: labels.clone(),
        target: Some(WireDescriptor {
            media_type: target.media_type.clone(),
            digest: target.digest.to_string(),
            size: i64::try_from(target.size).unwrap_or(i64::MAX),
            ..WireDescriptor::default()
        }),
        ..Image::default()
    };
    let failed = |status| client.failure(format_args!("naming {name}"), &status);
    let request = client.request(CreateImageRequest {
        image: Some(image.clone()),
        source_date_epoch: None,
    });
    match Client::call(client.images().create(request)).await {
        Ok(_) => return Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(failed(status)),
    }
    let paths = std::iter::once("target".to_owned())
        .chain(labels.keys().map(|key| format!("labels.{key}")))
        .collect();
    let request = client.request(UpdateImageRequest {
        image: Some(image),
        update_mask: Some(FieldMask { paths }),
        source_date_epoch: None,
    });
    Client::call(client.images().update(request))
        .await
        .map(drop)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_cri() {
        let (target, config) = (Digest::of(b"t"), Digest::of(b"c"));
        let tagged: ImageRef = "nginx:1".parse().unwrap();
        assert_eq!(
            all(&tagged, &target, Some(&config)),
            [
                config.to_string(),
                format!("docker.io/library/nginx@{target}"),
                "docker.io/library/nginx:1".to_owned(),
            ]
        );
        assert_eq!(lookup(&tagged), "docker.io/library/nginx:1");
        let both: ImageRef = format!("nginx:1@{target}").parse().unwrap();
        let digest_name = format!("docker.io/library/nginx@{target}");
        assert_eq!(lookup(&both), digest_name);
        assert_eq!(all(&both, &target, None), [digest_name]);
    }
}
