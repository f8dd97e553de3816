//! What Kubernetes and systemd are told of the broker.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{parts, shipped};

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// What `kubectl kustomize` makes of a folder.
pub(crate) fn rendered(folder: &Path) -> Vec<Value> {
    let kubectl = parts::python().with_file_name("kubectl");
    let output = Command::new(kubectl).arg("kustomize").arg(folder).output();
    let output = output.expect("kubectl: run `make python-env` first");
    assert!(output.status.success(), "{output:?}");
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

/// The same of an overlay of a user's own: three servers, and this component.
pub(crate) fn cluster_broker_with(component: &str) -> Vec<Value> {
    let dir = parts::temp_dir();
    let own = std::fs::canonicalize(dir.path()).unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(own.components().count() - 1);
    let shipped = std::fs::canonicalize(deploy().join("kubernetes")).unwrap();
    let shipped = format!("{up}{}", shipped.strip_prefix("/").unwrap().display());
    let kustomization = format!(
        "resources: ['{shipped}/overlays/cluster-broker']\ncomponents: ['{shipped}/components/{component}']\n"
    );
    std::fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    rendered(&own)
}

/// The objects of the overlay with three servers.
pub(crate) fn cluster_broker() -> Vec<Value> {
    rendered(&deploy().join("kubernetes/overlays/cluster-broker"))
}

pub(crate) fn object<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    all.iter()
        .find(|it| it["kind"] == kind && it["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The pod of a workload.
pub(crate) fn pod<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    &object(all, kind, name)["spec"]["template"]["spec"]
}

/// The container of the servers.
pub(crate) fn nats(all: &[Value]) -> &Value {
    &pod(all, "StatefulSet", "prewarm-nats")["containers"][0]
}

/// The value of a variable that is set in the open.
fn variable<'a>(container: &'a Value, name: &str) -> &'a str {
    let all = container["env"].as_array().unwrap();
    let found = all.iter().find(|variable| variable["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {all:?}"));
    found["value"].as_str().unwrap()
}

/// Bytes of a quantity of Kubernetes or of Go's memory limit, in GiB or MiB.
fn bytes(text: &str) -> u64 {
    let text = text.trim_end_matches('B');
    let (number, shift) = match text.split_at(text.len() - 2) {
        (number, "Gi") => (number, 30),
        (number, "Mi") => (number, 20),
        _ => panic!("{text:?} is neither Gi nor Mi"),
    };
    number.parse::<u64>().unwrap() << shift
}

/// Seconds of a setting of cluster.conf.
pub(crate) fn seconds(setting: &str) -> u64 {
    let lines = shipped::CLUSTER.lines();
    let mut values = lines.filter_map(|line| line.strip_prefix(setting)?.strip_prefix(": "));
    let value = values.next().unwrap_or_else(|| panic!("no {setting}"));
    value.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn a_server_has_room_and_collects_its_garbage_before_it_is_killed_for_it() {
    let all = cluster_broker();
    let resources = &nats(&all)["resources"];
    let limit = bytes(resources["limits"]["memory"].as_str().unwrap());
    let requested = bytes(resources["requests"]["memory"].as_str().unwrap());
    assert!(resources["requests"]["cpu"].is_string(), "{resources}");
    // Stopped by a quota in the midst of an election it would cost a leader.
    assert!(resources["limits"]["cpu"].is_null(), "{resources}");
    let soft = bytes(variable(nats(&all), "GOMEMLIMIT"));
    assert!(
        requested <= soft && soft <= limit / 10 * 9,
        "{soft} of {limit}"
    );
}

#[test]
fn whoever_makes_streams_on_three_servers_makes_three_replicas() {
    let all = cluster_broker();
    let dispatcher = &pod(&all, "Deployment", "prewarm-dispatcher")["containers"][0];
    // What is set in the open wins over the same from a secret (envFrom).
    assert_eq!(variable(dispatcher, "PREWARM_REPLICAS"), "3");
    let servers = &object(&all, "StatefulSet", "prewarm-nats")["spec"]["replicas"];
    assert_eq!(servers, &json!(3));
    let elsewhere = rendered(&deploy().join("kubernetes/overlays/external-broker"));
    let elsewhere = pod(&elsewhere, "Deployment", "prewarm-dispatcher").to_string();
    assert!(!elsewhere.contains("PREWARM_REPLICAS"), "{elsewhere}");
}

/// A line `KEY=value` of the unit.
fn unit(key: &str) -> String {
    let text = std::fs::read_to_string(deploy().join("systemd/nats-server.service")).unwrap();
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(values.next(), None, "{key}");
    value.to_owned()
}

#[test]
fn a_server_is_given_the_time_to_let_its_clients_go() {
    let takes = seconds("lame_duck_duration");
    assert!(seconds("lame_duck_grace_period") < takes);
    let all = cluster_broker();
    let grace = &pod(&all, "StatefulSet", "prewarm-nats")["terminationGracePeriodSeconds"];
    assert!(grace.as_u64().unwrap() >= takes + 20, "{grace}");
    assert!(unit("TimeoutStopSec").parse::<u64>().unwrap() >= takes + 20);
    // tests/broker/lame_duck.rs says what it does on this signal.
    assert_eq!(unit("KillSignal"), "SIGUSR2");
}

#[test]
fn systemd_takes_the_unit_and_makes_its_user() {
    let folder = parts::temp_dir();
    let text = std::fs::read_to_string(deploy().join("systemd/nats-server.service")).unwrap();
    // systemd looks whether the program is there, and it is not installed here.
    let installed = text.replace("/usr/local/bin/nats-server", "/bin/true");
    assert_ne!(text, installed);
    let path = folder.path().join("nats-server.service");
    std::fs::write(&path, installed).unwrap();
    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output();
    let said = format!("{:?}", verify.unwrap());
    assert!(!said.contains("nats-server.service"), "{said}");

    let file = deploy().join("systemd/nats-server.sysusers.conf");
    std::fs::create_dir(folder.path().join("etc")).unwrap();
    let made = Command::new("systemd-sysusers")
        .arg(format!("--root={}", folder.path().display()))
        .arg(file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let users = std::fs::read_to_string(folder.path().join("etc/passwd")).unwrap();
    let home = format!("/{}", unit("StateDirectory"));
    let user = format!("{}:", unit("User"));
    let line = users.lines().find(|line| line.starts_with(&user));
    assert!(
        line.unwrap().contains(&format!("/var/lib{home}:")),
        "{users}"
    );
}
