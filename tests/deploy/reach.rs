//! What is mounted where, and who reaches whom.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::components::{named, objects_with, pod};
use super::{objects, pods};

/// Where a worker that is told nothing looks for its runtime, its registries' hosts and what it keeps for itself.
const WORKERS_OWN: [(&str, &str); 3] = [
    ("containerd-address", "/run/containerd/containerd.sock"),
    ("registry-config-dir", "/etc/containerd/certs.d"),
    ("state-dir", "/var/lib/prewarm"),
];

#[test]
fn the_folders_of_the_host_are_at_their_own_paths() {
    // containerd says by path where a layer goes, and hosts.toml names certificates by theirs.
    let mut seen = BTreeSet::new();
    for (name, pod) in pods() {
        let mounts = &pod["containers"][0]["volumeMounts"];
        for volume in pod["volumes"].as_array().unwrap() {
            if let Some(path) = volume["hostPath"]["path"].as_str() {
                let mount = named(mounts, volume["name"].as_str().unwrap());
                assert_eq!(mount["mountPath"], path, "{name}");
                assert!(mount["subPath"].is_null(), "{name}: {mount}");
                seen.insert(path.to_owned());
            }
        }
    }
    let wanted = [
        "/etc/containerd/certs.d",
        "/etc/prewarm/broker",
        "/run/containerd",
        "/run/crio",
        "/var/lib/containerd",
        "/var/lib/prewarm",
    ];
    assert_eq!(seen, wanted.map(str::to_owned).into());
    // And those are the worker's own, of which the manifest says nothing.
    let readme = include_str!("../../README.md");
    let worker = pod(&objects_with(&["webhook"]), "prewarm-worker");
    for (setting, path) in WORKERS_OWN {
        let row = readme
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&format!("`{setting}`")));
        assert!(row.unwrap().contains(&format!("`{path}`")), "{row:?}");
        let mounts = worker["containers"][0]["volumeMounts"].as_array().unwrap();
        assert!(
            mounts
                .iter()
                .any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap())),
            "{path}"
        );
    }
}

/// The roots of containers are mounted below both of containerd's folders: a pod that has them as they were when it began keeps
/// busy what containerd has long unmounted.
#[test]
fn what_the_host_unmounts_goes_from_the_worker_too() {
    let worker = pod(&objects_with(&["webhook"]), "prewarm-worker");
    for mount in worker["containers"][0]["volumeMounts"].as_array().unwrap() {
        let propagates = mount["mountPropagation"] == "HostToContainer";
        let path = mount["mountPath"].as_str().unwrap();
        let has_mounts = ["/run/containerd", "/var/lib/containerd"].contains(&path);
        assert_eq!(propagates, has_mounts, "{mount}");
    }
}

/// Whether the labels have all that a selector of labels or expressions asks for.
fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object().into_iter().flatten();
    let listed = selector["matchExpressions"].as_array();
    assert!(
        selector["matchLabels"].is_object() || listed.is_some(),
        "{selector} selects everything"
    );
    let mut exact = exact;
    exact.all(|(key, value)| labels[key] == *value)
        && listed.into_iter().flatten().all(|expression| {
            assert_eq!(expression["operator"], "In", "{expression}");
            let values = expression["values"].as_array().unwrap();
            values.contains(&labels[expression["key"].as_str().unwrap()])
        })
}

/// Labels and only container of every pod that is made.
fn templates(all: &[Value]) -> Vec<(String, Value, Value)> {
    let pods = all
        .iter()
        .filter(|object| object["spec"]["template"]["spec"].is_object());
    let parts = pods.map(|object| {
        let template = &object["spec"]["template"];
        (
            object["metadata"]["name"].as_str().unwrap().to_owned(),
            template["metadata"]["labels"].clone(),
            template["spec"]["containers"][0].clone(),
        )
    });
    parts.collect()
}

fn of_kind<'a>(all: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    all.iter().filter(move |object| object["kind"] == *kind)
}

