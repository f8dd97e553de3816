//! JFrog Artifactory: the domain `docker` (JFrog's documentation, "Event Types").
//!
//! The name is as with the *repository path* method, `host/repository-key/image`; for the subdomain and port
//! methods, and for virtual repositories, the settings map `host/repository-key` to the host. An index is
//! pushed after its children; those have no tag, or their digest in its place. Without a base URL of its own,
//! Artifactory tells no origin: the registry is the repository's key then, which the settings map as well.

use super::payload::{Told, host, json, need, text};
use super::{Reading, Rejection};

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    let (domain, kind) = (need(&event, "", "domain")?, need(&event, "", "event_type")?);
    if (domain, kind) != ("docker", "pushed") {
        return Ok(Reading::nothing(format!("the event is {domain} {kind}")));
    }
    let (key, name) = (
        need(&event, "", "data.repo_key")?,
        need(&event, "", "data.image_name")?,
    );
    let (registry, repository) = match text(&event, "jpd_origin") {
        Some(origin) => (host(origin), format!("{key}/{name}")),
        None => (key, name.to_owned()),
    };
    let digest = text(&event, "data.sha256").map(|hash| {
        if hash.contains(':') {
            hash.to_owned()
        } else {
            format!("sha256:{hash}")
        }
    });
    // A digest in the place of the tag is written `sha256__…` in Artifactory's paths.
    let tag = text(&event, "data.tag").map(|tag| tag.replace("sha256__", "sha256:"));
    let told = Told {
        registry,
        repository: &repository,
        tag: tag.as_deref(),
        digest: digest.as_deref(),
        id: None,
    };
    Ok(Reading::one(told.push("data")?))
}
