//! Events in every source's own words.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prewarm::webhook::source::Source;
use serde_json::{Value, json};

pub(crate) const REPOSITORY: &str = "team/app";

/// Something that happened to an image of `team/app`.
#[derive(Clone)]
pub(crate) struct Event {
    pub(crate) tag: Option<String>,
    pub(crate) digest: String,
    /// Names the event where the source has names for events.
    pub(crate) id: u64,
    pub(crate) index: bool,
    /// A deletion, or where the source tells none, something else that is no push.
    pub(crate) gone: bool,
}

pub(crate) fn digest(number: u64) -> String {
    format!("sha256:{number:064x}")
}

pub(crate) fn tagged(tag: &str, id: u64) -> Event {
    Event {
        tag: Some(tag.to_owned()),
        digest: digest(id),
        id,
        index: false,
        gone: false,
    }
}

/// The registry that the source's events below are of.
pub(crate) fn registry(source: Source) -> &'static str {
    match source {
        Source::Quay => "quay.io",
        Source::DockerHub => "docker.io",
        Source::GitHub => "ghcr.io",
        Source::Ecr => "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        Source::Gar => "europe-docker.pkg.dev",
        Source::Aliyun => "registry.cn-hangzhou.aliyuncs.com",
        _ => "r.example.com",
    }
}

/// Whether a push of a tag has a digest.
pub(crate) fn tells_digests(source: Source) -> bool {
    !matches!(
        source,
        Source::Quay | Source::DockerHub | Source::Gitea | Source::Nexus
    )
}

fn distribution(event: &Event) -> Value {
    let kind = if event.index { "index" } else { "manifest" };
    let mut target = json!({
        "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": event.digest, "size": 708,
        "repository": REPOSITORY, "url": format!("https://r.example.com/v2/{REPOSITORY}/manifests/{}", event.digest),
    });
    if let Some(tag) = &event.tag {
        target["tag"] = json!(tag);
    }
    json!({
        "id": format!("event-{}", event.id), "timestamp": "2026-01-02T15:04:05Z",
        "action": if event.gone { "delete" } else { "push" },
        "target": target, "request": {"id": "r", "host": "r.example.com", "method": "PUT"}, "actor": {},
    })
}

fn harbor(event: &Event) -> Value {
    let reference = event.tag.as_ref().unwrap_or(&event.digest);
    json!({
        "type": if event.gone { "DELETE_ARTIFACT" } else { "PUSH_ARTIFACT" }, "occur_at": event.id, "operator": "admin",
        "event_data": {
            "resources": [{"digest": event.digest, "tag": reference, "resource_url": format!("r.example.com/{REPOSITORY}:{reference}")}],
            "repository": {"name": "app", "namespace": "team", "repo_full_name": REPOSITORY, "repo_type": "private"},
        },
    })
}

fn github(event: &Event) -> Value {
    let tag = event.tag.clone().unwrap_or_default();
    json!({
        "action": if event.gone { "deleted" } else { "published" },
        "registry_package": {
            "name": "app", "package_type": "CONTAINER", "owner": {"login": "Team"},
            "package_version": {
                "version": event.digest, "package_url": format!("ghcr.io/Team/app:{tag}"),
                "container_metadata": {"tag": {"name": tag, "digest": event.digest}},
            },
        },
    })
}

fn ecr(event: &Event) -> Value {
    let mut value = json!({
        "version": "0", "id": format!("event-{}", event.id), "detail-type": "ECR Image Action", "source": "aws.ecr",
        "account": "123456789012", "region": "eu-west-1", "detail": {
            "result": "SUCCESS", "repository-name": REPOSITORY, "image-digest": event.digest,
            "action-type": if event.gone { "DELETE" } else { "PUSH" },
        },
    });
    if let Some(tag) = &event.tag {
        value["detail"]["image-tag"] = json!(tag);
    }
    value
}

fn gar(event: &Event) -> Value {
    let name = format!("europe-docker.pkg.dev/{REPOSITORY}");
    let mut data = json!({"action": if event.gone { "DELETE" } else { "INSERT" }, "digest": format!("{name}@{}", event.digest)});
    if let Some(tag) = &event.tag {
        data["tag"] = json!(format!("{name}:{tag}"));
    }
    json!({
        "message": {"data": STANDARD.encode(data.to_string()), "messageId": event.id.to_string(), "publishTime": "2026-01-02T15:04:05Z"},
        "subscription": "projects/p/subscriptions/s",
    })
}

