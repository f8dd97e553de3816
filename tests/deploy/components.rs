//! What an overlay of a user's own can take beside the base.

use std::fs;

use serde_json::{Value, json};

use super::{KUBERNETES, deploy, parts, rendered, validate};

/// A folder that a user might make: the base with these components, and more lines, rendered.
pub(crate) fn with_components_and(names: &[&str], more: &str) -> String {
    overlay_of("base", names, more)
}

/// The same of another folder than the base.
pub(crate) fn overlay_of(resource: &str, names: &[&str], more: &str) -> String {
    let dir = parts::temp_dir();
    let own = fs::canonicalize(dir.path()).unwrap();
    // Kustomize takes no absolute paths.
    let up = "../".repeat(own.components().count() - 1);
    let kubernetes = fs::canonicalize(deploy().join("kubernetes")).unwrap();
    let kubernetes = format!("{up}{}", kubernetes.strip_prefix("/").unwrap().display());
    let components: String = names
        .iter()
        .map(|name| format!("  - {kubernetes}/components/{name}\n"))
        .collect();
    let kustomization =
        format!("resources: ['{kubernetes}/{resource}']\ncomponents:\n{components}{more}");
    fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    rendered(&own)
}

pub(crate) fn with_components(names: &[&str]) -> String {
    with_components_and(names, "")
}

/// What an overlay of these components has.
pub(crate) fn objects_with(names: &[&str]) -> Vec<Value> {
    serde_saphyr::from_multiple(&with_components(names)).unwrap()
}

/// The example that a component's own comment gives, without the comment's marks.
pub(crate) fn example(component: &str, begin: &str) -> String {
    let path = deploy().join(format!(
        "kubernetes/components/{component}/kustomization.yaml"
    ));
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| line.strip_prefix("#   "));
    let lines = lines.skip_while(|line| *line != Some(begin));
    let lines: Vec<&str> = lines.map_while(|line| line).collect();
    assert!(lines.len() > 1, "{component}: no {begin} in {text}");
    lines.join("\n") + "\n"
}

/// The pod of the only workload of this name.
pub(crate) fn pod(objects: &[Value], name: &str) -> Value {
    let mut pods = objects.iter().filter(|object| {
        object["metadata"]["name"] == *name && object["spec"]["template"]["spec"].is_object()
    });
    let found = pods.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(pods.next().is_none(), "{name} twice");
    found["spec"]["template"]["spec"].clone()
}

/// The element of a list with this name.
pub(crate) fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut found = list.as_array().into_iter().flatten();
    found
        .find(|element| element["name"] == *name)
        .unwrap_or_else(|| panic!("no {name} in {list}"))
}

#[test]
fn no_overlay_needs_the_prometheus_operator_and_components_add_what_is_for_it() {
    for (component, kind) in [
        ("monitoring", "PodMonitor"),
        ("service-monitor", "ServiceMonitor"),
    ] {
        let monitors = |text: &str| text.matches(&format!("kind: {kind}\n")).count();
        for folder in super::renderable() {
            assert_eq!(monitors(&rendered(&folder)), 0, "{}", folder.display());
        }
        assert!(monitors(&with_components(&[component])) > 0);
    }
}

#[test]
fn every_component_goes_with_the_base_and_with_the_others() {
    let entries = fs::read_dir(deploy().join("kubernetes/components")).unwrap();
    let names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(names.len() >= 8, "{names:?}");
    let readme = include_str!("../../README.md");
    let dir = parts::temp_dir();
    let manifest = dir.path().join("manifest.yaml");
    let each = names.iter().map(std::slice::from_ref);
    for together in each.chain([&names[..]]) {
        fs::write(&manifest, with_components(together)).unwrap();
        let (valid, said) = validate(&manifest, KUBERNETES[1]);
        assert!(valid, "{together:?}: {said}");
        for name in together {
            assert!(readme.contains(&format!("`{name}`")), "README: {name}");
        }
    }
}

