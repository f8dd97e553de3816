//! The JSON Schemas (2020-12) of every message, made from the types that read and write them.

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::api::{Description, Jobs, Named, Nodes, Page, Stored};
use super::command::JobCommand;
use super::event::{Event, JobEvent, NodeEvent, TaskEvent};
use super::manifest::rule::RuleManifest;
use super::push::Push;
use super::record::{JobRecord, NodeRecord};
use super::task::PullTask;
use super::worker::{Heartbeat, ProgressMessage, Registration, RegistrationReply, Revocation};
use crate::domain::job::JobSpec;

/// A native manifest, as a user writes it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JobManifest {
    /// Always `prewarm.dev/v1`.
    #[schemars(extend("const" = "prewarm.dev/v1"))]
    api_version: String,
    /// Always `PrewarmJob`.
    #[schemars(extend("const" = "PrewarmJob"))]
    kind: String,
    /// The job's name and labels.
    metadata: ManifestMetadata,
    /// What the job asks for.
    spec: JobSpec,
}

/// What a user says of a job beside its specification.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ManifestMetadata {
    /// The job's name: submitting the same name again edits the job.
    name: crate::domain::name::JobName,
    /// The user's labels, kept and told with the job's events.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<std::collections::BTreeMap<String, String>>,
}

/// Every schema by its file name without the ending.
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("job", written_by_users::<JobManifest>()),
        ("push", written_by_users::<Push>()),
        ("push-rule", written_by_users::<RuleManifest>()),
        ("job-command", written_by_users::<JobCommand>()),
        ("task", of::<PullTask>()),
        ("task-event", of::<Event<TaskEvent>>()),
        ("job-event", of::<Event<JobEvent>>()),
        ("node-event", of::<Event<NodeEvent>>()),
        ("job-record", of::<JobRecord>()),
        ("node-record", of::<NodeRecord>()),
        ("registration", of::<Registration>()),
        ("registration-reply", of::<RegistrationReply>()),
        ("heartbeat", of::<Heartbeat>()),
        ("revocation", of::<Revocation>()),
        ("progress", of::<ProgressMessage>()),
        ("api-stored", of::<Stored>()),
        ("api-named", written_by_users::<Named>()),
        ("api-page", written_by_users::<Page>()),
        ("api-jobs", of::<Jobs>()),
        ("api-nodes", of::<Nodes>()),
        ("api-description", of::<Description>()),
    ]
}

/// What has a default may be left out.
fn written_by_users<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
}

/// What we write: fields with a default are always there.
fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
}
