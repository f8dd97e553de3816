//! TLS to the broker that is shipped, as Kubernetes and systemd are told of it. tests/broker/tls.rs runs it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};
use serde_json::{Value, json};

use super::authority::Authority;
use super::components::{example, named, overlay_of, pod};
use super::{KUBERNETES, deploy, nats_server_takes, output, parts, validate};

const COMPONENT: &str = "broker-tls";
const ROLES: [&str; 3] = ["prewarm-dispatcher", "prewarm-worker", "prewarm-webhook"];

/// The cluster's overlay with the receiver, with and without TLS.
fn rendered(with: &[&str], more: &str) -> (String, Vec<Value>) {
    let text = overlay_of("overlays/cluster-broker", with, more);
    let objects = serde_saphyr::from_multiple(&text).unwrap();
    (text, objects)
}

fn with_tls() -> (String, Vec<Value>) {
    rendered(&["webhook", COMPONENT], "")
}

/// The certificate that the component's comment asks cert-manager for.
fn certificate() -> Value {
    serde_saphyr::from_str(&example(COMPONENT, "apiVersion: cert-manager.io/v1")).unwrap()
}

fn texts(list: &Value) -> Vec<&str> {
    let all = list.as_array().unwrap().iter();
    all.map(|text| text.as_str().unwrap()).collect()
}

/// A variable of the servers' container, as Kubernetes fills it in for server `number`.
fn variable(nats: &Value, name: &str, number: usize) -> String {
    let value = named(&nats["env"], name)["value"].as_str().unwrap();
    value.replace("$(SERVER_NAME)", &format!("prewarm-nats-{number}"))
}

#[test]
fn kubernetes_takes_the_servers_with_tls_and_they_have_what_they_name() {
    let (text, all) = with_tls();
    let dir = parts::temp_dir();
    let manifest = dir.path().join("manifest.yaml");
    fs::write(&manifest, text).unwrap();
    for version in KUBERNETES {
        let (valid, said) = validate(&manifest, version);
        assert!(valid, "{version}: {said}");
    }
    let servers = pod(&all, "prewarm-nats");
    let nats = &servers["containers"][0];
    let mount = named(&nats["volumeMounts"], "tls");
    assert_eq!(mount["readOnly"], true);
    let folder = Path::new(mount["mountPath"].as_str().unwrap());
    // cert-manager's keys of a Secret are the names of the files.
    for (name, file) in [
        ("TLS_CERT", "tls.crt"),
        ("TLS_KEY", "tls.key"),
        ("TLS_CA", "ca.crt"),
    ] {
        assert_eq!(Path::new(&variable(nats, name, 0)), folder.join(file));
    }
    // Readable for the group that the servers run as, and for nobody else.
    let wanted = json!({"secretName": certificate()["spec"]["secretName"], "defaultMode": 0o440});
    assert_eq!(named(&servers["volumes"], "tls")["secret"], wanted);
    assert_eq!(servers["securityContext"]["fsGroup"], 65532);
    // $(SERVER_NAME) means something only after SERVER_NAME.
    let names: Vec<&Value> = nats["env"].as_array().unwrap().iter().collect();
    let place = |name: &str| names.iter().position(|it| it["name"] == name).unwrap();
    assert!(place("SERVER_NAME") < place("ADVERTISE"));
    // Probes and the way in which a server goes are those of the overlay.
    let plain = rendered(&["webhook"], "").1;
    let plain = &pod(&plain, "prewarm-nats")["containers"][0];
    for key in [
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
        "lifecycle",
        "ports",
    ] {
        assert!(
            plain[key] != Value::Null && nats[key] == plain[key],
            "{key}"
        );
    }
}

#[test]
fn every_role_has_the_ca_and_none_the_brokers_key() {
    let all = with_tls().1;
    for name in ROLES {
        let pod = pod(&all, name);
        let container = &pod["containers"][0];
        let mount = named(&container["volumeMounts"], "broker-ca");
        let file = format!("{}/ca.crt", mount["mountPath"].as_str().unwrap());
        let said = &named(&container["env"], "PREWARM_NATS_CA")["value"];
        assert_eq!(said, &json!(file), "{name}");
        // A file that is mounted by itself would never be renewed.
        assert!(mount["subPath"].is_null(), "{name}");
        let volume = named(&pod["volumes"], "broker-ca");
        assert_eq!(
            volume["configMap"],
            json!({"name": "prewarm-nats-ca"}),
            "{name}"
        );
        // kubelet of a node may read the secrets of that node's pods.
        assert!(!pod.to_string().contains("prewarm-nats-tls"), "{name}");
    }
}

