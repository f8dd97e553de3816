//! Push rules: which pushes of images become which jobs.
//!
//! A rule is checked as a whole when it is read, its job template too: it is filled in with samples,
//! and what comes out has to be a job.

mod form;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::{Fields, note};
use super::patterns::Patterns;
use super::{API_VERSION, KIND as JOB_KIND, Rejection, Submission, read as read_job};
use crate::domain::image::Digest;
use crate::domain::name::JobName;
use crate::wire::event::Problem;
use crate::wire::push::Push;

pub(in crate::wire) use form::RuleManifest;

/// The `kind` of a rule's manifest.
pub const KIND: &str = "PushRule";
/// Seconds for which a digest that made a job makes no other one, unless the rule says.
const DEFAULT_DEBOUNCE: u32 = 10;
/// Most seconds of that.
const MAX_DEBOUNCE: u32 = 86_400;
/// Most characters of the rule's name, and of the repository, in the name of a job.
const MAX_NAME_PART: usize = 24;
/// Most characters of a label's value (Kubernetes, "Labels and Selectors": syntax).
const MAX_LABEL_VALUE: usize = 63;
/// The label of a job that says which rule made it.
pub const RULE_LABEL: &str = "prewarm.dev/rule";
/// The label of a job that says who told of the push.
pub const SOURCE_LABEL: &str = "prewarm.dev/source";

/// What a template may name.
const PLACEHOLDERS: [&str; 5] = ["registry", "repository", "tag", "digest", "shortDigest"];

/// A checked rule.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct PushRule {
    /// Its name: applying the same name again replaces the rule.
    pub name: JobName,
    document: Value,
    registry: Patterns,
    repository: Patterns,
    tag: Patterns,
    semver: Option<semver::VersionReq>,
    source: Patterns,
    debounce: Duration,
    template: Template,
}

impl PartialEq for PushRule {
    fn eq(&self, other: &Self) -> bool {
        self.document == other.document
    }
}

/// What the job of a push looks like.
#[derive(Clone, Debug, Default)]
struct Template {
    name: Option<String>,
    labels: BTreeMap<String, String>,
    spec: Map<String, Value>,
}

impl TryFrom<Value> for PushRule {
    type Error = Rejection;

    fn try_from(document: Value) -> Result<Self, Rejection> {
        read(&document)
    }
}

impl From<PushRule> for Value {
    fn from(rule: PushRule) -> Self {
        rule.document
    }
}

/// Whether a document says that it is a rule.
#[must_use]
pub fn is_rule(document: &Value) -> bool {
    document.get("kind").and_then(Value::as_str) == Some(KIND)
}

/// Reads and checks a rule.
///
/// # Errors
/// Everything that is wrong with it, with the paths of a rule's fields.
pub fn read(document: &Value) -> Result<PushRule, Rejection> {
    let mut problems = Vec::new();
    let rule = Fields::open("", document, &mut problems)
        .and_then(|root| read_root(root, document, &mut problems));
    let name = rule.as_ref().map(|rule| rule.name.clone());
    if let Some(rule) = &rule
        && problems.is_empty()
    {
        rule.try_template(&mut problems);
    }
    match rule {
        Some(rule) if problems.is_empty() => Ok(rule),
        _ => {
            problems.sort_by(|a, b| a.path.cmp(&b.path));
            problems.dedup();
            Err(Rejection { name, problems })
        }
    }
}

fn read_root(
    mut root: Fields<'_>,
    document: &Value,
    problems: &mut Vec<Problem>,
) -> Option<PushRule> {
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found: Option<String> = root.required(key, problems, Fields::text);
        if found.as_deref().is_some_and(|found| found != expected) {
            note(problems, key, format!("expected {expected}"));
        }
    }
    let named = root
        .nested("metadata", problems)
        .and_then(|metadata| super::read_metadata(metadata, problems));
    root.ignore(&["status"]);
    let spec = root
        .nested("spec", problems)
        .and_then(|spec| read_spec(spec, problems));
    root.close(problems);
    let ((name, _), spec) = (named?, spec?);
    Some(PushRule {
        name,
        document: document.clone(),
        ..spec
    })
}

fn read_spec(mut spec: Fields<'_>, problems: &mut Vec<Problem>) -> Option<PushRule> {
    let registry = spec.required("registry", problems, patterns);
    let repository = spec.required("repository", problems, patterns);
    let tag = patterns(&mut spec, "tag", problems).unwrap_or_default();
    let source = patterns(&mut spec, "source", problems).unwrap_or_default();
    let semver = spec.parsed("semver", problems);
    let debounce = spec.integer("debounceSeconds", (0, i64::from(MAX_DEBOUNCE)), problems);
    let debounce = debounce.map_or(DEFAULT_DEBOUNCE.into(), i64::unsigned_abs);
    let template = match spec.optional("job", problems) {
        Some(job) => read_template(job, problems),
        None => Template::default(),
    };
    spec.close(problems);
    Some(PushRule {
        // Replaced by the one in the metadata.
        name: "rule".parse().ok()?,
        document: Value::Null,
        registry: registry?,
        repository: repository?,
        tag,
        semver,
        source,
        debounce: Duration::from_secs(debounce),
        template,
    })
}

