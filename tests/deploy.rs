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

#[path = "support/authority.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by several test crates")]
mod authority;
#[path = "support/parts.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by several test crates")]
mod parts;

#[path = "deploy/broker_tls.rs"]
mod broker_tls;
#[path = "deploy/components.rs"]
mod components;
#[path = "deploy/documents.rs"]
mod documents;
#[path = "deploy/reach.rs"]
mod reach;
#[path = "deploy/systemd.rs"]
mod systemd;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

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

/// What kubectl renders of a folder, by kind and name.
fn objects(folder: &str) -> BTreeMap<(String, String), Value> {
    let text = rendered(&deploy().join("kubernetes").join(folder));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let named = documents.into_iter().map(|document| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (text(&document["kind"]), text(&document["metadata"]["name"]));
        (key, document)
    });
    named.collect()
}

fn object<'a>(all: &'a BTreeMap<(String, String), Value>, kind: &str, name: &str) -> &'a Value {
    all.get(&(kind.to_owned(), name.to_owned()))
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Every pod template of everything that is rendered, with a name for messages.
fn pods() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for folder in renderable() {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered(&folder)).unwrap();
        for document in documents {
            let pod = &document["spec"]["template"]["spec"];
            if pod.is_object() {
                let name = document["metadata"]["name"].as_str().unwrap();
                pods.push((format!("{name} of {}", folder.display()), pod.clone()));
            }
        }
    }
    assert!(pods.len() > 8, "{}", pods.len());
    pods
}

#[test]
fn every_pod_is_shut_in_and_only_the_worker_is_root() {
    for (name, pod) in pods() {
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["priorityClassName"], "prewarm", "{name}");
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[key].is_null(), "{name}: {key}");
        }
        let is_worker = name.starts_with("prewarm-worker ");
        if is_worker {
            assert_eq!(of_pod["runAsUser"], 0, "{name}");
        } else {
            assert_eq!(of_pod["runAsNonRoot"], true, "{name}");
        }
        for container in pod["containers"].as_array().unwrap() {
            let rights = &container["securityContext"];
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]), "{name}");
            assert!(
                is_worker || rights["capabilities"]["add"].is_null(),
                "{name}"
            );
            assert!(rights["privileged"].is_null(), "{name}");
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(
                is_worker || volume["hostPath"].is_null(),
                "{name}: {volume}"
            );
        }
    }
}