#[test]
fn kubelets_credential_providers_are_where_the_worker_looks_for_them() {
    for with in [
        &["credential-providers"][..],
        &["cri-o", "credential-providers"],
    ] {
        let pod = pod(&objects_with(with), "prewarm-worker");
        let container = &pod["containers"][0];
        for (variable, volume, kind) in [
            (
                "PREWARM_CREDENTIAL_PROVIDER_CONFIG",
                "credential-provider-config",
                "File",
            ),
            (
                "PREWARM_CREDENTIAL_PROVIDER_BIN_DIR",
                "credential-provider-bin",
                "Directory",
            ),
        ] {
            let said = &named(&container["env"], variable)["value"];
            let mount = named(&container["volumeMounts"], volume);
            assert_eq!(&mount["mountPath"], said, "{variable}");
            assert_eq!(mount["readOnly"], true, "{volume}");
            assert_eq!(
                named(&pod["volumes"], volume)["hostPath"]["type"],
                kind,
                "{volume}"
            );
        }
    }
    // And elsewhere, as the component's comment says it.
    let patched = example("credential-providers", "patches:");
    let text = with_components_and(&["credential-providers"], &patched);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let volumes = pod(&objects, "prewarm-worker")["volumes"].clone();
    let config =
        json!({"path": "/var/lib/kubelet/credential-provider-config.yaml", "type": "File"});
    assert_eq!(
        named(&volumes, "credential-provider-config")["hostPath"],
        config
    );
    assert!(!text.contains("/etc/eks"), "{text}");
}

#[test]
fn in_the_nodes_network_the_worker_still_knows_services_and_is_asked_for_its_health() {
    let all = objects_with(&["host-network", "webhook"]);
    let worker = pod(&all, "prewarm-worker");
    assert_eq!(worker["hostNetwork"], true);
    assert_eq!(worker["dnsPolicy"], "ClusterFirstWithHostNet");
    let port = named(&worker["containers"][0]["ports"], "metrics");
    assert_eq!(port["hostPort"], port["containerPort"]);
    for name in ["prewarm-dispatcher", "prewarm-webhook"] {
        assert!(pod(&all, name)["hostNetwork"].is_null(), "{name}");
    }
}

#[test]
fn where_selinux_enforces_the_worker_and_nothing_else_may_use_the_runtime() {
    for with in [
        &["selinux", "webhook"][..],
        &["cri-o", "selinux", "webhook"],
    ] {
        let all = objects_with(with);
        let rights = &pod(&all, "prewarm-worker")["containers"][0]["securityContext"];
        assert_eq!(rights["seLinuxOptions"], json!({"type": "spc_t"}));
        // It is added to what keeps the worker in, and takes nothing of that away.
        assert_eq!(rights["readOnlyRootFilesystem"], true);
        assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
        for name in ["prewarm-dispatcher", "prewarm-webhook"] {
            assert!(!pod(&all, name).to_string().contains("seLinux"), "{name}");
        }
    }
}

#[test]
fn with_traces_every_role_knows_the_collector_and_may_reach_it() {
    let patched = example("traces", "patches:");
    let text = with_components_and(&["webhook", "traces"], &patched);
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let settings = all.iter().find(|object| {
        object["kind"] == "ConfigMap"
            && object["metadata"]["name"]
                .as_str()
                .unwrap()
                .starts_with("prewarm-traces-")
    });
    let settings = settings.unwrap();
    assert_eq!(
        settings["data"],
        json!({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example.com:4318"})
    );
    for name in ["prewarm-dispatcher", "prewarm-worker", "prewarm-webhook"] {
        let pod = pod(&all, name);
        let from = pod["containers"][0]["envFrom"].as_array().unwrap();
        let wanted = json!({"configMapRef": {"name": settings["metadata"]["name"]}});
        assert!(from.contains(&wanted), "{name}: {from:?}");
        // What was there stays there.
        assert!(
            from.len() == 2 && from[0]["secretRef"].is_object(),
            "{from:?}"
        );
    }
    // Of the policies one says where to, and lets OTLP through.
    let egress: Vec<&Value> = all
        .iter()
        .filter(|object| {
            let types = object["spec"]["policyTypes"].as_array();
            types.is_some_and(|types| types.contains(&json!("Egress")))
        })
        .collect();
    assert_eq!(egress.len(), 1);
    let ports = &egress[0]["spec"]["egress"][0]["ports"];
    assert!(
        ports
            .as_array()
            .unwrap()
            .contains(&json!({"protocol": "TCP", "port": 4318})),
        "{ports}"
    );
}
