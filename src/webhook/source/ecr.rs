//! AWS ECR: the event as EventBridge sends it (Amazon ECR user guide, "Amazon ECR events and EventBridge"), and
//! the CloudEvent that an input transformer is told to make of it.
//!
//! The children of an index are pushes without a tag, each an event of its own.

use serde_json::Value;

use super::payload::{Told, json, need, text};
use super::{Reading, Rejection};

/// The CloudEvent's type.
pub(super) const TRANSFORMED: &str = "com.amazon.ecr.image.push";

pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let event = json(body)?;
    if text(&event, "type") == Some(TRANSFORMED) {
        return transformed(&event);
    }
    let kind = need(&event, "", "detail-type")?;
    if kind != "ECR Image Action" {
        return Ok(Reading::nothing(format!("detail-type is {kind}")));
    }
    for (path, wanted) in [("detail.action-type", "PUSH"), ("detail.result", "SUCCESS")] {
        let found = need(&event, "", path)?;
        if found != wanted {
            return Ok(Reading::nothing(format!("{path} is {found}")));
        }
    }
    let registry = registry(need(&event, "", "account")?, need(&event, "", "region")?);
    let told = Told {
        registry: &registry,
        repository: need(&event, "", "detail.repository-name")?,
        tag: text(&event, "detail.image-tag"),
        digest: text(&event, "detail.image-digest"),
        id: text(&event, "id"),
    };
    Ok(Reading::one(told.push("detail")?))
}

/// The registry's account is in its data; the region is in its source or in its data, as the transformer has it.
fn transformed(event: &Value) -> Result<Reading, Rejection> {
    let region = match text(event, "data.region") {
        Some(region) => region,
        // An ARN: arn:aws:ecr:REGION:ACCOUNT:repository/NAME
        None => text(event, "source")
            .and_then(|source| source.strip_prefix("arn:aws"))
            .and_then(|source| source.split(':').nth(2))
            .unwrap_or_default(),
    };
    let region = if region.is_empty() {
        text(event, "region").map_or_else(|| need(event, "", "data.region"), Ok)?
    } else {
        region
    };
    let registry = registry(need(event, "", "data.registryId")?, region);
    let told = Told {
        registry: &registry,
        repository: need(event, "", "data.repositoryName")?,
        tag: text(event, "data.imageTag"),
        digest: text(event, "data.imageDigest"),
        id: text(event, "id"),
    };
    Ok(Reading::one(told.push("data")?))
}

fn registry(account: &str, region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("{account}.dkr.ecr.{region}.amazonaws.com{china}")
}
