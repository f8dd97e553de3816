//! Secrets in every place where one can be given, and a search for them in everything that is said: logs at their
//! loudest, every message on the broker, metrics, health, spans, and what commands print.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::cell::LIMIT;
use super::talkative::{MARK, PASSWORD, Talkative, basic};
use crate::support::collector::Collector;
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{generated, http};
use crate::support::nats::{NatsServer, NatsVersion, overheard};
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::process::free_port;

/// One line of everything: deep enough for every library we use.
const LOUD: &str = "trace";
const PROXY: &str = "http://bob:PLANTED-proxy-password@127.0.0.1:1";
const WEBHOOK: &str = "PLANTED-webhook-secret";

/// The secret in every form in which it could be found: as it is, and as a part of a base64 text, wherever it begins.
fn forms() -> Vec<String> {
    use base64::Engine as _;
    let mut forms = vec![MARK.to_owned()];
    for before in 0..3 {
        let text = format!("{}{MARK}", "x".repeat(before));
        let encoded = base64::engine::general_purpose::STANDARD.encode(text);
        // The first and the last characters depend on what stands beside it.
        let begin = (before * 8).div_ceil(6);
        let end = (before + MARK.len()) * 8 / 6;
        forms.push(encoded[begin..end].to_owned());
    }
    forms
}

/// Where it was found in `text`, with what stands around.
fn found(place: &str, text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut found = Vec::new();
    for form in forms() {
        let (haystack, needle) = match form.as_str() {
            MARK => (&lower, MARK.to_lowercase()),
            _ => (&text.to_owned(), form),
        };
        for (at, _) in haystack.match_indices(&needle).take(5) {
            let around = |from: usize, to: usize| {
                String::from_utf8_lossy(&haystack.as_bytes()[from..to]).into_owned()
            };
            let shown = around(at.saturating_sub(200), (at + 60).min(haystack.len()));
            found.push(format!("{place}: …{shown}…"));
        }
    }
    found
}

/// The node's files with secrets in them.
struct Files {
    folder: TempDir,
}

