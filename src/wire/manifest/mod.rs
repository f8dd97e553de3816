//! Manifests: what a user writes to ask for a job, native or Kruise, JSON or YAML.
//!
//! A manifest is checked as a whole: every problem at once, each with its path. Unknown fields are
//! problems, because a misspelt field that is silently ignored is a job that does something else.

mod fields;
mod kruise;
mod native;
mod patterns;
pub mod rule;

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::Value;

use super::event::Problem;
use crate::domain::job::JobSpec;
use crate::domain::name::JobName;
use crate::domain::trace::TraceOrigin;
use fields::Fields;

/// Largest manifest in bytes: what a broker takes in one message by default.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Largest job in bytes, as its manifest in JSON: with what is told of it, its record has to fit into one message.
pub const MAX_JOB_BYTES: usize = 384 * 1024;
/// Most documents in one file.
pub const MAX_DOCUMENTS: usize = 1_000;

/// The native manifest's `apiVersion`.
pub const API_VERSION: &str = "prewarm.dev/v1";
/// The native manifest's `kind`.
pub const KIND: &str = "PrewarmJob";

/// A checked manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submission {
    /// The job's name; a Kruise job of another namespace than `default` is `<namespace>.<name>`.
    pub name: JobName,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// What is asked.
    pub spec: JobSpec,
    /// The trace it belongs to. No part of the manifest: it comes with the message, as a header.
    pub trace: Option<TraceOrigin>,
}

impl Submission {
    /// The submission as a native manifest, which parses to the same submission.
    #[must_use]
    pub fn to_manifest(&self) -> Value {
        let mut metadata = serde_json::json!({ "name": self.name });
        if !self.labels.is_empty() {
            metadata["labels"] = serde_json::json!(self.labels);
        }
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "spec": self.spec,
        })
    }
}

/// A manifest that cannot become a job.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", list(.problems))]
pub struct Rejection {
    /// The job it names, if that much could be read.
    pub name: Option<JobName>,
    /// Everything that is wrong with it; at least one.
    pub problems: Vec<Problem>,
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl Rejection {
    fn whole(message: impl Into<String>) -> Self {
        let problem = Problem {
            path: String::new(),
            message: message.into(),
        };
        Self {
            name: None,
            problems: vec![problem],
        }
    }
}

/// Reads one manifest, as it comes by the broker.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Submission, Rejection> {
    let mut documents = documents(bytes)?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => read(&document),
        (None, _) => Err(Rejection::whole("the manifest is empty")),
        (Some(_), false) => Err(Rejection::whole(
            "one message carries one manifest; publish each document by itself",
        )),
    }
}

/// Splits a file into its documents (YAML 1.2, section 9.2), leaving out empty ones.
///
/// # Errors
/// The file is neither JSON nor YAML, or too large.
pub fn documents(bytes: &[u8]) -> Result<Vec<Value>, Rejection> {
    if bytes.len() > MAX_BYTES {
        let length = bytes.len();
        return Err(Rejection::whole(format!(
            "the manifest has {length} bytes; at most {MAX_BYTES} are allowed"
        )));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Rejection::whole(format!("the manifest is not UTF-8 text: {error}")))?;
    let values = if text.trim_start().starts_with('{') {
        match json(text) {
            Ok(value) => vec![value],
            // YAML's flow style begins so, too.
            Err(error) => yaml(text).map_err(|yaml| match is_flow(text) {
                true => yaml,
                false => Rejection::whole(format!("the manifest is not JSON: {error}")),
            })?,
        }
    } else {
        yaml(text)?
    };
    if values.len() > MAX_DOCUMENTS {
        return Err(Rejection::whole(format!(
            "a file has at most {MAX_DOCUMENTS} documents"
        )));
    }
    Ok(values
        .into_iter()
        .filter(|value| !value.is_null())
        .collect())
}

fn json(text: &str) -> serde_json::Result<Value> {
    let mut stream = serde_json::Deserializer::from_str(text);
    let value = Value::deserialize(&mut stream)?;
    stream.end().map(|()| value)
}

/// Whether an object's first key is written as only YAML writes it.
fn is_flow(text: &str) -> bool {
    let inside = text.trim_start().trim_start_matches('{').trim_start();
    !inside.is_empty() && !inside.starts_with(['"', '}'])
}

