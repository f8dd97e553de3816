//! Harbor (its documentation, "Configure Webhook Notifications"): the default format, those of CloudEvents and of
//! CDEvents, and the default format of before 2.0.
//!
//! There is no id in the default format: the time and the push name the event. A push by digest comes with
//! the digest in the place of the tag, and so do the children of an index.

use serde_json::Value;

use super::cloudevents::PUBLISHED;
use super::payload::{Told, at, host, json, list, need, text};
use super::{Reading, Rejection};

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    let (data, root, id) = match text(&event, "type").unwrap_or_default() {
        "harbor.artifact.pushed" => ("data", "data.", text(&event, "id").map(str::to_owned)),
        kind if kind.starts_with(PUBLISHED) => {
            let id = text(&event, "id").map(str::to_owned);
            ("data.customData", "data.customData.", id)
        }
        "PUSH_ARTIFACT" | "pushImage" => ("event_data", "event_data.", occurred(&event)),
        other => {
            need(&event, "", "type")?;
            return Ok(Reading::nothing(format!("type is {other}")));
        }
    };
    let full_name = need(&event, "", &format!("{root}repository.repo_full_name"))?;
    let mut reading = Reading::default();
    for (number, resource) in list(&event, &format!("{data}.resources"))?
        .iter()
        .enumerate()
    {
        let place = format!("{data}.resources.{number}");
        let push = Told {
            registry: host(need(resource, &format!("{place}."), "resource_url")?),
            repository: full_name,
            tag: text(resource, "tag"),
            digest: text(resource, "digest"),
            id: id.as_deref(),
        }
        .push(&place)?;
        reading.add(push);
    }
    Ok(reading)
}

/// When it happened, in seconds, which is all that tells two pushes of the same digest apart.
fn occurred(event: &Value) -> Option<String> {
    at(event, "occur_at")?
        .as_i64()
        .map(|seconds| seconds.to_string())
}
