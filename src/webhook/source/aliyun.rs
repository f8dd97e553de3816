//! Alibaba Cloud Container Registry: a repository's trigger (Alibaba's documentation, "Manage triggers"), and the
//! CloudEvent of EventBridge.
//!
//! The host is that of the personal edition; the settings map it to another edition's.

use super::payload::{Told, json, need, text};
use super::{Reading, Rejection};

/// The CloudEvent's type.
const COMPLETED: &str = "cr:Artifact:PushCompleted";

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    if let Some(kind) = text(&event, "type") {
        if kind != COMPLETED {
            return Ok(Reading::nothing(format!("type is {kind}")));
        }
        let registry = registry(need(&event, "", "aliyunregionid")?);
        let repository = format!(
            "{}/{}",
            need(&event, "", "data.repoNamespaceName")?,
            need(&event, "", "data.repoName")?
        );
        let told = Told {
            registry: &registry,
            repository: &repository,
            tag: text(&event, "data.tag"),
            digest: text(&event, "data.digest"),
            id: text(&event, "id"),
        };
        return Ok(Reading::one(told.push("data")?));
    }
    if event.get("push_data").is_none() {
        return Ok(Reading::nothing("there is no push_data"));
    }
    let registry = registry(need(&event, "", "repository.region")?);
    let told = Told {
        registry: &registry,
        repository: need(&event, "", "repository.repo_full_name")?,
        tag: text(&event, "push_data.tag"),
        digest: text(&event, "push_data.digest"),
        id: text(&event, "push_data.pushed_at"),
    };
    Ok(Reading::one(told.push("push_data")?))
}

fn registry(region: &str) -> String {
    format!("registry.{region}.aliyuncs.com")
}