/// The payload in the source's words.
pub(crate) fn payload(source: Source, event: &Event) -> Value {
    let reference = event.tag.as_ref().unwrap_or(&event.digest);
    match source {
        Source::Distribution | Source::GitLab => json!({"events": [distribution(event)]}),
        Source::Acr => distribution(event),
        Source::Harbor => harbor(event),
        Source::Quay if event.gone => {
            json!({"name": "app", "build_id": "b", "docker_url": "quay.io/team/app"})
        }
        Source::Quay => json!({
            "name": "app", "repository": REPOSITORY, "namespace": "team", "docker_url": "quay.io/team/app",
            "homepage": "https://quay.io/repository/team/app", "updated_tags": event.tag.iter().collect::<Vec<_>>(),
        }),
        Source::DockerHub => {
            let tag = event.tag.as_ref().filter(|_| !event.gone);
            json!({"callback_url": "https://registry.hub.docker.com/u/team/app/hook/1/",
                "push_data": {"pushed_at": event.id, "pusher": "p", "tag": tag}, "repository": {"repo_name": REPOSITORY}})
        }
        Source::GitHub => github(event),
        Source::Ecr => ecr(event),
        Source::Gar => gar(event),
        Source::Gitea => json!({
            "action": if event.gone { "deleted" } else { "created" }, "package": {
                "owner": {"login": "Team"}, "type": "container", "name": "app", "version": reference,
                "html_url": format!("https://r.example.com/Team/-/packages/container/app/{reference}"),
            },
        }),
        Source::JFrog => json!({
            "domain": "docker", "event_type": if event.gone { "deleted" } else { "pushed" },
            "data": {"repo_key": "team", "image_name": "app", "tag": reference.replace("sha256:", "sha256__"),
                "sha256": event.digest.trim_start_matches("sha256:"), "path": "app/1/manifest.json"},
            "jpd_origin": "https://r.example.com",
        }),
        Source::Nexus => json!({
            "timestamp": "2026-01-02T15:04:05Z", "repositoryName": "docker-hosted",
            "action": if event.gone { "DELETED" } else { "CREATED" },
            "component": {"format": "docker", "name": REPOSITORY, "version": reference},
        }),
        Source::Aliyun if event.gone => json!({"type": "cr:Artifact:DeletionCompleted", "id": "1"}),
        Source::Aliyun => json!({
            "push_data": {"digest": event.digest, "pushed_at": event.id.to_string(), "tag": event.tag},
            "repository": {"repo_full_name": REPOSITORY, "region": "cn-hangzhou"},
        }),
        Source::CloudEvents => {
            let tag = event
                .tag
                .as_ref()
                .map_or(String::new(), |tag| format!("&tag={tag}"));
            let kind = if event.gone { "deleted" } else { "published" };
            json!({
                "context": {"id": format!("event-{}", event.id), "source": "/ci", "type": format!("dev.cdevents.artifact.{kind}.0.2.0")},
                "subject": {"id": format!("pkg:oci/app@{}?repository_url=r.example.com%2Fteam/app{tag}", event.digest.replace(':', "%3A")),
                    "type": "artifact", "content": {}},
            })
        }
        Source::Generic if event.gone => json!([]),
        Source::Generic => {
            let mut push = json!({"registry": "r.example.com", "repository": REPOSITORY, "digest": event.digest, "eventId": format!("event-{}", event.id)});
            if let Some(tag) = &event.tag {
                push["tag"] = json!(tag);
            }
            push
        }
    }
}

/// The headers that name the event, where they do.
pub(crate) fn headers(source: Source, event: &Event) -> Vec<(&'static str, String)> {
    let id = format!("delivery-{}", event.id);
    match source {
        Source::GitHub => vec![
            ("x-github-event", "registry_package".to_owned()),
            ("x-github-delivery", id),
        ],
        Source::Gitea => vec![
            ("x-gitea-event", "package".to_owned()),
            ("x-gitea-delivery", id),
        ],
        Source::Nexus => vec![
            ("x-nexus-webhook-id", "rm:repository:component".to_owned()),
            ("x-nexus-webhook-delivery", id),
        ],
        _ => Vec::new(),
    }
}
