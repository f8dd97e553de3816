//! Ways to log in that work are told to nobody: seeds, keys and tokens, while roles and commands use them, and talk as much
//! as they can. What else is a secret, and what is refused, tests/e2e/planted.rs looks for.

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::json;

use super::login::{PUBLIC, SEED, certificates};
use super::roles::get;
use crate::support::kubernetes::KubernetesApi;
use crate::support::nats::{NatsServer, NatsVersion, overheard};
use crate::support::operator::{Good, Operator};
use crate::support::parts;
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::process::free_port;

/// How long a role may take to be there that says everything it does.
const LIMIT: Duration = Duration::from_secs(60);

/// One way in.
struct Login {
    /// In the server's configuration.
    server: String,
    /// The settings of who comes.
    env: Vec<(&'static str, String)>,
    /// The same for a client of the test's own.
    client: ConnectOptions,
    scheme: &'static str,
    secrets: Vec<String>,
}

/// The lines of a PEM file that hold its key.
fn of_pem(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

fn nkey(folder: &Path) -> Login {
    let file = folder.join("user.nk");
    std::fs::write(&file, SEED).unwrap();
    Login {
        server: format!("authorization {{ users: [{{nkey: {PUBLIC}}}] }}"),
        env: vec![("PREWARM_NATS_NKEY", file.display().to_string())],
        client: ConnectOptions::with_nkey(SEED.to_owned()),
        scheme: "nats",
        secrets: vec![SEED.to_owned()],
    }
}

async fn credentials(folder: &Path) -> Login {
    let operator = Operator::new();
    let file = folder.join("user.creds");
    operator.credentials(&file, Good::Always);
    let text = std::fs::read_to_string(&file).unwrap();
    let secrets: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("SU") || line.starts_with("eyJ"))
        .map(str::to_owned)
        .collect();
    assert_eq!(secrets.len(), 2, "the token and the seed");
    Login {
        server: operator.config(),
        env: vec![("PREWARM_NATS_CREDS", file.display().to_string())],
        client: ConnectOptions::with_credentials_file(file).await.unwrap(),
        scheme: "nats",
        secrets,
    }
}

fn client_certificate(folder: &Path) -> Login {
    certificates(folder);
    let path = |name: &str| folder.join(name).display().to_string();
    Login {
        server: format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
            path("server.pem"),
            path("server.key"),
            path("ca.pem")
        ),
        env: vec![
            ("PREWARM_NATS_CA", path("ca.pem")),
            ("PREWARM_NATS_CERT", path("client.pem")),
            ("PREWARM_NATS_KEY", path("client.key")),
        ],
        client: ConnectOptions::new()
            .add_root_certificates(folder.join("ca.pem"))
            .add_client_certificate(folder.join("client.pem"), folder.join("client.key")),
        scheme: "tls",
        secrets: of_pem(&folder.join("client.key")),
    }
}

/// What a role logs and serves.
async fn served(name: &str, role: &Role, port: u16) -> Vec<(String, String)> {
    let log = role.log();
    assert!(log.contains("\"level\":\"TRACE\""), "{name} is not loud");
    let mut places = vec![(format!("the log of the {name}"), log)];
    for path in ["/metrics", "/readyz", "/healthz"] {
        let text = get(port, path).await.unwrap();
        places.push((format!("{path} of the {name}"), text));
    }
    places
}

/// A dispatcher, a worker in a pod and commands, by this login: everything that they say, and what may not be in it.
async fn told(login: Login) -> (Vec<(String, String)>, Vec<String>) {
    let nats = NatsServer::start_with(NatsVersion::V2_15, &login.server).await;
    let api = KubernetesApi::start("node", json!({"pool": "gpu"})).await;
    let url = format!("{}://127.0.0.1:{}", login.scheme, nats.port());
    let said = overheard(login.client.connect(&url).await.unwrap()).await;
    let call = |args: &[&str]| -> Prewarm {
        let call = prewarm(args)
            .env("PREWARM_NATS_URL", &url)
            .env("PREWARM_LOG", "trace")
            .env("PREWARM_LOG_FORMAT", "json");
        let with = |call: Prewarm, (name, value): &(&str, String)| call.env(name, value);
        login.env.iter().fold(call, with)
    };
    let role = |name: &str| -> (Prewarm, u16) {
        let port = free_port();
        let call = call(&[name]).env("PREWARM_METRICS_LISTEN", format!("127.0.0.1:{port}"));
        (call, port)
    };
    let (dispatcher, leads_at) = role("dispatcher");
    let mut dispatcher = dispatcher.spawn("the dispatcher");
    dispatcher.logs("taking pushes", LIMIT).await;
    let (worker, works_at) = role("worker");
    let mut worker = worker
        .env("PREWARM_RUNTIME", "simulated")
        .env("PREWARM_SIMULATED_LATENCY", "1ms")
        .in_a_pod(&api)
        .spawn("the worker");
    worker.logs("\"registered\"", LIMIT).await;

    let image = format!("example.com/app@sha256:{}", "a".repeat(64));
    let mut places = Vec::new();
    for args in [
        &[
            "run",
            &image,
            "--name",
            "base",
            "--selector",
            "pool=gpu",
            "--wait",
        ][..],
        &["check", "--runtime", "simulated", "--node", "node"],
        &["get", "jobs", "-o", "yaml"],
        &["get", "nodes", "-o", "yaml"],
        &["events", "-o", "json"],
    ] {
        let output = call(args).run().await;
        assert_eq!(output.code, 0, "{args:?}: {output:?}");
        places.push((args.join(" "), output.stdout + &output.stderr));
    }
    places.extend(served("dispatcher", &dispatcher, leads_at).await);
    places.extend(served("worker", &worker, works_at).await);
    let said = said.lock().unwrap().clone();
    assert!(said.contains("prewarm.task.node.base"), "{said}");
    places.push(("a message".to_owned(), said));
    assert!(!api.requests().is_empty(), "the token was used");
    let token = std::fs::read_to_string(api.service_account().join("token")).unwrap();
    let mut secrets = login.secrets;
    // Its claims by themselves would be told by who prints what it has read of them.
    secrets.push(token.split('.').nth(1).unwrap().to_owned());
    secrets.push(token);
    (places, secrets)
}

async fn assert_untold(login: Login) {
    let (places, secrets) = told(login).await;
    assert!(secrets.len() > 2 && secrets.iter().all(|secret| secret.len() > 15));
    for secret in secrets {
        for (place, text) in &places {
            if let Some(at) = text.find(&secret) {
                let from = text[..at].rfind('\n').unwrap_or(0);
                panic!("{place}: {}…", &text[from..at]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_and_the_token_of_a_pod_are_never_told() {
    let folder = parts::temp_dir();
    assert_untold(nkey(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_good_are_never_told() {
    let folder = parts::temp_dir();
    assert_untold(credentials(folder.path()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_client_certificate_is_never_told() {
    let folder = parts::temp_dir();
    assert_untold(client_certificate(folder.path())).await;
}
