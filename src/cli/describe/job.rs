//! A job as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::facts::RunFacts;
use super::waits::waits;
use crate::cli::summary::failure_line;
use crate::cli::text;
use crate::domain::failure::FailureKind;
use crate::domain::job::{CompletionType, JobSpec};
use crate::domain::name::NodeName;
use crate::domain::selector::{NodeSelector, Operator, Requirement};
use crate::domain::time::Timestamp;
use crate::wire::event::FailureGroup;
use crate::wire::record::{JobRecord, JobStatus, NodeRecord};

/// How many of the slowest nodes are named.
const SLOWEST: usize = 5;
/// Where the values begin.
const COLUMN: usize = 14;

/// Everything there is to say about a job.
pub(super) fn text(
    record: &JobRecord,
    nodes: &[NodeRecord],
    facts: &RunFacts,
    now: Timestamp,
) -> String {
    let mut out = Sheet::default();
    out.field("Name", &record.metadata.name);
    out.field("Labels", labels(&record.metadata.labels));
    standing(&mut out, record, now);
    asked(&mut out, &record.spec, &record.status);
    counts(&mut out, &record.status);
    out.list("Waits for", &waits(record, nodes, facts, now));
    failures(&mut out, &record.status, facts);
    let retries: Vec<String> = facts
        .retries
        .iter()
        .map(|(kind, count)| format!("{count} after {kind}"))
        .collect();
    out.field("Retries", retries.join(", "));
    let slowest = facts.slowest(SLOWEST);
    if !slowest.is_empty() {
        out.heading("Slowest nodes");
        let rows: Vec<Vec<String>> = slowest
            .into_iter()
            .map(|(node, effort)| {
                vec![
                    format!("  {node}"),
                    text::duration(effort.took),
                    text::bytes(effort.bytes),
                ]
            })
            .collect();
        out.text.push_str(&text::columns(&rows));
    }
    out.text
}

fn standing(out: &mut Sheet, record: &JobRecord, now: Timestamp) {
    let status = &record.status;
    let phase = match status.outcome {
        Some(outcome) => format!("{:?}: {outcome:?}", status.phase),
        None => format!("{:?}", status.phase),
    };
    out.field("Phase", phase);
    out.field("Message", &status.message);
    let ago = |time: Timestamp| format!("{time} ({} ago)", text::age(now.since(time)));
    out.field("Created", ago(record.metadata.created_at));
    out.field(
        "Run",
        format!(
            "generation {}, round {}",
            record.metadata.generation, status.round
        ),
    );
    if let Some(started) = status.started_at {
        let end = status.completed_at.unwrap_or(now);
        let word = if status.completed_at.is_some() {
            "took"
        } else {
            "running for"
        };
        out.field(
            "Started",
            format!("{started}, {word} {}", text::duration(end.since(started))),
        );
    }
}

fn asked(out: &mut Sheet, spec: &JobSpec, status: &JobStatus) {
    let images: Vec<String> = spec
        .images
        .iter()
        .map(|image| {
            let resolved = status
                .images
                .iter()
                .find(|resolved| resolved.image == *image);
            match resolved {
                Some(resolved) => match (&resolved.digest, &resolved.problem) {
                    (Some(digest), _) => format!("{image} = {digest}"),
                    (None, Some(problem)) => format!("{image}, resolved by each node: {problem}"),
                    (None, None) => image.to_string(),
                },
                None => image.to_string(),
            }
        })
        .collect();
    out.list("Images", &images);
    out.field("Nodes", selector(&spec.selector));
    out.field(
        "Parallelism",
        format!("{} at once, priority {}", spec.parallelism, spec.priority),
    );
    let policy = &spec.pull_policy;
    let timeout = format!("{}s an attempt", policy.timeout_seconds);
    let retries = match policy.backoff_limit {
        1 => "1 retry".to_owned(),
        limit => format!("{limit} retries"),
    };
    out.field(
        "Pulls",
        format!("{:?}, {timeout}, {retries}", spec.image_pull_policy),
    );
    out.field("Completion", completion(spec));
    let mut more = Vec::new();
    if let Some(platform) = &spec.platform {
        more.push(format!("platform {platform}"));
    }
    if spec.pin {
        more.push("pinned".to_owned());
    }
    if !spec.unpack {
        more.push("not unpacked".to_owned());
    }
    if let Some(policy) = &spec.failure_policy {
        more.push(format!("fails beyond {} failed nodes", policy.max_failed));
    }
    if !spec.pull_secrets.is_empty() {
        more.push(format!("pull secrets {}", spec.pull_secrets.join(", ")));
    }
    out.field("Also", more.join(", "));
}

fn completion(spec: &JobSpec) -> String {
    let policy = &spec.completion_policy;
    let mut words = match policy.kind {
        CompletionType::Always => "ends when every node had its turn".to_owned(),
        CompletionType::Never => "keeps nodes warm until deleted".to_owned(),
    };
    for (value, what) in [
        (policy.active_deadline_seconds, "at the latest after"),
        (policy.ttl_seconds_after_finished, "deleted after another"),
        (policy.repeat_seconds, "checks again every"),
    ] {
        if let Some(seconds) = value {
            let time = text::duration(std::time::Duration::from_secs(seconds.into()));
            let _ = write!(words, ", {what} {time}");
        }
    }
    words
}