fn patterns(
    fields: &mut Fields<'_>,
    key: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<Patterns> {
    let texts = fields.texts(key, problems)?;
    let path = fields.path(key);
    Patterns::new(&texts)
        .map_err(|error| note(problems, &path, error))
        .ok()
}

fn read_template(mut job: Fields<'_>, problems: &mut Vec<Problem>) -> Template {
    let name = job.text("name", problems);
    let labels = job.text_map("labels", problems);
    let spec = job.value("spec").cloned().unwrap_or_else(|| json!({}));
    let spec = match spec {
        Value::Object(spec) => spec,
        _ => {
            note(problems, &job.path("spec"), "expected an object");
            Map::new()
        }
    };
    job.close(problems);
    let template = Template { name, labels, spec };
    let mut check = |path: &str, text: &str| {
        for unknown in unknown_placeholders(text) {
            let known = PLACEHOLDERS.join(", ");
            note(
                problems,
                path,
                format!("{{{{{unknown}}}}} means nothing here; known: {known}"),
            );
        }
    };
    template
        .name
        .iter()
        .for_each(|name| check("spec.job.name", name));
    for (key, value) in &template.labels {
        check(&format!("spec.job.labels.{key}"), value);
    }
    each_text(
        "spec.job.spec",
        &Value::Object(template.spec.clone()),
        &mut check,
    );
    template
}

/// Calls `each` with every text below a value and its path.
fn each_text(path: &str, value: &Value, each: &mut impl FnMut(&str, &str)) {
    match value {
        Value::String(text) => each(path, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                each_text(&format!("{path}[{index}]"), item, each);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                each_text(&format!("{path}.{key}"), value, each);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The texts between `{{` and `}}` that are no placeholders.
fn unknown_placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{").skip(1).filter_map(|rest| {
        let inner = rest.split_once("}}").map_or(rest, |(inner, _)| inner);
        (!PLACEHOLDERS.contains(&inner.trim()) || !rest.contains("}}")).then_some(inner)
    })
}

impl PushRule {
    /// Whether a push is one of those that the rule is about.
    ///
    /// A push without a tag is none if the rule says anything of tags, in its patterns or its template.
    #[must_use]
    pub fn matches(&self, push: &Push) -> bool {
        let tag = match &push.tag {
            Some(tag) => self.tag.match_or_empty(tag) && self.has_version(tag),
            None => self.tag.is_empty() && self.semver.is_none() && !self.template.names("tag"),
        };
        let source = push.source.as_deref().unwrap_or_default();
        tag && self.registry.matches(&push.registry)
            && self.repository.matches(&push.repository)
            && self.source.match_or_empty(source)
    }

    /// A leading `v`, as in `v1.2.3`, is passed over.
    fn has_version(&self, tag: &str) -> bool {
        let Some(wanted) = &self.semver else {
            return true;
        };
        let version = semver::Version::parse(tag.strip_prefix('v').unwrap_or(tag));
        version.is_ok_and(|version| wanted.matches(&version))
    }

    /// For how long a digest that made a job makes no other one.
    #[must_use]
    pub const fn debounce(&self) -> Duration {
        self.debounce
    }

    /// Names of the credentials that the rule's jobs pull with.
    #[must_use]
    pub fn pull_secrets(&self) -> Vec<String> {
        let secrets = self.template.spec.get("pullSecrets");
        let secrets = secrets.and_then(Value::as_array).into_iter().flatten();
        secrets
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// The manifest of the rule.
    #[must_use]
    pub const fn document(&self) -> &Value {
        &self.document
    }

    /// The manifest of the job that a push becomes. The push has to have its digest by now.
    ///
    /// # Errors
    /// The template and this push do not make a job, or the push has no digest.
    pub fn manifest(&self, push: &Push) -> Result<Value, Rejection> {
        let image = push.image().map_err(Rejection::whole)?;
        let Some(digest) = &push.digest else {
            return Err(Rejection::whole("the push has no digest"));
        };
        let fill = |text: &str| fill(text, push, digest, str::to_owned);
        let name = match &self.template.name {
            Some(name) => legal_name(&fill_name(name, push, digest)),
            None => {
                let rule = part(self.name.as_str());
                let exact = Digest::of(image.digest_name(digest).as_bytes());
                format!("{rule}-{}-{}", part(&push.repository), &exact.hex()[..12])
            }
        };
        let mut labels = BTreeMap::new();
        for (key, value) in &self.template.labels {
            labels.insert(key.clone(), legal_label(&fill(value)));
        }
        labels.insert(RULE_LABEL.to_owned(), legal_label(self.name.as_str()));
        if let Some(source) = &push.source {
            labels.insert(SOURCE_LABEL.to_owned(), legal_label(source));
        }
        let mut spec = Value::Object(self.template.spec.clone());
        fill_all(&mut spec, &fill);
        if spec.get("images").is_none() {
            // By its tag as well: a reference with both names nothing by tag, as with CRI.
            let names = [Some(image.digest_name(digest)), image.tag_name()];
            spec["images"] = names.into_iter().flatten().collect();
        }
        let document = json!({
            "apiVersion": API_VERSION,
            "kind": JOB_KIND,
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
        });
        read_job(&document).map(|_| document)
    }

    /// The same, read.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub fn submission(&self, push: &Push) -> Result<Submission, Rejection> {
        let submission = read_job(&self.manifest(push)?)?;
        Ok(Submission {
            trace: push.trace,
            ..submission
        })
    }

    /// Fills the template in with samples, and notes what is wrong with the jobs that come out.
    fn try_template(&self, problems: &mut Vec<Problem>) {
        let push = Push {
            registry: "registry.example.com".to_owned(),
            repository: "team/app".to_owned(),
            tag: Some("1.2.3".to_owned()),
            digest: Some(Digest::of(b"sample")),
            event_id: None,
            source: Some("generic".to_owned()),
            unverified: false,
            trace: None,
        };
        let Err(rejection) = self.manifest(&push) else {
            return;
        };
        for problem in rejection.problems {
            let path = match problem.path.as_str() {
                "metadata.name" => "spec.job.name".to_owned(),
                path => match path.strip_prefix("metadata.labels") {
                    Some(label) => format!("spec.job.labels{label}"),
                    None => format!("spec.job.{path}"),
                },
            };
            note(problems, &path, problem.message);
        }
    }
}

impl Template {
    /// Whether a text of the template has this placeholder.
    fn names(&self, placeholder: &str) -> bool {
        let mut found = false;
        let mut look = |_: &str, text: &str| {
            let mut inner = text.split("{{").skip(1);
            found |= inner.any(|rest| {
                rest.split_once("}}")
                    .is_some_and(|(inner, _)| inner.trim() == placeholder)
            });
        };
        self.name.iter().for_each(|name| look("", name));
        self.labels.values().for_each(|value| look("", value));
        each_text("", &Value::Object(self.spec.clone()), &mut look);
        found
    }
}

fn fill_all(value: &mut Value, fill: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = fill(text),
        Value::Array(items) => items.iter_mut().for_each(|item| fill_all(item, fill)),
        Value::Object(map) => map.values_mut().for_each(|value| fill_all(value, fill)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Replaces the placeholders of a text, each value as `legal` makes it.
fn fill(text: &str, push: &Push, digest: &Digest, legal: impl Fn(&str) -> String) -> String {
    let mut parts = text.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inner, rest) = part.split_once("}}").unwrap_or(("", part));
        filled.push_str(&legal(match inner.trim() {
            "registry" => &push.registry,
            "repository" => &push.repository,
            "tag" => push.tag.as_deref().unwrap_or_default(),
            "digest" => digest.as_str(),
            "shortDigest" => &digest.hex()[..12],
            // Refused when the rule was read.
            _ => "",
        }));
        filled.push_str(rest);
    }
    filled
}

fn fill_name(text: &str, push: &Push, digest: &Digest) -> String {
    fill(text, push, digest, dashed)
}

/// A text in the characters of a DNS-1123 label, others as dashes.
fn dashed(text: &str) -> String {
    let legal = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
        _ => '-',
    };
    text.chars().map(legal).collect()
}

fn legal_name(text: &str) -> String {
    text.trim_matches('-').to_owned()
}

/// A part of a job's name: legal, and not too long.
fn part(text: &str) -> String {
    let text = dashed(text);
    // The end of a long path says more than its beginning.
    let from = text.len().saturating_sub(MAX_NAME_PART);
    text[from..].trim_matches('-').to_owned()
}

/// A label's value in the characters that one may have, others as dashes.
fn legal_label(text: &str) -> String {
    let legal = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
        _ => '-',
    };
    let text: String = text.chars().map(legal).take(MAX_LABEL_VALUE).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned()
}

#[cfg(test)]
mod tests;
