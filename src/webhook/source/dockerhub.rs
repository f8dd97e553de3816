//! Docker Hub (its documentation, "Webhooks"). It tells pushes of tags only, and no digest.

use super::payload::{Told, at, json, need, text};
use super::{Reading, Rejection};

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    let repository = need(&event, "", "repository.repo_name")?;
    let Some(tag) = text(&event, "push_data.tag") else {
        return Ok(Reading::nothing("there is no push_data.tag"));
    };
    let pushed_at = at(&event, "push_data.pushed_at").map(ToString::to_string);
    let told = Told {
        registry: "docker.io",
        repository,
        tag: Some(tag),
        id: pushed_at.as_deref(),
        ..Told::default()
    };
    Ok(Reading::one(told.push("push_data")?))
}