#[test]
fn a_service_monitor_finds_the_metrics_of_every_role() {
    let all = objects_with(&["webhook", "service-monitor"]);
    let monitors: Vec<_> = of_kind(&all, "ServiceMonitor").collect();
    assert_eq!(monitors.len(), 1);
    let monitor = monitors[0];
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["path"], "/metrics");
    let mut scraped = Vec::new();
    for service in of_kind(&all, "Service") {
        if !selects(&monitor["spec"]["selector"], &service["metadata"]["labels"]) {
            continue;
        }
        assert_eq!(
            service["metadata"]["namespace"], monitor["metadata"]["namespace"],
            "without a namespaceSelector it looks in its own"
        );
        let port = named(
            &service["spec"]["ports"],
            endpoint["port"].as_str().unwrap(),
        );
        let selector = json!({"matchLabels": service["spec"]["selector"]});
        for (name, labels, container) in templates(&all) {
            if selects(&selector, &labels) {
                let target = named(&container["ports"], port["targetPort"].as_str().unwrap());
                let number = target["containerPort"].as_u64().unwrap();
                let listens = &named(&container["env"], "PREWARM_METRICS_LISTEN")["value"];
                assert_eq!(listens, &json!(format!("[::]:{number}")), "{name}");
                scraped.push(name);
            }
        }
    }
    scraped.sort();
    assert_eq!(
        scraped,
        ["prewarm-dispatcher", "prewarm-webhook", "prewarm-worker"],
        "each once"
    );
}

#[test]
fn the_receiver_is_reached_by_its_service_where_it_listens() {
    let all = objects_with(&["webhook"]);
    let service = of_kind(&all, "Service").next().unwrap();
    let port = named(&service["spec"]["ports"], "http");
    let container = pod(&all, "prewarm-webhook")["containers"][0].clone();
    let target = named(&container["ports"], port["targetPort"].as_str().unwrap());
    let number = target["containerPort"].as_u64().unwrap();
    let listens = &named(&container["env"], "PREWARM_LISTEN")["value"];
    assert_eq!(listens, &json!(format!("[::]:{number}")));
}

/// Ports of a policy's direction, by name or number.
fn ports(policy: &Value, direction: &str) -> BTreeSet<String> {
    let rules = policy["spec"][direction].as_array().into_iter().flatten();
    let ports = rules.flat_map(|rule| rule["ports"].as_array().unwrap());
    let told = ports.map(|port| {
        let of = &port["port"];
        let of = of.as_str().map_or_else(|| of.to_string(), str::to_owned);
        format!("{} {of}", port["protocol"].as_str().unwrap())
    });
    told.collect()
}

#[test]
fn a_network_policy_selects_pods_and_lets_in_what_they_listen_to() {
    let mut selected = BTreeSet::new();
    for folder in [
        "overlays/cluster-broker",
        "overlays/webhook",
        "overlays/cri-o",
    ] {
        let all: Vec<Value> = objects(folder).into_values().collect();
        for policy in of_kind(&all, "NetworkPolicy") {
            let name = &policy["metadata"]["name"];
            let pods = templates(&all);
            let pods = pods
                .iter()
                .filter(|(_, labels, _)| selects(&policy["spec"]["podSelector"], labels));
            let pods: Vec<_> = pods.collect();
            assert!(!pods.is_empty(), "{name} of {folder} selects no pod");
            for (pod, _, container) in pods {
                selected.insert(pod.clone());
                for port in ports(policy, "ingress") {
                    let (_, port) = port.split_once(' ').unwrap();
                    let listed = container["ports"].as_array().unwrap();
                    let known = |listed: &Value| {
                        listed["name"] == *port
                            || listed["containerPort"] == json!(port.parse::<u16>().ok())
                    };
                    assert!(listed.iter().any(known), "{name}: {pod} has no port {port}");
                }
            }
        }
    }
    let all = ["dispatcher", "nats", "webhook", "worker"].map(|name| format!("prewarm-{name}"));
    assert_eq!(selected, all.into());
}

#[test]
fn a_network_policy_lets_through_what_a_role_needs_and_no_more() {
    let all: Vec<Value> = objects("overlays/webhook").into_values().collect();
    let policy = |name: &str| {
        let mut policies = of_kind(&all, "NetworkPolicy");
        policies.find(|policy| policy["metadata"]["name"] == *name)
    };
    let set = |ports: &[&str]| -> BTreeSet<String> {
        ports.iter().map(|port| (*port).to_owned()).collect()
    };
    let ours = policy("prewarm").unwrap();
    assert_eq!(ports(ours, "ingress"), set(&["TCP metrics"]));
    // Workers and dispatchers reach any registry, on any port.
    assert_eq!(ours["spec"]["policyTypes"], json!(["Ingress"]));
    let receivers = policy("prewarm-webhook").unwrap();
    assert_eq!(
        ports(receivers, "ingress"),
        set(&["TCP http", "TCP metrics"])
    );
    // Names, the broker, signing keys, traces.
    assert_eq!(
        ports(receivers, "egress"),
        set(&["UDP 53", "TCP 53", "TCP 4222", "TCP 443", "TCP 4318"])
    );
}
