//! CloudEvents 1.0 over HTTP, structured and binary, and CDEvents, as they are or inside of those.
//!
//! Known are CDEvents' `dev.cdevents.artifact.published.*`, whose subject is a package URL of type `oci`, and any
//! event whose data is a push as `prewarm.push` takes it. Whoever writes these means what they say, so a push by
//! digest is a push.

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::Value;

use super::payload::{Told, json, need, rejection, text};
use super::{Reading, Rejection};
use crate::wire::push::Push;

/// The type of a CDEvent about something that was published, without its version.
pub(super) const PUBLISHED: &str = "dev.cdevents.artifact.published.";

pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // Binary: the attributes are headers, the body is the data. Structured: everything is in the body.
    let (kind, id, data, root) = match header("ce-type") {
        Some(kind) => (kind, header("ce-id"), &event, ""),
        None if event.get("context").is_some() => (
            need(&event, "", "context.type")?,
            text(&event, "context.id"),
            &event,
            "",
        ),
        None => {
            let data = event.get("data").unwrap_or(&Value::Null);
            (need(&event, "", "type")?, text(&event, "id"), data, "data.")
        }
    };
    if kind.starts_with(PUBLISHED) {
        return cd_event(data, root, id);
    }
    if kind.starts_with("dev.cdevents.") || data.get("repository").is_none() {
        return Ok(Reading::nothing(format!("the event's type is {kind}")));
    }
    let place = if root.is_empty() { "body" } else { "data" };
    let mut push: Push = serde_json::from_value(data.clone())
        .map_err(|error| rejection(place, format!("not a push: {error}")))?;
    push.image().map_err(|message| rejection(place, message))?;
    push.event_id = push.event_id.or_else(|| id.map(str::to_owned));
    Ok(Reading {
        pushes: vec![push],
        ..Reading::default()
    })
}

/// `pkg:oci/name@sha256%3A…?repository_url=host/path/name&tag=1` (package-url specification, type `oci`).
fn cd_event(event: &Value, root: &str, id: Option<&str>) -> Result<Reading, Rejection> {
    let place = format!("{root}subject.id");
    let purl = need(event, root, "subject.id")?;
    let Some(rest) = purl.strip_prefix("pkg:oci/") else {
        return Ok(Reading::nothing(format!(
            "{place} is {purl:?}, which is no image"
        )));
    };
    let (named, query) = rest.split_once('?').unwrap_or((rest, ""));
    let qualifier = |name: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| decoded(value))
    };
    let Some(url) = qualifier("repository_url") else {
        return Err(rejection(place, "the package URL has no repository_url"));
    };
    let (registry, repository) = url
        .split_once('/')
        .ok_or_else(|| rejection(&place, format!("{url:?} is no host with a repository")))?;
    // Harbor puts the whole reference there.
    let repository = repository.split([':', '@']).next().unwrap_or(repository);
    let digest = named.split_once('@').map(|(_, version)| decoded(version));
    let tag = qualifier("tag");
    let told = Told {
        registry,
        repository,
        tag: tag.as_deref(),
        digest: digest.as_deref(),
        id,
    };
    Ok(Reading {
        pushes: vec![told.push(&place)?],
        ..Reading::default()
    })
}

/// What is no escape stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}
