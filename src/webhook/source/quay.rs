//! Quay (its documentation, "Repository Push" notifications). No digest, and nothing that tells one push from
//! the next of the same tag.

use super::payload::{Told, at, host, json, need, rejection};
use super::{Reading, Rejection};
use serde_json::Value;

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    // Quay's other notifications (builds, scans, deletions of tags) have no list of updated tags.
    let tags: Vec<&str> = match at(&event, "updated_tags") {
        Some(Value::Array(tags)) => tags.iter().filter_map(Value::as_str).collect(),
        // Very old ones: tags and their image ids.
        Some(Value::Object(tags)) => tags.keys().map(String::as_str).collect(),
        None => return Ok(Reading::nothing("there are no updated_tags")),
        Some(_) => return Err(rejection("updated_tags", "expected a list of tags")),
    };
    let registry = host(need(&event, "", "docker_url")?);
    let repository = need(&event, "", "repository")?;
    let mut reading = Reading::default();
    for (number, tag) in tags.into_iter().enumerate() {
        let told = Told {
            registry,
            repository,
            tag: Some(tag),
            ..Told::default()
        };
        reading.add(told.push(&format!("updated_tags.{number}"))?);
    }
    Ok(reading)
}
