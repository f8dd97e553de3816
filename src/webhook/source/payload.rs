//! What the readers share: finding fields, and saying where one is not as it should be.

use axum::http::{HeaderMap, header};
use serde_json::Value;

use super::{Reading, Rejection};
use crate::domain::image::{Digest, ImageRef};
use crate::wire::push::Push;

/// Media types of what a node can pull (OCI image specification 1.1, "Media Types", and Docker's own).
const IMAGES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What a form is (HTML Living Standard, "URL-encoded form data").
const FORM: &str = "application/x-www-form-urlencoded";

/// Whether a media type is of an image or an index of images.
pub(super) fn is_image(media_type: &str) -> bool {
    IMAGES.contains(&media_type)
}

/// Whether a media type is of an index, which is nobody's child.
pub(super) fn is_index(media_type: &str) -> bool {
    media_type.ends_with(".index.v1+json") || media_type.ends_with(".list.v2+json")
}

pub(super) fn rejection(place: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection {
        place: place.into(),
        message: message.into(),
    }
}

/// The body as JSON.
pub(super) fn json(body: &[u8]) -> Result<Value, Rejection> {
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        rejection(place, format!("not JSON: {error}"))
    })
}

/// The body as JSON, or the field `payload` of a form, which some senders offer in its place.
pub(super) fn json_or_form(headers: &HeaderMap, body: &[u8]) -> Result<Value, Rejection> {
    let is_form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM));
    if !is_form {
        return json(body);
    }
    let (_, payload) = form_urlencoded::parse(body)
        .find(|(name, _)| name == "payload")
        .ok_or_else(|| rejection("payload", "the form has no such field"))?;
    json(payload.as_bytes()).map_err(|inner| rejection("payload", inner.to_string()))
}

/// The text at a path of keys and numbers with dots between, unless it is missing or empty.
pub(super) fn text<'v>(value: &'v Value, path: &str) -> Option<&'v str> {
    at(value, path)?.as_str().filter(|text| !text.is_empty())
}

/// The value at a path.
pub(super) fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    })
}

/// The text at a path, which has to be there; `root` is where `value` is in the payload.
pub(super) fn need<'v>(value: &'v Value, root: &str, path: &str) -> Result<&'v str, Rejection> {
    text(value, path).ok_or_else(|| {
        let found = at(value, path).map_or("nothing", |found| match found {
            Value::String(_) => "an empty one",
            _ => "something else",
        });
        rejection(
            format!("{root}{path}"),
            format!("expected a text, found {found}"),
        )
    })
}

/// The list at a path, which has to be there.
pub(super) fn list<'v>(value: &'v Value, path: &str) -> Result<&'v [Value], Rejection> {
    at(value, path)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .ok_or_else(|| rejection(path, "expected a list"))
}

/// An event that is being read into a push.
#[derive(Default)]
pub(super) struct Told<'v> {
    /// The registry's host.
    pub(super) registry: &'v str,
    /// The repository.
    pub(super) repository: &'v str,
    /// The tag; a digest in its place is taken as one.
    pub(super) tag: Option<&'v str>,
    /// The digest.
    pub(super) digest: Option<&'v str>,
    /// The event's id at its source.
    pub(super) id: Option<&'v str>,
}

impl Told<'_> {
    /// The push, checked: its parts make an image's name once the registry is a host.
    pub(super) fn push(self, place: &str) -> Result<Push, Rejection> {
        // Some sources put the digest where the tag is when there is no tag.
        let (tag, digest) = match (self.tag, self.digest) {
            (Some(tag), digest) if tag.starts_with("sha256:") => (None, digest.or(Some(tag))),
            both => both,
        };
        let digest: Option<Digest> = digest
            .map(str::parse)
            .transpose()
            .map_err(|error| rejection(place, format!("{error}")))?;
        let registry = match self.registry {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            registry => registry,
        };
        if tag.is_none() && digest.is_none() {
            return Err(rejection(
                place,
                "a push has a tag, a digest, or both; this one has neither",
            ));
        }
        // Checked with a host that is one: the payload's may be a name that the settings map to a host.
        let mut name = format!("registry.invalid/{}", self.repository);
        if let Some(tag) = tag {
            name = format!("{name}:{tag}");
        }
        name.parse::<ImageRef>()
            .map_err(|error| rejection(place, error.to_string()))?;
        // A tag that stands there would be seen by nodes and by no rule.
        if self.repository.contains([':', '@']) {
            let message = format!("{:?} is no repository", self.repository);
            return Err(rejection(place, message));
        }
        Ok(Push {
            registry: registry.to_owned(),
            repository: self.repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
            event_id: self.id.map(str::to_owned),
            source: None,
            unverified: false,
            trace: None,
        })
    }
}

impl Reading {
    /// A payload without a push, and why.
    pub(super) fn nothing(why: impl Into<String>) -> Self {
        Self {
            ignored: vec![why.into()],
            ..Self::default()
        }
    }

    /// Adds a push of a source whose pushes without a tag may be the children of an index.
    pub(super) fn add(&mut self, push: Push) {
        if push.tag.is_some() {
            self.pushes.push(push);
        } else {
            self.by_digest.push(push);
        }
    }

    /// One push.
    pub(super) fn one(push: Push) -> Self {
        let mut reading = Self::default();
        reading.add(push);
        reading
    }
}

/// The host and port of a URL, or of a text that begins with a host.
pub(super) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}