#[test]
fn the_certificate_that_is_asked_for_has_every_name_that_is_used() {
    let certificate = certificate();
    let usages = texts(&certificate["spec"]["usages"]);
    assert!(usages.contains(&"server auth") && usages.contains(&"client auth"));
    let dir = parts::temp_dir();
    let names = texts(&certificate["spec"]["dnsNames"]);
    Authority::new(dir.path(), "ca.crt").issue_for("nats", &names, |_| {});
    let read = |file: &str| CertificateDer::from_pem_file(dir.path().join(file)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read("ca.crt")).unwrap();
    let verifier = WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(ring::default_provider()),
    );
    let verifier = verifier.build().unwrap();
    let leaf = read("nats.pem");
    let verify = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::now();
        verifier.verify_server_cert(&leaf, &[], &name, &[], now)
    };

    let all = with_tls().1;
    let nats = &pod(&all, "prewarm-nats")["containers"][0];
    let headless = &all.iter().find(|it| it["spec"]["clusterIP"] == "None");
    let headless = headless.unwrap()["metadata"]["name"].as_str().unwrap();
    let mut used = vec![
        "prewarm-nats".to_owned(),
        "prewarm-nats.prewarm-system.svc".to_owned(),
    ];
    for number in 0..3 {
        let advertised = variable(nats, "ADVERTISE", number);
        let host = advertised.strip_suffix(":4222").unwrap();
        // What Kubernetes calls a pod of a headless service.
        assert_eq!(
            host,
            format!("prewarm-nats-{number}.{headless}.prewarm-system.svc")
        );
        used.push(host.to_owned());
        let route = variable(nats, &format!("ROUTE_{number}"), number);
        let (_, host) = route.split_once('@').unwrap();
        used.push(host.strip_suffix(":6222").unwrap().to_owned());
    }
    for name in used {
        verify(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // The addresses of pods, which servers without ADVERTISE tell, are none of them.
    let refused = verify("10.0.0.1").unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
        ),
        "{refused:?}"
    );
}

#[test]
fn nats_server_takes_the_configuration_with_tls_with_client_certificates_and_without() {
    let dir = parts::temp_dir();
    Authority::new(dir.path(), "ca.crt").issue("tls", "prewarm-nats");
    fs::rename(dir.path().join("tls.pem"), dir.path().join("tls.crt")).unwrap();
    let patched = example(COMPONENT, "patches:");
    for (more, verify) in [("", "false"), (patched.as_str(), "true")] {
        let all = rendered(&["webhook", COMPONENT], more).1;
        let nats = &pod(&all, "prewarm-nats")["containers"][0];
        let variables = ["TLS_CERT", "TLS_KEY", "TLS_CA", "TLS_VERIFY", "ADVERTISE"];
        let variables = variables.map(|name| {
            let at = variable(nats, name, 0);
            let here = dir.path().display().to_string();
            (name.to_owned(), at.replace("/etc/nats-tls", &here))
        });
        assert_eq!(variables[3].1, verify);
        let all = nats["env"].as_array().unwrap();
        let times = all.iter().filter(|it| it["name"] == "TLS_VERIFY").count();
        assert_eq!(times, 1);
        nats_server_takes("cluster-tls.conf", &variables);
    }
}

#[test]
fn with_tls_the_cluster_is_the_one_without() {
    let read = |file: &str| fs::read_to_string(deploy().join("nats").join(file)).unwrap();
    let block = |text: &str| {
        let (_, block) = text.split_once("\ncluster {\n").unwrap();
        let (block, _) = block.split_once("\n}\n").unwrap();
        block.to_owned()
    };
    let with = block(&read("cluster-tls.conf"));
    let (begin, tls) = with.split_once("\n  tls {\n").unwrap();
    assert_eq!(begin, block(&read("cluster.conf")));
    // It is the last of the block.
    let (tls, rest) = tls.split_once("\n  }").unwrap();
    assert_eq!(rest, "");
    assert!(tls.contains("    verify: true\n"), "{tls}");
}

/// What systemd says of the unit of the servers with this text beside it.
fn unit_with(drop_in: &str) -> String {
    let dir = parts::temp_dir();
    let read = |name: &str| fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
    // systemd looks whether the program is there, and it is not installed here.
    let installed = |text: &str| text.replace("/usr/local/bin/nats-server", "/bin/true");
    let unit = dir.path().join("nats-server.service");
    fs::write(&unit, installed(&read("nats-server.service"))).unwrap();
    fs::create_dir(dir.path().join("nats-server.service.d")).unwrap();
    let text = installed(&(read("nats-server-tls.conf") + drop_in));
    fs::write(dir.path().join("nats-server.service.d/tls.conf"), text).unwrap();
    output(Command::new("systemd-analyze").arg("verify").arg(&unit))
}

#[test]
fn systemd_takes_the_unit_with_tls() {
    let said = unit_with("");
    assert!(!said.contains("nats-server.service"), "{said}");
    // It reads what is beside the unit.
    let said = unit_with("Nonsense=yes\n");
    assert!(said.contains("nats-server.service.d/tls.conf"), "{said}");
    // The same files as the runbook installs, and every variable of the configuration but for the host's own name.
    let drop_in = fs::read_to_string(deploy().join("systemd/nats-server-tls.conf")).unwrap();
    for set in [
        "TLS_CERT=/etc/nats/tls/tls.crt",
        "TLS_KEY=/etc/nats/tls/tls.key",
        "TLS_CA=/etc/nats/tls/ca.crt",
        "TLS_VERIFY=false",
    ] {
        assert!(drop_in.contains(set), "{set}");
    }
}
