//! Sonatype Nexus 3: `rm:repository:component` and `rm:repository:asset` (its documentation, "Example Headers
//! and Payloads").
//!
//! The payload names no registry: the push's is the repository's name in Nexus, which the settings map to a
//! host and port. There is no digest. An asset is named by its path, `v2/NAME/manifests/REFERENCE`.

use axum::http::HeaderMap;

use super::payload::{Told, at, json, need, text};
use super::{Reading, Rejection};

const DELIVERY: &str = "x-nexus-webhook-delivery";

pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    let Some((root, what)) = ["component", "asset"]
        .into_iter()
        .find_map(|root| Some((root, at(&event, root)?)))
    else {
        return Ok(Reading::nothing(
            "the event is of no component and no asset",
        ));
    };
    let place = format!("{root}.");
    let action = need(&event, "", "action")?;
    if !matches!(action, "CREATED" | "UPDATED") {
        return Ok(Reading::nothing(format!("action is {action}")));
    }
    let format = need(what, &place, "format")?;
    if format != "docker" {
        return Ok(Reading::nothing(format!("{place}format is {format}")));
    }
    let name = need(what, &place, "name")?;
    let (repository, reference) = if root == "component" {
        (name, need(what, &place, "version")?)
    } else {
        match name
            .trim_start_matches('/')
            .strip_prefix("v2/")
            .and_then(|path| path.split_once("/manifests/"))
        {
            Some(named) => named,
            None => return Ok(Reading::nothing(format!("{name} is no manifest"))),
        }
    };
    let delivery = headers.get(DELIVERY).and_then(|value| value.to_str().ok());
    let told = Told {
        registry: need(&event, "", "repositoryName")?,
        repository,
        tag: Some(reference),
        digest: None,
        id: delivery.or(text(&event, "timestamp")),
    };
    Ok(Reading::one(told.push(root)?))
}
