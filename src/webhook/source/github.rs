//! GitHub Packages (its documentation, "Webhook events and payloads": `package`, `registry_package`).
//!
//! The children of an index are versions without a tag, each an event of its own.

use axum::http::HeaderMap;

use super::payload::{Told, at, host, json_or_form, need, text};
use super::{Reading, Rejection};

const EVENT: &str = "x-github-event";
const DELIVERY: &str = "x-github-delivery";

pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let event = json_or_form(headers, body)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some((root, package)) = ["package", "registry_package"]
        .into_iter()
        .find_map(|root| Some((root, at(&event, root)?)))
    else {
        let what = header(EVENT).unwrap_or("one without a package");
        return Ok(Reading::nothing(format!("the event is {what}")));
    };
    let root = format!("{root}.");
    let action = need(&event, "", "action")?;
    if !matches!(action, "published" | "updated") {
        return Ok(Reading::nothing(format!("action is {action}")));
    }
    let kind = need(package, &root, "package_type")?;
    let metadata =
        at(package, "package_version.container_metadata").filter(|found| found.is_object());
    if !["container", "docker"].contains(&kind.to_lowercase().as_str()) && metadata.is_none() {
        return Ok(Reading::nothing(format!("{root}package_type is {kind}")));
    }
    // `ghcr.io/owner/name:tag`, with nothing behind the colon where there is no tag.
    let named =
        text(package, "package_version.package_url").map(|url| match url.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => url,
        });
    let (registry, repository) = match named.and_then(|name| name.split_once('/')) {
        Some((registry, repository)) => (host(registry), repository.to_lowercase()),
        None => {
            let owner = need(package, &root, "owner.login")?;
            let name = need(package, &root, "name")?;
            ("ghcr.io", format!("{owner}/{name}").to_lowercase())
        }
    };
    let digest = [
        "package_version.version",
        "package_version.container_metadata.tag.digest",
        "package_version.container_metadata.manifest.digest",
    ]
    .into_iter()
    .filter_map(|path| text(package, path))
    .find(|digest| digest.starts_with("sha256:"));
    let told = Told {
        registry,
        repository: &repository,
        tag: text(package, "package_version.container_metadata.tag.name"),
        digest,
        id: header(DELIVERY),
    };
    Ok(Reading::one(told.push(&format!("{root}package_version"))?))
}
