//! What is in deploy/monitoring, without anything that runs: rules that fire when they should, a runbook that knows every
//! alert, probes that ask what is meant for them. tests/e2e/monitored.rs holds it against a live cell.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(
    clippy::print_stderr,
    reason = "the support's, for the reader of a failed test"
)]

#[path = "support/parts.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by several test crates")]
mod parts;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What comes before the rules in the form of the Prometheus operator.
const OPERATOR: &str = "# deploy/monitoring/rules.yaml for the Prometheus operator. UPDATE_RULES=1 cargo test --test monitoring writes it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: prewarm
  namespace: prewarm-system
spec:
";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap()
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap()
}

fn promtool(args: &[&str]) -> (bool, String) {
    let output = Command::new(parts::program("prometheus", "promtool"))
        .args(args)
        .current_dir(deploy("monitoring"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// The rules of rules.yaml.
fn rules() -> Vec<Value> {
    let groups = yaml("monitoring/rules.yaml")["groups"].clone();
    let groups = groups.as_array().unwrap().iter();
    groups
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

fn alerts() -> BTreeSet<String> {
    rules()
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn promtool_takes_the_rules_and_every_alert_fires_when_it_should() {
    let (well, said) = promtool(&["check", "rules", "rules.yaml"]);
    assert!(well, "{said}");
    let (well, said) = promtool(&["test", "rules", "rules_test.yaml"]);
    assert!(well, "{said}");
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for test in yaml("monitoring/rules_test.yaml")["tests"]
        .as_array()
        .unwrap()
    {
        for case in test["alert_rule_test"].as_array().unwrap() {
            let name = case["alertname"].as_str().unwrap().to_owned();
            let expected = case["exp_alerts"].as_array().unwrap();
            let seen = if expected.is_empty() {
                &mut rests
            } else {
                &mut fires
            };
            seen.insert(name);
        }
    }
    assert_eq!(fires, alerts(), "each has to fire in a test");
    assert_eq!(rests, alerts(), "and not to fire in another");
}

#[test]
fn a_rule_that_no_longer_fires_is_found() {
    let dir = parts::temp_dir();
    let rules = read("monitoring/rules.yaml");
    let wrong = rules.replacen("prewarm_ready == 0", "prewarm_ready == 2", 1);
    assert_ne!(rules, wrong);
    fs::write(dir.path().join("rules.yaml"), wrong).unwrap();
    let test = dir.path().join("rules_test.yaml");
    fs::copy(deploy("monitoring/rules_test.yaml"), &test).unwrap();
    let (well, said) = promtool(&["test", "rules", test.to_str().unwrap()]);
    assert!(!well && said.contains("PrewarmNotReady"), "{said}");
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_says_where() {
    let runbook = read("RUNBOOK.md");
    let chapter = runbook.split("\n## Alerts\n").nth(1).unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let mut sections = BTreeSet::new();
    for section in chapter.split("\n### ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap();
        assert!(
            text.trim().len() > 200,
            "{name} says next to nothing: {text}"
        );
        assert!(
            text.contains("\n1. ") || text.contains("| Do |"),
            "{name} says nothing to do"
        );
        sections.insert(name.to_owned());
    }
    assert_eq!(sections, alerts());
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let anchor = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], *anchor, "{name}");
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
        assert!(rule["labels"]["severity"].is_string(), "{name}");
    }
}

#[test]
fn the_operator_gets_the_same_rules() {
    let rules = read("monitoring/rules.yaml");
    let (_, rules) = rules.split_once("\ngroups:").unwrap();
    let indented = format!("groups:{rules}")
        .lines()
        .fold(String::new(), |text, line| {
            let indent = if line.is_empty() { "" } else { "  " };
            text + indent + line + "\n"
        });
    let wanted = format!("{OPERATOR}{indented}");
    let path = "kubernetes/components/monitoring/prometheus-rule.yaml";
    if std::env::var_os("UPDATE_RULES").is_some() {
        fs::write(deploy(path), &wanted).unwrap();
    }
    assert_eq!(read(path), wanted, "UPDATE_RULES=1 writes it anew");
    assert_eq!(yaml(path)["spec"], yaml("monitoring/rules.yaml"));
}

/// What kubectl makes of this kustomization.
fn rendered(folder: &Path) -> Vec<Value> {
    let output = Command::new(parts::python().with_file_name("kubectl"))
        .arg("kustomize")
        .arg(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

#[test]
fn the_component_brings_the_rules_and_the_dashboard() {
    let dir = parts::temp_dir();
    let own = fs::canonicalize(dir.path()).unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(own.components().count() - 1);
    let kubernetes = fs::canonicalize(deploy("kubernetes")).unwrap();
    let kubernetes = format!("{up}{}", kubernetes.strip_prefix("/").unwrap().display());
    let kustomization = format!(
        "resources: ['{kubernetes}/overlays/webhook']\ncomponents: ['{kubernetes}/components/monitoring']\n"
    );
    fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    let rendered = rendered(&own);
    let of_kind = |kind: &str| {
        rendered
            .iter()
            .find(|object| object["kind"] == *kind)
            .unwrap()
    };
    assert_eq!(
        of_kind("PrometheusRule")["spec"],
        yaml("monitoring/rules.yaml")
    );
    let dashboard = rendered
        .iter()
        .find(|object| object["metadata"]["labels"]["grafana_dashboard"] == "1")
        .unwrap();
    let text = dashboard["data"]["dashboard.json"].as_str().unwrap();
    let dashboard: Value = serde_json::from_str(text).unwrap();
    assert_eq!(dashboard["title"], "prewarm");
    // Whatever serves metrics is scraped.
    let scraped = &of_kind("PodMonitor")["spec"]["selector"]["matchExpressions"][0]["values"];
    for workload in workloads(&rendered) {
        let name = &workload["metadata"]["name"];
        assert!(
            scraped.as_array().unwrap().contains(name),
            "{name}: {scraped}"
        );
    }
}

/// Those that run prewarm: their container has a port for metrics.
fn workloads(rendered: &[Value]) -> Vec<Value> {
    let serves = |object: &&Value| {
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        let ports = container["ports"].as_array().into_iter().flatten();
        container["image"] == "prewarm" && ports.into_iter().any(|port| port["name"] == "metrics")
    };
    let found: Vec<Value> = rendered.iter().filter(serves).cloned().collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    found
}

#[test]
fn the_probes_ask_whether_it_lives_and_whether_it_is_ready() {
    for workload in workloads(&rendered(&deploy("kubernetes/overlays/webhook"))) {
        let container = &workload["spec"]["template"]["spec"]["containers"][0];
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let probe = &container[probe];
            let name = &workload["metadata"]["name"];
            assert_eq!(probe["httpGet"]["path"], path, "{name}");
            assert_eq!(probe["httpGet"]["port"], "metrics", "{name}");
            // Longer than a condition may take to answer, so that the reason is seen and not only that none came.
            let patience = probe["timeoutSeconds"].as_u64().unwrap();
            assert!(
                patience > prewarm::telemetry::health::ASK_LIMIT.as_secs(),
                "{name}"
            );
        }
    }
}