fn counts(out: &mut Sheet, status: &JobStatus) {
    let counts = &status.counts;
    let parts = [
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
        (counts.active, "active"),
        (counts.pending, "pending"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    let parts = if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    };
    out.field(
        "Progress",
        format!("{}: {parts}", text::count(counts.desired as usize, "pull")),
    );
    let nodes = &status.nodes;
    out.field(
        "",
        format!(
            "{}: {} with every image, {} with a failure",
            text::count(nodes.desired as usize, "node"),
            nodes.succeeded,
            nodes.failed
        ),
    );
    out.field(
        "Bytes",
        format!(
            "{} from registries, {} from elsewhere",
            text::bytes(status.bytes_registry),
            text::bytes(status.bytes_elsewhere)
        ),
    );
}

/// By reason, with every node that told; then what only the record says.
fn failures(out: &mut Sheet, status: &JobStatus, facts: &RunFacts) {
    if facts.failures.is_empty() && status.failures.is_empty() {
        return;
    }
    out.heading("Failures");
    let mut told: BTreeMap<FailureKind, Vec<(&str, &[NodeName])>> = BTreeMap::new();
    for ((kind, message), nodes) in &facts.failures {
        told.entry(*kind).or_default().push((message, nodes));
    }
    for (kind, reasons) in &told {
        let group = status.failures.iter().find(|group| group.kind == *kind);
        let pulls: usize = reasons.iter().map(|(_, nodes)| nodes.len()).sum();
        let surplus = group.map_or(0, |group| (group.pulls as usize).saturating_sub(pulls));
        let all = text::count(pulls + surplus, "pull");
        let _ = writeln!(out.text, "  {kind}: {all}");
        for (message, nodes) in reasons {
            let nodes: BTreeSet<&NodeName> = nodes.iter().collect();
            let _ = writeln!(out.text, "    {message}\n      on {}", listed(&nodes));
        }
        if let Some(group) = group.filter(|_| surplus > 0) {
            beyond(out, group, surplus, reasons);
        }
    }
    // The dispatcher's own verdicts (a deadline, an absent node) are in no worker's event.
    for group in &status.failures {
        if !told.contains_key(&group.kind) {
            out.text.push_str(&failure_line(group));
        }
    }
    if facts.failures_beyond > 0 {
        let _ = writeln!(
            out.text,
            "  and {} more",
            text::count(facts.failures_beyond, "pull")
        );
    }
}

/// The pulls of a kind that the dispatcher counts and no event tells of: those that were never released when the
/// deadline passed, and those whose events are gone.
fn beyond(out: &mut Sheet, group: &FailureGroup, surplus: usize, told: &[(&str, &[NodeName])]) {
    let _ = write!(
        out.text,
        "    by the job's record, {} more",
        text::count(surplus, "pull")
    );
    if told.iter().all(|(message, _)| *message != group.message) {
        let _ = write!(out.text, ": {}", group.message);
    }
    out.text.push('\n');
    let told: BTreeSet<&NodeName> = told.iter().flat_map(|(_, nodes)| *nodes).collect();
    let mut nodes: BTreeSet<&NodeName> = group.nodes.iter().collect();
    nodes.retain(|node| !told.contains(node));
    if !nodes.is_empty() {
        let _ = writeln!(out.text, "      on {}", listed(&nodes));
    }
}

fn listed(nodes: &BTreeSet<&NodeName>) -> String {
    let nodes: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
    nodes.join(", ")
}

/// Which nodes, in words.
pub(super) fn selector(selector: &NodeSelector) -> String {
    if !selector.names.is_empty() {
        return text::some_of(&selector.names, 10);
    }
    let mut parts: Vec<String> = selector
        .match_labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.extend(selector.match_expressions.iter().map(requirement));
    if parts.is_empty() {
        "all nodes".to_owned()
    } else {
        parts.join(", ")
    }
}

/// As `kubectl` writes it in `-l`.
fn requirement(requirement: &Requirement) -> String {
    let Requirement {
        key,
        operator,
        values,
    } = requirement;
    match operator {
        Operator::In => format!("{key} in ({})", values.join(", ")),
        Operator::NotIn => format!("{key} notin ({})", values.join(", ")),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

/// `k=v,k=v`.
pub(super) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.join(",")
}

/// Names and values, one below the other. What is empty is left out.
#[derive(Default)]
pub(super) struct Sheet {
    pub(super) text: String,
}

impl Sheet {
    pub(super) fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = value.to_string();
        if !value.is_empty() {
            let name = if name.is_empty() {
                String::new()
            } else {
                format!("{name}:")
            };
            let _ = writeln!(self.text, "{name:<COLUMN$}{value}");
        }
    }

    pub(super) fn list(&mut self, name: &str, values: &[String]) {
        for (index, value) in values.iter().enumerate() {
            self.field(if index == 0 { name } else { "" }, value);
        }
    }

    pub(super) fn heading(&mut self, name: &str) {
        let _ = writeln!(self.text, "{name}:");
    }
}
