//! Google Artifact Registry through a Pub/Sub push subscription of the topic `gcr` (Artifact Registry
//! documentation, "Configure Pub/Sub notifications"; Pub/Sub documentation, "Push subscriptions").
//!
//! Tag and digest are whole references. A push by digest has no tag, and the children of an index have none
//! either.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::payload::{Told, json, need, rejection, text};
use super::{Reading, Rejection};

const DATA: &str = "message.data";

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let envelope = json(body)?;
    let data = STANDARD
        .decode(need(&envelope, "", DATA)?)
        .map_err(|error| rejection(DATA, format!("not base64: {error}")))?;
    let event = json(&data).map_err(|inner| rejection(DATA, inner.to_string()))?;
    let root = format!("{DATA}.");
    let action = need(&event, &root, "action")?;
    if action != "INSERT" {
        return Ok(Reading::nothing(format!("{root}action is {action}")));
    }
    let (tagged, by_digest) = (text(&event, "tag"), text(&event, "digest"));
    let Some(named) = tagged.or(by_digest) else {
        return Err(rejection(DATA, "there is neither a tag nor a digest"));
    };
    let (registry, path) = named
        .split_once('/')
        .ok_or_else(|| rejection(DATA, format!("{named:?} is no reference with a host")))?;
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
        id: text(&envelope, "message.messageId"),
    };
    Ok(Reading::one(told.push(DATA)?))
}