impl Files {
    fn write(registry: &Talkative, containerd: &Containerd) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Self { folder };
        let addr = registry.addr();
        let port = addr.rsplit(':').next().unwrap();
        let wrong = |what: &str| basic("bob", &format!("{MARK}-{what}"));
        let auth = |value: String| value.trim_start_matches("Basic ").to_owned();
        files.put(
            "docker.json",
            &json!({
                "auths": {(addr.clone()): {"auth": auth(basic("bob", PASSWORD))}},
                "credHelpers": {(format!("localhost:{port}")): "planted", "r.invalid": "failing"},
            })
            .to_string(),
        );
        let secret = json!({"auths": {(addr.clone()): {"auth": auth(wrong("pull-secret"))}}});
        files.put("secrets/team", &secret.to_string());
        files.put(
            "secrets/broken",
            &format!("{{\"auths\": {{\"{addr}\": {MARK}}}}}"),
        );
        files.program(
            "bin/docker-credential-planted",
            &format!(
                "cat > /dev/null\necho '{{\"Username\":\"bob\",\"Secret\":\"{MARK}-helper\"}}'"
            ),
        );
        files.program(
            "bin/docker-credential-failing",
            &format!(
                "cat > /dev/null; echo {MARK}-helper-says; echo {MARK}-helper-shouts >&2; exit 1"
            ),
        );
        files.program(
            "plugins/provider",
            &format!(
                "cat > /dev/null\necho '{}'",
                json!({
                    "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                    "cacheKeyType": "Registry", "cacheDuration": "1h",
                    "auth": {(addr.clone()): {"username": "bob", "password": format!("{MARK}-provider")}},
                })
            ),
        );
        files.program(
            "plugins/chatty",
            &format!("cat > /dev/null; echo {MARK}-plugin-says"),
        );
        files.put(
            "providers.yaml",
            &format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
                 - {{name: provider, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ['127.0.0.1:{port}'], \
                 defaultCacheDuration: 1h, env: [{{name: KEY, value: {MARK}-plugin-key}}]}}\n\
                 - {{name: chatty, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ['127.0.0.1:{port}'], \
                 defaultCacheDuration: 1h}}\n"
            ),
        );
        let sources = "sources: {generic: {secret-env: HOOK_SECRET, registries: [r.invalid]}, quay: {secret-env: HOOK_SECRET, registries: [quay.io]}}";
        files.put("sources.yaml", sources);
        let hosts = format!(
            "server = \"http://{addr}\"\n[host.\"http://bob:{MARK}-in-hosts@{addr}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{addr}\".header]\nx-proxy-auth = \"{MARK}-header\"\n"
        );
        containerd.registry_hosts(&addr, &hosts);
        // What cannot be read is told, but not what stands there.
        let broken = format!("[header]\nauthorization = {MARK}-unquoted\n");
        containerd.registry_hosts("broken.invalid", &broken);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        self.put(name, &format!("#!/bin/sh\n{script}\n"));
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(name), executable).unwrap();
    }

    /// A call with all of it.
    fn call(&self, args: &[&str], broker: &str, containerd: &Containerd) -> Prewarm {
        let path = std::env::var("PATH").unwrap();
        prewarm(args)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("PREWARM_NATS_URL", broker)
            .env("PREWARM_LOG", LOUD)
            .env("PREWARM_LOG_FORMAT", "json")
            .env("PREWARM_DOCKER_CONFIG", self.path("docker.json"))
            .env("PREWARM_SECRETS_DIR", self.path("secrets"))
            .env(
                "PREWARM_CREDENTIAL_PROVIDER_CONFIG",
                self.path("providers.yaml"),
            )
            .env("PREWARM_CREDENTIAL_PROVIDER_BIN_DIR", self.path("plugins"))
            .env("PREWARM_CONTAINERD_ADDRESS", containerd.socket())
            .env("PREWARM_REGISTRY_CONFIG_DIR", containerd.certs_dir())
            .env("HTTPS_PROXY", PROXY)
            .env("HOOK_SECRET", WEBHOOK)
    }
}

async fn get(port: u16, path: &str) -> String {
    let url = format!("http://127.0.0.1:{port}{path}");
    match http().get(url).send().await {
        Ok(answer) => answer.text().await.unwrap(),
        Err(error) => panic!("{path}: {error}"),
    }
}

async fn command(call: Prewarm) -> String {
    let output = call.run().await;
    format!("{}\n{}", output.stdout, output.stderr)
}

struct Roles {
    names: [(&'static str, Role, u16); 3],
    hooks: u16,
}

impl Roles {
    async fn start(
        files: &Files,
        broker: &str,
        containerd: &Containerd,
        collector: &Collector,
    ) -> Self {
        let hooks = free_port();
        let start = |role: &'static str| {
            let port = free_port();
            let call = files
                .call(&[role], broker, containerd)
                .env("PREWARM_METRICS_LISTEN", format!("127.0.0.1:{port}"))
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
                .env(
                    "OTEL_EXPORTER_OTLP_HEADERS",
                    format!("authorization=Bearer%20{MARK}-collector"),
                );
            (role, call, port)
        };
        let (name, call, port) = start("dispatcher");
        let mut dispatcher = (name, call.spawn(name), port);
        dispatcher.1.logs("taking pushes", LIMIT).await;
        let (name, call, port) = start("worker");
        let call = call
            .env("PREWARM_NODE", "node")
            .env("PREWARM_MIN_FREE_DISK", "0");
        let mut worker = (name, call.spawn(name), port);
        worker.1.logs("\"registered\"", LIMIT).await;
        let (name, call, port) = start("webhook");
        let call = call
            .env("PREWARM_LISTEN", format!("127.0.0.1:{hooks}"))
            .env("PREWARM_WEBHOOK_CONFIG", files.path("sources.yaml"));
        let mut webhook = (name, call.spawn(name), port);
        webhook.1.logs("the broker is connected", LIMIT).await;
        Self {
            names: [dispatcher, worker, webhook],
            hooks,
        }
    }

    /// Proofs that hold and proofs that do not, as a header and in the path.
    async fn tell(&self) {
        let push =
            json!({"registry": "r.invalid", "repository": "team/app", "tag": "1"}).to_string();
        for (path, authorization) in [
            ("generic", WEBHOOK.to_owned()),
            ("generic", format!("Bearer {WEBHOOK}")),
            ("generic", format!("Bearer {MARK}-wrong-proof")),
            (&format!("quay/{WEBHOOK}"), String::new()),
            (&format!("quay/{MARK}-wrong-path"), String::new()),
        ] {
            let url = format!("http://127.0.0.1:{}/webhooks/{path}", self.hooks);
            let call = http().post(url).body(push.clone());
            let call = match authorization.as_str() {
                "" => call,
                value => call.header("authorization", value),
            };
            call.send().await.unwrap();
        }
    }

    /// What their logs, metrics and health tell.
    async fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, role, port) in &self.names {
            let log = role.log();
            assert!(log.contains("\"level\":\"TRACE\""), "{name} is not loud");
            leaks.extend(found(&format!("the log of the {name}"), &log));
            for path in ["/metrics", "/readyz", "/healthz"] {
                leaks.extend(found(
                    &format!("{path} of the {name}"),
                    &get(*port, path).await,
                ));
            }
        }
        leaks
    }
}

