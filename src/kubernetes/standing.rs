//! What a node of Kubernetes means for pulls.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::domain::node::NodeStanding;

/// The condition that says whether a node is healthy and ready to accept pods (Kubernetes, "Node
/// Status").
const READY: &str = "Ready";
/// Longest reason of a condition that is told, in characters; Kubernetes allows 1024.
const MAX_REASON: usize = 64;

/// A Node, as far as it counts here.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Node {
    /// Labels and version.
    pub metadata: Metadata,
    /// What is wanted of it.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What is observed of it.
    #[serde(default)]
    pub status: NodeStatus,
}

/// `metadata` of an object or a list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// An object's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// From where on changes are watched.
    #[serde(default)]
    pub resource_version: String,
}

/// `spec` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct NodeSpec {
    /// Whether the node is cordoned.
    #[serde(default)]
    pub unschedulable: bool,
}

/// `status` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct NodeStatus {
    /// What is observed of it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One of `status.conditions`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Condition {
    /// What it is about, such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for why.
    #[serde(default)]
    pub reason: String,
}

/// What is done with images on a node that is NotReady, or cordoned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// As on any other.
    Pull,
    /// Nothing new is released to it until it is well again.
    Wait,
}

/// A text that is no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither pull nor wait")]
pub struct ChoiceError(String);

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text {
            "pull" => Ok(Self::Pull),
            "wait" => Ok(Self::Wait),
            other => Err(ChoiceError(other.to_owned())),
        }
    }
}

/// What the operator chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choices {
    /// On a node whose condition Ready is not `True`.
    pub not_ready: Choice,
    /// On a node that is unschedulable.
    pub cordoned: Choice,
}

/// What kubectl calls the node's status: `Ready`, `NotReady (KubeletNotReady)`, `Ready, cordoned`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Why it is not ready; `None`: it is. The reason may be empty.
    pub not_ready: Option<String>,
    /// Whether it is unschedulable.
    pub cordoned: bool,
}

impl Status {
    /// Reads it. A node that says nothing of Ready is not ready, as for kubectl and the scheduler.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let conditions = node.status.conditions.iter();
        let mut ready = conditions.filter(|condition| condition.kind == READY);
        let not_ready = match ready.next() {
            Some(ready) if ready.status == "True" => None,
            Some(ready) => Some(ready.reason.chars().take(MAX_REASON).collect()),
            None => Some(String::new()),
        };
        Self {
            not_ready,
            cordoned: node.spec.unschedulable,
        }
    }

    /// Why the node takes no new pulls, by these choices.
    #[must_use]
    pub fn waiting(&self, choices: Choices) -> Option<String> {
        let held = Self {
            not_ready: self
                .not_ready
                .clone()
                .filter(|_| choices.not_ready == Choice::Wait),
            cordoned: self.cordoned && choices.cordoned == Choice::Wait,
        };
        let reasons = held.reasons();
        (!reasons.is_empty()).then(|| format!("{} in Kubernetes", reasons.join(" and ")))
    }

    fn reasons(&self) -> Vec<String> {
        let not_ready = self.not_ready.as_ref().map(|reason| match reason.as_str() {
            "" => "NotReady".to_owned(),
            reason => format!("NotReady ({reason})"),
        });
        let cordoned = self.cordoned.then(|| "cordoned".to_owned());
        not_ready.into_iter().chain(cordoned).collect()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.not_ready.is_none().then(|| "Ready".to_owned());
        let words: Vec<String> = ready.into_iter().chain(self.reasons()).collect();
        f.write_str(&words.join(", "))
    }
}

/// The node's standing: its labels in Kubernetes, those of the setting where both name a key, and
/// whether it takes new pulls.
#[must_use]
pub fn standing(
    node: &Node,
    own_labels: &BTreeMap<String, String>,
    choices: Choices,
) -> NodeStanding {
    let mut labels = node.metadata.labels.clone();
    labels.extend(own_labels.clone());
    NodeStanding {
        labels,
        waiting: Status::of(node).waiting(choices),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(unschedulable: bool, conditions: &Value) -> Node {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n", "labels": {"pool": "gpu", "zone": "a"}},
            "spec": {"podCIDR": "10.0.0.0/24", "unschedulable": unschedulable},
            "status": {"conditions": conditions, "capacity": {"cpu": "4"}},
        }))
        .unwrap()
    }

    fn ready(status: &str, reason: &str) -> Value {
        json!([
            {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory"},
            {"type": "Ready", "status": status, "reason": reason},
        ])
    }

    fn waiting(node: &Node, not_ready: Choice, cordoned: Choice) -> Option<String> {
        let choices = Choices {
            not_ready,
            cordoned,
        };
        standing(node, &BTreeMap::new(), choices).waiting
    }

    #[test]
    fn a_node_waits_for_what_the_operator_chose_to_wait_for() {
        use Choice::{Pull, Wait};
        let well = node(false, &ready("True", "KubeletReady"));
        let ill = node(false, &ready("Unknown", "NodeStatusUnknown"));
        let both = node(true, &ready("False", "KubeletNotReady"));
        let silent = node(false, &json!([]));
        let not_ready = "NotReady (KubeletNotReady) in Kubernetes";
        for (node, not_ready, cordoned, expected) in [
            (&well, Wait, Wait, None),
            (&both, Pull, Pull, None),
            (&both, Pull, Wait, Some("cordoned in Kubernetes")),
            (&both, Wait, Pull, Some(not_ready)),
            (
                &ill,
                Wait,
                Pull,
                Some("NotReady (NodeStatusUnknown) in Kubernetes"),
            ),
            (&silent, Wait, Wait, Some("NotReady in Kubernetes")),
        ] {
            assert_eq!(waiting(node, not_ready, cordoned).as_deref(), expected);
        }
        assert_eq!(
            waiting(&both, Wait, Wait).unwrap(),
            "NotReady (KubeletNotReady) and cordoned in Kubernetes"
        );
        assert_eq!(Status::of(&well).to_string(), "Ready");
        let cordoned = node_that_is_cordoned();
        assert_eq!(Status::of(&cordoned).to_string(), "Ready, cordoned");
    }

    fn node_that_is_cordoned() -> Node {
        node(true, &ready("True", "KubeletReady"))
    }

    #[test]
    fn a_label_of_the_setting_outweighs_that_of_kubernetes() {
        let own = [("zone", "b"), ("rack", "7")];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let choices = Choices {
            not_ready: Choice::Pull,
            cordoned: Choice::Pull,
        };
        let labels = standing(&node_that_is_cordoned(), &own.into(), choices).labels;
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["pool=gpu", "rack=7", "zone=b"]);
    }

    #[test]
    fn a_reason_is_told_up_to_its_bound() {
        let long = node(false, &ready("False", &"x".repeat(1024)));
        let told = waiting(&long, Choice::Wait, Choice::Pull).unwrap();
        assert!(told.len() < 100, "{told}");
    }
}
