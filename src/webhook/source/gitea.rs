//! Gitea and Forgejo: the event `package`. A version is a tag, without a digest; a version that is a digest is a
//! push by digest, or a child of an index.

use axum::http::HeaderMap;

use super::payload::{Told, host, json_or_form, need, text};
use super::{Reading, Rejection};

/// Both send it; Forgejo has a name of its own beside.
const DELIVERIES: [&str; 3] = ["x-gitea-delivery", "x-forgejo-delivery", "x-gogs-delivery"];

pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let event = json_or_form(headers, body)?;
    if event.get("package").is_none() {
        return Ok(Reading::nothing("the event has no package"));
    }
    let action = need(&event, "", "action")?;
    if action != "created" {
        return Ok(Reading::nothing(format!("action is {action}")));
    }
    let kind = need(&event, "", "package.type")?;
    if kind != "container" {
        return Ok(Reading::nothing(format!("package.type is {kind}")));
    }
    // `owner` is the newer form; both name the same account.
    let owner = match text(&event, "package.owner.login") {
        Some(owner) => owner,
        None => need(&event, "", "package.owner.username")?,
    };
    let name = need(&event, "", "package.name")?;
    let repository = format!("{owner}/{name}").to_lowercase();
    let delivery = DELIVERIES
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok());
    let told = Told {
        registry: host(need(&event, "", "package.html_url")?),
        repository: &repository,
        tag: Some(need(&event, "", "package.version")?),
        digest: None,
        id: delivery,
    };
    Ok(Reading::one(told.push("package")?))
}