/// The jobs, and a word that each outcome has to hold: that it happened as planned.
fn jobs(registry: &str) -> Vec<(&'static str, String, &'static str)> {
    let port = registry.rsplit(':').next().unwrap();
    let of = |repository: &str| format!("{registry}/team/{repository}:1");
    vec![
        // Before the image is there.
        ("broken", of("broken"), "RegistryUnavailable"),
        ("good", of("good"), "Succeeded"),
        ("refused", of("refused"), "Unauthorized"),
        ("odd", of("odd"), "Unauthorized"),
        (
            "proxied",
            "r.invalid/team/app:1".to_owned(),
            "RegistryUnavailable",
        ),
        (
            "helped",
            format!("localhost:{port}/team/good:1"),
            "Unauthorized",
        ),
        (
            "unread",
            "broken.invalid/team/app:1".to_owned(),
            "RegistryUnavailable",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_told() {
    let user = format!(
        "authorization: {{ users: [{{user: prewarm, password: \"{MARK}-nats-password\"}}] }}"
    );
    let image = generated(5, 2, 20_000).build();
    let (nats, registry, containerd, collector) = tokio::join!(
        NatsServer::start_with(NatsVersion::V2_15, &user),
        Talkative::start(image),
        Containerd::start(ContainerdVersion::V2_1),
        Collector::start(),
    );
    let broker = format!(
        "nats://prewarm:{MARK}-nats-password@127.0.0.1:{}",
        nats.port()
    );
    let ears = async_nats::ConnectOptions::new()
        .user_and_password("prewarm".to_owned(), format!("{MARK}-nats-password"))
        .connect(&nats.url())
        .await
        .unwrap();
    let said = overheard(ears).await;
    let files = Files::write(&registry, &containerd);
    let call = |args: &[&str]| files.call(args, &broker, &containerd);
    let roles = Roles::start(&files, &broker, &containerd, &collector).await;
    roles.tell().await;

    let mut printed = run_jobs(&call, &registry).await;
    printed.push_str(&refused_logins(&files, &nats, &containerd).await);
    collector.named("job", &[], jobs("").len()).await;
    collector.named("pull", &[], jobs("").len()).await;

    assert_sent(&registry.heard());
    let mut leaks = roles.leaks().await;
    let said = said.lock().unwrap().clone();
    for part in [
        "prewarm.task.node.good",
        "$KV.prewarm_jobs.odd",
        "prewarm.event.task.refused",
    ] {
        assert!(said.contains(part), "{part} was not heard");
    }
    leaks.extend(found("a message", &said));
    leaks.extend(found("a command", &printed));
    for (_, body) in collector.bodies() {
        leaks.extend(found("a span", &body.to_string()));
    }
    leaks.sort();
    leaks.dedup();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}

/// Runs the jobs and prints everything that can be printed of them.
async fn run_jobs(call: &impl Fn(&[&str]) -> Prewarm, registry: &Talkative) -> String {
    let mut printed = String::new();
    for (name, image, outcome) in jobs(&registry.addr()) {
        let args = [
            "run",
            &image,
            "--name",
            name,
            "--pull-secret",
            "team",
            "--pull-secret",
            "broken",
        ];
        let run = call(&args).arg("--backoff-limit").arg("0").arg("--wait");
        let _ = writeln!(printed, "{}", command(run).await);
        let record = command(call(&["get", "job", name, "-o", "json"])).await;
        assert!(
            record.contains(&format!("\"{outcome}\"")),
            "{name}: {outcome} in {record}"
        );
        printed.push_str(&record);
        let described = command(call(&["describe", "job", name])).await;
        printed.push_str(&described);
    }
    for args in [
        &["check"][..],
        &["get", "jobs", "-o", "yaml"],
        &["get", "nodes", "-o", "wide"],
        &["describe", "node", "node"],
        &["events", "-o", "json"],
    ] {
        printed.push_str(&command(call(args)).await);
    }
    printed
}

/// It can only be found where it was: the registry has to have got all of it.
fn assert_sent(heard: &str) {
    let sent =
        ["pull-secret", "provider", "helper"].map(|what| basic("bob", &format!("{MARK}-{what}")));
    for secret in sent.iter().map(String::as_str).chain([
        basic("bob", PASSWORD).as_str(),
        "PLANTED-access-token",
        "Bearer PLANTED-anonymous-token",
        "PLANTED-signature",
        "PLANTED-header",
        "PLANTED-challenge",
    ]) {
        assert!(heard.contains(secret), "{secret} was never sent");
    }
}

/// What is said of logins that the broker refuses, or that cannot be read.
async fn refused_logins(files: &Files, nats: &NatsServer, containerd: &Containerd) -> String {
    let port = nats.port();
    let here = format!("nats://127.0.0.1:{port}");
    files.put(
        "user.creds",
        &format!("-----BEGIN NATS USER JWT-----\n{MARK}-jwt\n------END NATS USER JWT------\n"),
    );
    files.put("user.nk", &format!("{MARK}-seed"));
    files.put(
        "prewarm.yaml",
        &format!("nats-url: [\n  nats://bob:{MARK}-config@127.0.0.1:{port}\n"),
    );
    let with = |url: &str, args: &[&str], file: &Path| files.call(args, url, containerd).arg(file);
    let mut printed = String::new();
    for call in [
        files.call(
            &["check"],
            &format!("nats://{MARK}-token@127.0.0.1:{port}"),
            containerd,
        ),
        files.call(
            &["check"],
            &format!("nats://bob:{MARK}-wrong@127.0.0.1:{port}"),
            containerd,
        ),
        files.call(
            &["check"],
            &format!("nats://bob:{MARK}-unreachable@127.0.0.1:1"),
            containerd,
        ),
        files.call(
            &["check"],
            &format!("http://bob:{MARK}-no-nats@127.0.0.1:1"),
            containerd,
        ),
        with(&here, &["check", "--nats-creds"], &files.path("user.creds")),
        with(&here, &["check", "--nats-nkey"], &files.path("user.nk")),
        with(
            &here,
            &["get", "jobs", "--config"],
            &files.path("prewarm.yaml"),
        ),
    ] {
        let said = command(call).await;
        assert!(!said.trim().is_empty());
        printed.push_str(&said);
    }
    printed
}

#[test]
fn the_search_finds_what_is_there() {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for text in [
        "a PLANTED b".to_owned(),
        "planted".to_owned(),
        encode("bob:PLANTED-password"),
        encode("abcd:PLANTED-password"),
        encode("abcde:PLANTED-password"),
        encode("PLANTED"),
    ] {
        assert!(!found("here", &text).is_empty(), "{text}");
    }
    assert!(found("here", "a plant").is_empty());
}
