//! What a rule's manifest looks like, for its schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::name::JobName;

/// A rule's manifest, as a user writes it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::wire) struct RuleManifest {
    /// Always `prewarm.dev/v1`.
    #[schemars(extend("const" = "prewarm.dev/v1"))]
    api_version: String,
    /// Always `PushRule`.
    #[schemars(extend("const" = "PushRule"))]
    kind: String,
    /// The rule's name.
    metadata: RuleMetadata,
    /// Which pushes, and which job.
    spec: RuleSpec,
}

/// What names a rule.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuleMetadata {
    /// Applying the same name again replaces the rule.
    name: JobName,
    /// The user's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    labels: BTreeMap<String, String>,
}

/// One pattern or several.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "says what may be written; it is read field by field"
)]
enum OneOrMore {
    /// One.
    One(String),
    /// Several: one of them has to match, and none of those that begin with `!`.
    More(Vec<String>),
}

/// Which pushes a rule is about, and the job that each becomes. Patterns are globs: `*` and `?` stand for
/// characters other than `/`, `**` for any, `{a,b}` for either.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    /// The registry's host with its port, as image references name it.
    registry: OneOrMore,
    /// The repository's path.
    repository: OneOrMore,
    /// The tag; absent: any, and pushes without a tag as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<OneOrMore>,
    /// A range of versions that the tag has to be in, such as `>=1.2, <2`; a `v` before the version is passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    semver: Option<String>,
    /// Who tells of the push, such as `harbor`; absent: anyone.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<OneOrMore>,
    /// For so long, a digest that made a job makes no other one under other tags; 10 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    debounce_seconds: Option<u32>,
    /// The job; absent: one with all defaults, on all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<RuleJob>,
}

/// The job of a push. Every text may have `{{registry}}`, `{{repository}}`, `{{tag}}`, `{{digest}}` and
/// `{{shortDigest}}` in it.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuleJob {
    /// Its name; absent: made of the rule, the repository and the digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    labels: BTreeMap<String, String>,
    /// Its specification, as in a `PrewarmJob`; `images`, if absent, is the pushed image by its digest and
    /// by its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Map<String, Value>>,
}