fn yaml(text: &str) -> Result<Vec<Value>, Rejection> {
    // YAML 1.2, section 10.3.2: only `true` and `false` are booleans, so that a label `y` stays a text.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        Rejection::whole(format!("the manifest is neither JSON nor YAML: {error}"))
    })
}

/// Checks one document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(document: &Value) -> Result<Submission, Rejection> {
    let mut problems = Vec::new();
    let mut name = None;
    let spec = Fields::open("", document, &mut problems)
        .and_then(|fields| read_root(fields, &mut name, &mut problems));
    match (name, spec) {
        (Some((name, labels)), Some(spec)) if problems.is_empty() => fits(Submission {
            name,
            labels,
            spec,
            trace: None,
        }),
        (name, _) => {
            problems.sort_by(|a, b| a.path.cmp(&b.path));
            Err(Rejection {
                name: name.map(|(name, _)| name),
                problems,
            })
        }
    }
}

fn fits(submission: Submission) -> Result<Submission, Rejection> {
    let bytes = submission.to_manifest().to_string().len();
    if bytes <= MAX_JOB_BYTES {
        return Ok(submission);
    }
    let message = format!(
        "the job has {bytes} bytes as JSON; at most {MAX_JOB_BYTES} are allowed: choose nodes by labels instead of names, or make several jobs"
    );
    Err(Rejection {
        name: Some(submission.name),
        ..Rejection::whole(message)
    })
}

type Named = (JobName, BTreeMap<String, String>);

fn read_root(
    mut root: Fields<'_>,
    name: &mut Option<Named>,
    problems: &mut Vec<Problem>,
) -> Option<JobSpec> {
    for (key, ours) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if !root.has(key) {
            fields::note(problems, key, format!("is missing; a job has {ours:?}"));
        }
    }
    let api_version = root.text("apiVersion", problems);
    let kind = root.text("kind", problems);
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        return None;
    };
    let read_spec = match (api_version.as_str(), kind.as_str()) {
        (API_VERSION, KIND) => native::spec,
        (kruise::V1ALPHA1 | kruise::V1BETA1, "ImagePullJob") => kruise::image_pull_job,
        (kruise::V1ALPHA1 | kruise::V1BETA1, "ImageListPullJob") => kruise::image_list_pull_job,
        _ => {
            let said = format!("{api_version} {kind}");
            let message = format!(
                "{said:?} is not known; use {API_VERSION} {KIND}, or {} or {} with ImagePullJob or ImageListPullJob",
                kruise::V1ALPHA1,
                kruise::V1BETA1
            );
            problems.push(Problem {
                path: "kind".to_owned(),
                message,
            });
            return None;
        }
    };
    *name = root
        .nested("metadata", problems)
        .and_then(|metadata| read_metadata(metadata, problems));
    root.ignore(&["status"]);
    let spec = root
        .nested("spec", problems)
        .and_then(|spec| read_spec(spec, problems));
    root.close(problems);
    spec
}

/// Fields of `metadata` that servers write: `kubectl get -o yaml` and `prewarm get -o yaml` print
/// them, and applying that output again has to work.
const SERVER_METADATA: [&str; 14] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
    "generation",
    "createdAt",
    "requestSequence",
    "trace",
];

fn read_metadata(mut metadata: Fields<'_>, problems: &mut Vec<Problem>) -> Option<Named> {
    metadata.ignore(&SERVER_METADATA);
    let name: Option<JobName> = metadata.required("name", problems, Fields::parsed);
    let namespace: Option<JobName> = metadata.parsed("namespace", problems);
    let labels = metadata.labels("labels", problems);
    let path = metadata.path("name");
    metadata.close(problems);
    let name = match namespace.filter(|namespace| namespace.as_str() != "default") {
        None => name?,
        Some(namespace) => {
            let name = format!("{namespace}.{}", name?);
            match name.parse() {
                Ok(name) => name,
                Err(error) => {
                    let message = format!("with its namespace the job's name {error}");
                    problems.push(Problem { path, message });
                    return None;
                }
            }
        }
    };
    Some((name, labels))
}

#[cfg(test)]
mod tests;