#[test]
fn there_is_what_keeps_the_roles_up_and_apart() {
    let all = {
        let mut all = objects("overlays/cluster-broker");
        all.extend(objects("overlays/webhook"));
        all
    };
    for name in ["prewarm-dispatcher", "prewarm-webhook"] {
        assert_eq!(object(&all, "Deployment", name)["spec"]["replicas"], 2);
    }
    assert_eq!(
        object(&all, "StatefulSet", "prewarm-nats")["spec"]["replicas"],
        3
    );
    let worker = &object(&all, "DaemonSet", "prewarm-worker")["spec"]["template"]["spec"];
    assert_eq!(worker["tolerations"], json!([{"operator": "Exists"}]));
    for name in ["prewarm-dispatcher", "prewarm-webhook", "prewarm-nats"] {
        let budget = object(&all, "PodDisruptionBudget", name);
        assert_eq!(budget["spec"]["maxUnavailable"], 1, "{name}");
        assert_eq!(
            budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"],
            name
        );
    }
    for name in ["prewarm", "prewarm-webhook", "prewarm-nats"] {
        let policy = object(&all, "NetworkPolicy", name);
        assert!(
            policy["spec"]["policyTypes"]
                .as_array()
                .unwrap()
                .contains(&json!("Ingress"))
        );
    }
    let rule = &object(&all, "Ingress", "prewarm-webhook")["spec"]["rules"][0]["http"]["paths"][0];
    let service = rule["backend"]["service"]["name"].as_str().unwrap();
    let selected = &object(&all, "Service", service)["spec"]["selector"];
    let receiver = object(&all, "Deployment", "prewarm-webhook");
    assert_eq!(
        selected,
        &receiver["spec"]["template"]["metadata"]["labels"]
    );
    // The sources that the pods mount are those that the overlay made.
    let volumes = receiver["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap();
    let sources = volumes
        .iter()
        .find(|volume| volume["name"] == "sources")
        .unwrap();
    object(
        &all,
        "ConfigMap",
        sources["configMap"]["name"].as_str().unwrap(),
    );
}

#[test]
fn for_cri_o_the_worker_gets_its_socket_and_nothing_of_containerds() {
    let all = objects("overlays/cri-o");
    let text = object(&all, "DaemonSet", "prewarm-worker").to_string();
    assert!(text.contains("/run/crio/crio.sock"), "{text}");
    for absent in [
        "/run/containerd",
        "/var/lib/containerd",
        "certs.d",
        "SYS_ADMIN",
    ] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
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

/// What nats-server of every generation says to a file of deploy/nats, with these variables beside those that cluster.conf wants.
fn nats_server_takes(file: &str, variables: &[(String, String)]) {
    for part in ["nats-2.10", "nats-2.15"] {
        let mut command = Command::new(parts::program(part, "nats-server"));
        command.arg("-t").arg("-c");
        command.arg(deploy().join("nats").join(file));
        command.env("SERVER_NAME", "prewarm-nats-0");
        command.env("STORE_DIR", "/data");
        for name in [
            "CLUSTER_PASSWORD",
            "CORE_PASSWORD",
            "NODE_1_PASSWORD",
            "WEBHOOK_PASSWORD",
            "CI_PASSWORD",
            "SYS_PASSWORD",
        ] {
            command.env(name, "secret");
        }
        for number in 0..3 {
            let route =
                format!("nats://cluster:secret@prewarm-nats-{number}.prewarm-nats-servers:6222");
            command.env(format!("ROUTE_{number}"), route);
        }
        command.envs(variables.iter().cloned());
        let said = output(&mut command);
        assert!(said.contains("is valid"), "{part}: {said}");
    }
}

#[test]
fn nats_server_takes_the_cluster_configuration() {
    nats_server_takes("cluster.conf", &[]);
}

#[test]
fn systemd_takes_the_units() {
    let dir = parts::temp_dir();
    for name in [
        "prewarm-dispatcher.service",
        "prewarm-worker.service",
        "prewarm-webhook.service",
    ] {
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
fn a_worker_may_read_nodes_and_nothing_else() {
    for folder in renderable() {
        let mut roles = 0;
        for document in serde_saphyr::from_multiple::<Value>(&rendered(&folder)).unwrap() {
            let kind = document["kind"].as_str().unwrap();
            if kind.ends_with("Role") {
                roles += 1;
                let nodes = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]);
                assert_eq!(document["rules"], nodes, "{}", folder.display());
            } else if kind.ends_with("RoleBinding") {
                let worker = json!([{"kind": "ServiceAccount", "name": "prewarm-worker", "namespace": "prewarm-system"}]);
                assert_eq!(document["subjects"], worker, "{}", folder.display());
            }
        }
        assert_eq!(roles, 1, "{}", folder.display());
    }
    // Nobody else has a token to ask with.
    for (name, pod) in pods() {
        let is_worker = name.starts_with("prewarm-worker ");
        assert_eq!(pod["automountServiceAccountToken"], is_worker, "{name}");
    }
}

/// What git has of the project: what a clone of it has.
fn tracked() -> Vec<String> {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .arg("ls-files");
    output(&mut git).lines().map(str::to_owned).collect()
}

/// What builds the program in a container needs a network, so that no test runs it; that it has what it names, one can see.
#[test]
fn the_stage_that_builds_has_what_it_needs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let dockerfile = read("deploy/Dockerfile");
    let (build, last) = dockerfile.split_once("\nFROM scratch\n").unwrap();
    let stage = build
        .lines()
        .find_map(|line| line.strip_prefix("FROM "))
        .unwrap();
    assert!(last.contains("COPY --from=build /image /\n"), "{last}");

    // The compiler is the oldest that the crate takes.
    let cargo = read("Cargo.toml");
    let oldest = cargo
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \""));
    let oldest = oldest.unwrap().trim_end_matches('"');
    assert_eq!(
        stage,
        format!("docker.io/library/rust:{oldest}-bookworm AS build")
    );

    // The whole project is copied, and nothing of it is left out; what is built on the way here is.
    assert!(build.contains("\nCOPY . .\n"), "{build}");
    let ignored = read(".dockerignore");
    assert_eq!(ignored.lines().collect::<Vec<_>>(), [".git", "**/target"]);
    let files = tracked();
    for file in &files {
        let is_left_out = file.split('/').any(|part| part == "target") || file.starts_with(".git/");
        assert!(!is_left_out, "{file}");
    }
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "deploy/image/root",
        "src/main.rs",
    ] {
        assert!(files.iter().any(|file| file == needed), "{needed}");
    }

    // It builds as `make build` does, and packs as `make image` does.
    let make = read("Makefile").replace("$(CARGO)", "cargo");
    let (_, run) = build.split_once("RUN cargo ").unwrap();
    let (cargo, pack) = run.trim().split_once(" && ").unwrap();
    assert!(make.contains(&format!("\tcargo {cargo}\n")), "{cargo}");
    assert_eq!(pack, "deploy/image/root target/release/prewarm /image");
    assert!(
        read("deploy/image/build").contains("\"$here/root\" \"$program\" \"$work/build/image\"")
    );
    // And what the image of the compiler lacks is what build-deps would install.
    let (_, installed) = build.split_once("--no-install-recommends ").unwrap();
    let (installed, _) = installed.split_once('\n').unwrap();
    let packages = read("deploy/local/build-deps");
    for package in installed.split(' ') {
        assert!(packages.contains(package), "{package}");
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

/// The sources of all tests.
fn tests() -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut text = String::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"),
        &mut text,
    );
    text
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let tests = tests();
    let mut count = 0;
    for document in ["THREATS.md", "RUNBOOK.md"] {
        let text = fs::read_to_string(deploy().join(document)).unwrap();
        // Between backticks; beside metrics, nothing else there has so many underscores.
        let names = text.split('`').skip(1).step_by(2);
        let names = names.filter(|name| !name.starts_with("prewarm_"));
        for name in names.filter(|name| name.matches('_').count() >= 4 && !name.contains(' ')) {
            count += 1;
            let is_there = [format!("fn {name}("), format!("    {name},")]
                .iter()
                .any(|text| tests.contains(text));
            assert!(is_there, "{document}: no test {name}");
        }
    }
    assert!(count > 15, "{count}");
}

#[test]
fn every_file_that_a_document_links_to_is_there() {
    for document in ["THREATS.md", "RUNBOOK.md", "ci/README.md"] {
        let path = deploy().join(document);
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap();
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            if !file.is_empty() && !file.contains("://") {
                let target = path.parent().unwrap().join(file);
                assert!(target.exists(), "{document}: {link}");
            }
        }
    }
}
