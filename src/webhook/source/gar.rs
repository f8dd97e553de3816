//! Google Artifact Registry through a Pub/Sub push subscription of the topic `gcr` (Artifact Registry
//! documentation, "Configure Pub/Sub notifications"; Pub/Sub documentation, "Push subscriptions").
//!
//! Tag and digest are whole references. A push by digest has no tag, and the children of an index have none
//! either. A subscription may be set to unwrap its messages: the body is the event then.

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::payload::{Told, json, need, rejection, text};
use super::{Reading, Rejection};

const DATA: &str = "message.data";
/// Where a subscription that unwraps its messages, and writes their metadata, puts their id.
const MESSAGE_ID: &str = "x-goog-pubsub-message-id";

pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let envelope = json(body)?;
    if envelope.get("message").is_none() && envelope.get("action").is_some() {
        let id = headers.get(MESSAGE_ID).and_then(|id| id.to_str().ok());
        return event(&envelope, "", id);
    }
    let data = STANDARD
        .decode(need(&envelope, "", DATA)?)
        .map_err(|error| rejection(DATA, format!("not base64: {error}")))?;
    let inner = json(&data).map_err(|inner| rejection(DATA, inner.to_string()))?;
    let id = text(&envelope, "message.messageId");
    event(&inner, &format!("{DATA}."), id)
}

fn event(event: &Value, root: &str, id: Option<&str>) -> Result<Reading, Rejection> {
    let place = if root.is_empty() { "body" } else { DATA };
    let action = need(event, root, "action")?;
    if action != "INSERT" {
        return Ok(Reading::nothing(format!("{root}action is {action}")));
    }
    let (tagged, by_digest) = (text(event, "tag"), text(event, "digest"));
    let Some(named) = tagged.or(by_digest) else {
        return Err(rejection(place, "there is neither a tag nor a digest"));
    };
    let (registry, path) = named
        .split_once('/')
        .ok_or_else(|| rejection(place, format!("{named:?} is no reference with a host")))?;
    let path = path.split_once('@').map_or(path, |(path, _)| path);
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) if tagged.is_some() => (repository, Some(tag)),
        _ => (path, None),
    };
    let told = Told {
        registry,
        repository,
        tag,
        digest: by_digest.and_then(|name| Some(name.split_once('@')?.1)),
        id,
    };
    Ok(Reading::one(told.push(place)?))
}
