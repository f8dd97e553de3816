//! What is in deploy/ holds together: Kubernetes takes every overlay, nats-server its configuration, systemd its units.
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

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest and newest version of Kubernetes whose schemas the manifests are held to.
const KUBERNETES: [&str; 2] = ["1.31", "1.37"];
/// How systemd begins the name of a capability, and Kubernetes does not.
const PREFIX: &str = "CAP_";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// A program of the Python environment, such as kubectl.
fn from_python(name: &str) -> Command {
    let path = parts::python().with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: run `make python-env` first",
        path.display()
    );
    Command::new(path)
}

/// Its standard output; it has to succeed.
fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    String::from_utf8(output.stdout).unwrap() + &errors
}

fn rendered(folder: &Path) -> String {
    output(from_python("kubectl").arg("kustomize").arg(folder))
}

/// The folders that a user renders: the base and every overlay.
fn renderable() -> Vec<PathBuf> {
    let kubernetes = deploy().join("kubernetes");
    let overlays = fs::read_dir(kubernetes.join("overlays")).unwrap();
    let mut folders: Vec<_> = overlays.map(|entry| entry.unwrap().path()).collect();
    assert!(folders.len() >= 2, "{folders:?}");
    folders.push(kubernetes.join("base"));
    folders
}

/// Whether the manifest is what the schemas of this version allow, and what the validator says.
fn validate(manifest: &Path, version: &str) -> (bool, String) {
    let mut command = from_python("kubernetes-validate");
    command.args(["--strict", "-k", version]).arg(manifest);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn every_overlay_renders_to_what_kubernetes_takes() {
    let dir = parts::temp_dir();
    let manifest = dir.path().join("manifest.yaml");
    for folder in renderable() {
        let text = rendered(&folder);
        let kinds = text.lines().filter(|line| line.starts_with("kind: "));
        // The operator's kinds have no schema in Kubernetes.
        let known = kinds.filter(|kind| *kind != "kind: PodMonitor").count();
        fs::write(&manifest, &text).unwrap();
        for version in KUBERNETES {
            let (valid, said) = validate(&manifest, version);
            assert!(valid, "{}, {version}: {said}", folder.display());
            let passed = said.matches(" passed for resource ").count();
            assert_eq!(passed, known, "{}, {version}: {said}", folder.display());
        }
    }
}

#[test]
fn no_overlay_needs_the_prometheus_operator_and_the_component_adds_what_is_for_it() {
    let monitors = |text: &str| text.matches("kind: PodMonitor").count();
    for folder in renderable() {
        assert_eq!(monitors(&rendered(&folder)), 0, "{}", folder.display());
    }
    let dir = parts::temp_dir();
    let own = fs::canonicalize(dir.path()).unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(own.components().count() - 1);
    let kubernetes = fs::canonicalize(deploy().join("kubernetes")).unwrap();
    let kubernetes = format!("{up}{}", kubernetes.strip_prefix("/").unwrap().display());
    let kustomization = format!(
        "resources: ['{kubernetes}/base']\ncomponents: ['{kubernetes}/components/monitoring']\n"
    );
    fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    assert!(monitors(&rendered(&own)) > 0);
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let dir = parts::temp_dir();
    let manifest = dir.path().join("manifest.yaml");
    let text = rendered(&deploy().join("kubernetes/base"));
    let wrong = text.replacen("readOnlyRootFilesystem", "readOnlyRootFileSystem", 1);
    assert_ne!(text, wrong);
    fs::write(&manifest, wrong).unwrap();
    let (valid, said) = validate(&manifest, KUBERNETES[1]);
    assert!(!valid && said.contains("readOnlyRootFileSystem"), "{said}");
}

#[test]
fn nats_server_takes_the_cluster_configuration() {
    for part in ["nats-2.10", "nats-2.15"] {
        let mut command = Command::new(parts::program(part, "nats-server"));
        command.arg("-t").arg("-c");
        command.arg(deploy().join("nats/cluster.conf"));
        command.env("SERVER_NAME", "prewarm-nats-0");
        command.env("STORE_DIR", "/data");
        for name in ["CLUSTER_PASSWORD", "CORE_PASSWORD", "NODE_1_PASSWORD"] {
            command.env(name, "secret");
        }
        for number in 0..3 {
            let route =
                format!("nats://cluster:secret@prewarm-nats-{number}.prewarm-nats-servers:6222");
            command.env(format!("ROUTE_{number}"), route);
        }
        let said = output(&mut command);
        assert!(said.contains("is valid"), "{part}: {said}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let dir = parts::temp_dir();
    for name in ["prewarm-dispatcher.service", "prewarm-worker.service"] {
        let unit = fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
        // systemd looks whether the program is there, and it is not installed here.
        let installed = unit.replace("/usr/local/bin/prewarm", "/bin/true");
        assert_ne!(unit, installed);
        let path = dir.path().join(name);
        fs::write(&path, installed).unwrap();
        let said = output(Command::new("systemd-analyze").arg("verify").arg(&path));
        // It warns of settings that it does not know, and succeeds.
        assert!(!said.contains(name), "{said}");
    }
}

#[test]
fn the_worker_has_the_same_capabilities_everywhere() {
    let daemon_set = fs::read_to_string(deploy().join("kubernetes/base/worker.yaml")).unwrap();
    let (_, added) = daemon_set.split_once("add: [").unwrap();
    let (added, _) = added.split_once(']').unwrap();
    let unit = fs::read_to_string(deploy().join("systemd/prewarm-worker.service")).unwrap();
    let bounding = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let of_unit: Vec<_> = bounding
        .split(' ')
        .map(|name| name.strip_prefix(PREFIX).unwrap())
        .collect();
    assert_eq!(added.split(", ").collect::<Vec<_>>(), of_unit);
}
