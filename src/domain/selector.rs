//! Which nodes a job is for: Kubernetes label selectors, or a list of names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::name::NodeName;

/// Which nodes a job is for. Empty means every node; names and labels exclude each other.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSelector {
    /// Exactly these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NodeName>,
    /// Every one of these labels, with exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Every one of these requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on a node's labels, read as Kubernetes reads it
/// (`apimachinery/pkg/labels`, `Requirement.Matches`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How the label is compared.
    pub operator: Operator,
    /// The values to compare with: at least one for `In` and `NotIn`, none for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a requirement compares a label.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl NodeSelector {
    /// Whether the job is for this node.
    #[must_use]
    pub fn matches(&self, node: &NodeName, labels: &BTreeMap<String, String>) -> bool {
        (self.names.is_empty() || self.names.contains(node))
            && self
                .match_labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
    }
}

/// Why a text is not a label key or value (Kubernetes, "Labels and Selectors", syntax).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not `[prefix/]name`.
    #[error(
        "{0:?} is not a label key: an optional DNS prefix and '/', then at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    )]
    Key(String),
    /// Not a label value.
    #[error(
        "{0:?} is not a label value: at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit, or nothing"
    )]
    Value(String),
}

/// Checks a label's key.
///
/// # Errors
/// The text is no key.
pub fn check_label_key(key: &str) -> Result<(), LabelError> {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_is_legal = prefix.is_none_or(|prefix| prefix.parse::<NodeName>().is_ok());
    if prefix_is_legal && !name.is_empty() && label_text_is_legal(name) {
        Ok(())
    } else {
        Err(LabelError::Key(key.to_owned()))
    }
}

/// Checks a label's value.
///
/// # Errors
/// The text is no value.
pub fn check_label_value(value: &str) -> Result<(), LabelError> {
    if label_text_is_legal(value) {
        Ok(())
    } else {
        Err(LabelError::Value(value.to_owned()))
    }
}

fn label_text_is_legal(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= 63
        && ends
            .iter()
            .all(|end| end.is_none_or(u8::is_ascii_alphanumeric))
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn selects(requirement: (&str, Operator, &[&str]), node: &BTreeMap<String, String>) -> bool {
        let (key, operator, values) = requirement;
        let values = values.iter().map(|&value| value.to_owned()).collect();
        let selector = NodeSelector {
            match_expressions: vec![Requirement {
                key: key.to_owned(),
                operator,
                values,
            }],
            ..NodeSelector::default()
        };
        selector.matches(&"node-1".parse().unwrap(), node)
    }

    #[test]
    fn an_empty_selector_takes_every_node() {
        assert!(NodeSelector::default().matches(&"a".parse().unwrap(), &labels(&[])));
    }

    #[test]
    fn names_take_only_themselves() {
        let selector = NodeSelector {
            names: vec!["node-1".parse().unwrap()],
            ..NodeSelector::default()
        };
        assert!(selector.matches(&"node-1".parse().unwrap(), &labels(&[])));
        assert!(!selector.matches(&"node-2".parse().unwrap(), &labels(&[])));
    }

    #[test]
    fn operators_compare_as_kubernetes_does() {
        let (with, without) = (labels(&[("arch", "amd64")]), labels(&[]));
        assert!(selects(("arch", Operator::In, &["amd64", "arm64"]), &with));
        assert!(!selects(("arch", Operator::In, &["amd64"]), &without));
        assert!(!selects(("arch", Operator::NotIn, &["amd64"]), &with));
        assert!(selects(("arch", Operator::NotIn, &["amd64"]), &without));
        assert!(selects(("arch", Operator::Exists, &[]), &with));
        assert!(!selects(("arch", Operator::Exists, &[]), &without));
        assert!(selects(("arch", Operator::DoesNotExist, &[]), &without));
    }

    #[test]
    fn label_syntax_is_kubernetes_syntax() {
        for good in ["a", "topology.kubernetes.io/zone", "a_b.C-1"] {
            assert_eq!(check_label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "-a", "a b", "A B/c", "a/b/c"] {
            assert!(check_label_key(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(check_label_value("").is_ok() && check_label_value("a b").is_err());
        assert!(check_label_value(&"x".repeat(64)).is_err());
    }
}
