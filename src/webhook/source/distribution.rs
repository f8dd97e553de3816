//! CNCF Distribution's notifications, and GitLab's and Azure's, which are of the same form
//! (distribution docs, "Notifications"; Microsoft Learn, "Azure Container Registry webhook reference").
//!
//! One push of an image makes an event for every blob and manifest of it. Only manifests and indexes
//! count. The children of an index come as pushes without a tag, in requests of their own.

use serde_json::Value;

use super::payload::{Told, host, is_image, is_index, json, list, need, text};
use super::{Reading, Rejection};

/// An envelope of events.
pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let envelope = json(body)?;
    let mut reading = Reading::default();
    for (number, event) in list(&envelope, "events")?.iter().enumerate() {
        // Of an event that cannot be used the envelope is not to blame: refused, it would be sent again for ever,
        // and all later ones wait behind it.
        if let Err(error) = one(event, &format!("events.{number}."), &mut reading) {
            reading.ignored.push(error.to_string());
        }
    }
    Ok(reading)
}

/// Azure's: one event, without an envelope.
pub(super) fn read_bare(body: &[u8]) -> Result<Reading, Rejection> {
    let mut reading = Reading::default();
    one(&json(body)?, "", &mut reading)?;
    Ok(reading)
}

fn one(event: &Value, root: &str, reading: &mut Reading) -> Result<(), Rejection> {
    let action = need(event, root, "action")?;
    if action != "push" {
        reading.ignored.push(format!("{root}action is {action}"));
        return Ok(());
    }
    // A registry tells the media type; one that does not tells manifests only (Azure's legacy events).
    let media_type = text(event, "target.mediaType");
    if media_type.is_some_and(|media_type| !is_image(media_type)) {
        let of = media_type.unwrap_or_default();
        reading.ignored.push(format!("{root}target is {of}"));
        return Ok(());
    }
    let registry = match text(event, "request.host") {
        Some(registry) => registry,
        None => host(need(event, root, "target.url")?),
    };
    let push = Told {
        registry,
        repository: need(event, root, "target.repository")?,
        tag: text(event, "target.tag"),
        digest: text(event, "target.digest"),
        id: text(event, "id"),
    }
    .push(&format!("{root}target"))?;
    // An index is nobody's child, so that without a tag it was pushed by digest on purpose.
    let is_index = media_type.is_some_and(is_index);
    if is_index {
        reading.pushes.push(push);
    } else {
        reading.add(push);
    }
    Ok(())
}
