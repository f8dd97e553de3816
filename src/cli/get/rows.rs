//! The columns of jobs and nodes.

use super::Listed;
use crate::cli::text;
use crate::domain::status::JobPhase;
use crate::domain::time::Timestamp;
use crate::wire::manifest::rule::PushRule;
use crate::wire::record::{JobRecord, NodePresence, NodeRecord};

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A cell is never empty, so that columns can be counted by programs, too.
fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

impl Listed for JobRecord {
    const WORD: &'static str = "job";

    fn heading(wide: bool) -> Vec<String> {
        let mut heading = cells(["NAME", "PHASE", "PULLS", "FAILED", "NODES", "AGE"]);
        if wide {
            heading.extend(cells([
                "ROUND",
                "PARALLELISM",
                "PRIORITY",
                "BYTES",
                "IMAGES",
                "MESSAGE",
            ]));
        }
        heading
    }

    fn row(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let status = &self.status;
        let phase = match (status.phase, status.outcome) {
            (JobPhase::Completed, Some(outcome)) => format!("{outcome:?}"),
            (phase, _) => format!("{phase:?}"),
        };
        let mut row = vec![
            self.metadata.name.to_string(),
            phase,
            format!("{}/{}", status.counts.succeeded, status.counts.desired),
            status.counts.failed.to_string(),
            format!("{}/{}", status.nodes.succeeded, status.nodes.desired),
            text::age(now.since(self.metadata.created_at)),
        ];
        if wide {
            row.extend([
                status.round.to_string(),
                self.spec.parallelism.to_string(),
                self.spec.priority.to_string(),
                text::bytes(status.bytes_registry + status.bytes_elsewhere),
                text::some_of(&self.spec.images, 2),
                or_dash(status.message.clone()),
            ]);
        }
        row
    }
}

impl Listed for PushRule {
    const WORD: &'static str = "rule";

    fn heading(wide: bool) -> Vec<String> {
        let mut heading = cells(["NAME", "REGISTRY", "REPOSITORY", "TAG", "SEMVER"]);
        if wide {
            heading.extend(cells(["SOURCE", "DEBOUNCE"]));
        }
        heading
    }

    fn row(&self, wide: bool, _: Timestamp) -> Vec<String> {
        let said = |field: &str| match &self.document()["spec"][field] {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(texts) => {
                let texts: Vec<&str> = texts.iter().filter_map(|text| text.as_str()).collect();
                texts.join(",")
            }
            other => other.to_string(),
        };
        let mut row = vec![self.name.to_string()];
        row.extend(["registry", "repository", "tag", "semver"].map(said));
        if wide {
            row.extend([said("source"), text::duration(self.debounce())]);
        }
        row
    }
}

impl Listed for NodeRecord {
    const WORD: &'static str = "node";

    fn heading(wide: bool) -> Vec<String> {
        let mut heading = cells([
            "NAME",
            "STATUS",
            "SINCE",
            "RUNTIME",
            "PLATFORM",
            "CAPACITY",
            "DISK FREE",
        ]);
        if wide {
            heading.extend(cells(["VERSION", "LABELS"]));
        }
        heading
    }

    fn row(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let status = match (self.presence, &self.facts.waiting) {
            (NodePresence::Present, None) => "Present",
            (NodePresence::Present, Some(_)) => "Waiting",
            (NodePresence::Absent, _) => "Absent",
        };
        let mut row = vec![
            self.name.to_string(),
            status.to_owned(),
            text::age(now.since(self.since)),
            or_dash(self.facts.runtime.clone()),
            self.facts.platform.to_string(),
            self.facts.capacity.to_string(),
            text::bytes(self.facts.disk_free_bytes),
        ];
        if wide {
            let labels: Vec<String> = self
                .facts
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            row.extend([self.facts.version.clone(), or_dash(labels.join(","))]);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn table<T: Listed>(record: serde_json::Value, wide: bool) -> String {
        let record: T = serde_json::from_value(record).unwrap();
        let now = START.after(Duration::from_secs(300));
        text::columns(&[T::heading(wide), record.row(wide, now)])
    }

    #[test]
    fn a_job_is_a_row() {
        let record = json!({
            "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
            "metadata": {"name": "base", "uid": "u", "generation": 1, "createdAt": START, "requestSequence": 1},
            "spec": {"images": ["nginx:1", "redis:7", "busybox"], "parallelism": "25%"},
            "status": {
                "phase": "Completed", "outcome": "PartiallyFailed", "round": 1, "bytesRegistry": 1024,
                "counts": {"desired": 6, "pending": 0, "active": 0, "succeeded": 5, "failed": 1, "cancelled": 0},
                "nodes": {"desired": 2, "succeeded": 1, "failed": 1},
            },
        });
        assert_eq!(
            table::<JobRecord>(record.clone(), false),
            "NAME   PHASE             PULLS   FAILED   NODES   AGE\n\
             base   PartiallyFailed   5/6     1        1/2     5m\n"
        );
        let wide = table::<JobRecord>(record, true);
        assert!(
            wide.contains("25%")
                && wide.contains(
                    "docker.io/library/nginx:1, docker.io/library/redis:7 and 1 more   -"
                ),
            "{wide}"
        );
    }

    #[test]
    fn a_node_is_a_row() {
        let record = json!({
            "name": "node-1", "labels": {"pool": "gpu", "zone": "a"}, "platform": "linux/amd64",
            "runtime": "containerd 1.7.24", "capacity": 3, "diskTotalBytes": 1, "diskFreeBytes": 1_073_741_824,
            "version": "0.1.0", "instance": "i", "presence": "Absent", "since": START,
        });
        assert_eq!(
            table::<NodeRecord>(record, true),
            "NAME     STATUS   SINCE   RUNTIME             PLATFORM      CAPACITY   DISK FREE   VERSION   LABELS\n\
             node-1   Absent   5m      containerd 1.7.24   linux/amd64   3          1.0 GiB     0.1.0     pool=gpu,zone=a\n"
        );
    }
}
