//! The shipped servers with TLS: for their clients, between themselves, and when certificates are renewed.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::lame_duck::{Pod, hook};
use crate::manifests::{cluster_broker_with, nats};
use crate::support::authority::Authority;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::nats_cluster::NatsCluster;
use crate::support::operator::{Good, Operator};
use crate::support::parts;
use crate::support::prewarm::{Output, Prewarm, prewarm};
use crate::support::process::free_port;
use crate::support::shipped::{self, Ports, TLS_HOST};
use crate::support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(60);
/// The last of three, whose part an impostor plays.
const LAST: usize = 2;

/// Folders of three servers with a certificate each, and the CA's for clients.
struct Files {
    dir: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let dir = parts::temp_dir();
        let authority = Authority::new(dir.path(), "ca.crt");
        let files = Self { dir, authority };
        for folder in files.folders() {
            std::fs::create_dir(&folder).unwrap();
            issue(&files.authority, files.dir.path(), &folder);
            files.trust(&["ca.crt"]);
        }
        files
    }

    fn folders(&self) -> Vec<PathBuf> {
        let folder = |number: usize| self.dir.path().join(format!("server-{number}"));
        (0..=LAST).map(folder).collect()
    }

    /// The file of a CA.
    fn ca(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the servers trust these CAs, once they read their files.
    fn trust(&self, authorities: &[&str]) {
        let read = |name: &&str| std::fs::read_to_string(self.ca(name)).unwrap();
        let all: String = authorities.iter().map(read).collect();
        for folder in self.folders().iter().filter(|folder| folder.exists()) {
            std::fs::write(folder.join("ca.crt"), &all).unwrap();
        }
    }

    async fn cluster(&self, version: NatsVersion) -> NatsCluster {
        NatsCluster::shipped_with_tls(version, &self.folders(), &self.ca("ca.crt")).await
    }
}

/// Writes a certificate for [`TLS_HOST`] as a server's folder has it; `dir` is the authority's.
fn issue(authority: &Authority, dir: &Path, folder: &Path) {
    authority.issue("tls", TLS_HOST);
    std::fs::rename(dir.join("tls.pem"), folder.join("tls.crt")).unwrap();
    std::fs::rename(dir.join("tls.key"), folder.join("tls.key")).unwrap();
}

fn check(scheme: &str, login: &str, port: u16) -> Prewarm {
    let url = format!("{scheme}://{login}{TLS_HOST}:{port}");
    prewarm(["check", "--runtime", "simulated"]).env("NATS_URL", url)
}

/// `check` is let in; that nobody set the broker up comes after that.
async fn is_let_in(call: Prewarm) {
    let output = call.run().await;
    let stdout = &output.stdout;
    assert!(stdout.starts_with("ok    broker        "), "{output:?}");
}

/// `check` fails at the broker and says each of these.
async fn fails(call: Prewarm, said: &[&str]) -> Output {
    let output = call.run().await;
    assert_eq!(output.code, 3, "{output:?}");
    let stdout = &output.stdout;
    assert!(stdout.starts_with("FAIL  broker        "), "{output:?}");
    for part in said {
        assert!(stdout.contains(part), "{part:?} is missing: {output:?}");
    }
    output
}

/// What the monitor of a server says, which is asked without TLS.
async fn monitor(cluster: &NatsCluster, number: usize, path: &str) -> Value {
    let (status, body) = cluster.monitor(number, path).await.unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Whom a server has routes to.
async fn routes(cluster: &NatsCluster, number: usize) -> BTreeSet<String> {
    let routes = monitor(cluster, number, "/routez").await;
    let routes = routes["routes"].as_array().unwrap().iter();
    routes
        .map(|route| route["remote_name"].as_str().unwrap().to_owned())
        .collect()
}

/// What a server answers to a client that does not speak TLS, to the end of the connection.
async fn answer_in_clear(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let login = "CONNECT {\"user\": \"core\", \"pass\": \"core\", \"verbose\": false}\r\nPING\r\n";
    stream.write_all(login.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It may be cut off with a reset, after what it was told.
    let _ = within(
        LIMIT,
        "the server to hang up",
        stream.read_to_end(&mut answer),
    )
    .await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_the_servers_are_a_cluster_and_nobody_speaks_with_them_in_clear() {
    for version in NatsVersion::ALL {
        let files = Files::new();
        // It waits until there is a stream with three replicas.
        let cluster = files.cluster(version).await;
        for number in 0..=LAST {
            let others = (0..=LAST).filter(|other| *other != number);
            let others: BTreeSet<String> = others.map(NatsCluster::name).collect();
            eventually("a route to each other", LIMIT, async || {
                match routes(&cluster, number).await {
                    seen if seen == others => Ok(()),
                    seen => Err(seen),
                }
            })
            .await;
            let vars = monitor(&cluster, number, "/varz").await;
            for (place, key) in [
                (&vars, "tls_required"),
                (&vars["cluster"], "tls_required"),
                (&vars["cluster"], "tls_verify"),
            ] {
                assert_eq!(place[key], true, "{version:?}: {key} of {place}");
            }
        }
        let port = cluster.servers[0].port();
        let with = |scheme: &str| {
            let call = check(scheme, "core:core@", port);
            call.arg("--nats-ca").arg(files.ca("ca.crt"))
        };
        is_let_in(with("tls")).await;
        is_let_in(with("nats")).await;
        for scheme in ["tls", "nats"] {
            let call = check(scheme, "core:core@", port);
            let untrusted = ["no TLS connection", "UnknownIssuer", "--nats-ca"];
            fails(call, &untrusted).await;
        }
        let answer = answer_in_clear(port).await;
        assert!(answer.starts_with("INFO "), "{answer}");
        assert!(answer.contains("\"tls_required\":true"), "{answer}");
        assert!(!answer.contains("PONG"), "{answer}");
    }
}

/// A client that is told of one server only.
async fn client_of(cluster: &NatsCluster, number: usize, ca: &Path) -> Client {
    let options = ConnectOptions::with_user_and_password("core".into(), "core".into());
    let options = options.add_root_certificates(ca.to_owned());
    let url = format!("tls://{TLS_HOST}:{}", cluster.servers[number].port());
    let connecting = within(LIMIT, "a connection", options.connect(url));
    connecting.await.unwrap()
}

/// The client checks the name that it was told by the other servers; their addresses are in no certificate.
#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_only_server_that_it_was_told_of_goes_on_at_another() {
    for version in NatsVersion::ALL {
        let files = Files::new();
        let mut cluster = files.cluster(version).await;
        let ca = files.ca("ca.crt");
        let port = cluster.servers[0].port();
        let by_address = format!("tls://core:core@127.0.0.1:{port}");
        let call = prewarm(["check", "--runtime", "simulated", "--nats-ca"]).arg(&ca);
        let call = call.env("NATS_URL", by_address);
        fails(call, &["not valid for name", "as its certificate does"]).await;

        let client = client_of(&cluster, 0, &ca).await;
        let told: BTreeSet<String> = client.server_info().connect_urls.into_iter().collect();
        let servers = cluster.servers.iter();
        let all: BTreeSet<String> = servers
            .map(|server| format!("{TLS_HOST}:{}", server.port()))
            .collect();
        assert_eq!(told, all, "{version:?}");
        let jetstream = jetstream::new(client.clone());
        let config = stream::Config {
            name: "KEPT".to_owned(),
            num_replicas: 3,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let url = format!("tls://core:core@{TLS_HOST}:{port}");
        let role = ["dispatcher", "--replicas=3", "--metrics-listen=off"];
        let role = prewarm(role).env("NATS_URL", url);
        let mut role = role.arg("--nats-ca").arg(&ca).spawn("the dispatcher");
        role.logs("leading", LIMIT).await;

        cluster.servers[0].kill();
        eventually("the stream to take a message", LIMIT, async || {
            let sent = jetstream.publish("KEPT", "".into()).await;
            match sent {
                Ok(ack) => ack.await.map(drop).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        assert_ne!(client.server_info().server_name, NatsCluster::name(0));
        eventually("the dispatcher to be connected again", LIMIT, async || {
            let log = role.log();
            let times = log.matches("the broker is connected").count();
            (times >= 2).then_some(()).ok_or(log)
        })
        .await;
        assert!(role.terminate().await.success(), "{}", role.log());
    }
}

/// Waits until one of the first server and the impostor has said one of these of a route between them, and looks who is
/// there.
async fn refuses_a_route(cluster: &mut NatsCluster, impostor: &mut NatsServer, said: &[&str]) {
    let first = cluster.servers[0].process();
    eventually("a route to be refused", LIMIT, async || {
        let logs = first.log() + &impostor.process().log();
        let refused = said.iter().any(|said| logs.contains(said));
        refused.then_some(()).ok_or(logs)
    })
    .await;
    let real = BTreeSet::from([NatsCluster::name(1)]);
    assert_eq!(routes(cluster, 0).await, real);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_proper_certificate_is_no_server_of_the_cluster() {
    for version in NatsVersion::ALL {
        let files = Files::new();
        let mut cluster = files.cluster(version).await;
        let (strange, own) = (files.ca("strange"), &files.folders()[LAST]);
        std::fs::create_dir(&strange).unwrap();
        let stranger = Authority::new(&strange, "own.crt");
        issue(&stranger, &strange, &strange);
        // It would trust the cluster: that is not what keeps it out.
        std::fs::copy(own.join("ca.crt"), strange.join("ca.crt")).unwrap();
        // What the clients' authority, if it is the same, gives a role.
        let of_a_client = files.ca("of-a-client");
        std::fs::create_dir(&of_a_client).unwrap();
        std::fs::copy(own.join("ca.crt"), of_a_client.join("ca.crt")).unwrap();
        files.authority.issue("tls", "client.test");
        std::fs::rename(files.ca("tls.pem"), of_a_client.join("tls.crt")).unwrap();
        std::fs::rename(files.ca("tls.key"), of_a_client.join("tls.key")).unwrap();

        cluster.servers[LAST].stop().await;
        let ports = cluster.ports.clone();
        let tls = |folder: &Path| shipped::cluster_tls(LAST, &ports, folder, false);
        // Who asks for the route finds the other's authority unknown, or has no certificate of one that is asked for.
        let strangers: &[&str] = &[
            "certificate signed by unknown authority",
            "client didn't provide a certificate",
        ];
        let plain: &[&str] = &["first record does not look like a TLS handshake"];
        for (text, said) in [
            (tls(&strange), strangers),
            (tls(&of_a_client), &["Authorization Violation"]),
            (shipped::cluster(shipped::CLUSTER, LAST, &ports), plain),
        ] {
            // It knows the password of routes.
            let mut impostor = NatsServer::start_whole(version, &text).await;
            refuses_a_route(&mut cluster, &mut impostor, said).await;
            impostor.stop().await;
        }
        cluster.servers[LAST].restart().await;
        cluster.in_sync().await;
        eventually("both routes to be there", LIMIT, async || {
            routes(&cluster, 0).await.len() == 2
        })
        .await;
    }
}

/// Has every server read its files.
async fn reload(cluster: &mut NatsCluster, times: usize) {
    for server in &mut cluster.servers {
        server.process().signal(Signal::HUP);
    }
    eventually("every server to have read its files", LIMIT, async || {
        let mut logs = cluster.servers.iter_mut().map(|it| it.process().log());
        let behind = logs.find(|log| log.matches("Reloaded server configuration").count() < times);
        behind.map_or(Ok(()), Err)
    })
    .await;
}

/// As the runbook says it: the new CA beside the old, certificates of the new one, the old one away.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_their_ca_are_renewed_by_reloads_for_clients_and_for_routes() {
    for version in NatsVersion::ALL {
        let files = Files::new();
        let mut cluster = files.cluster(version).await;
        let new = Authority::new(files.dir.path(), "new.crt");
        files.trust(&["ca.crt", "new.crt"]);
        reload(&mut cluster, 1).await;
        let kept = client_of(&cluster, 0, &files.ca("ca.crt")).await;
        for folder in files.folders() {
            issue(&new, files.dir.path(), &folder);
        }
        reload(&mut cluster, 2).await;
        files.trust(&["new.crt"]);
        reload(&mut cluster, 3).await;
        for number in 0..=LAST {
            client_of(&cluster, number, &files.ca("new.crt")).await;
        }
        // Who was there stays.
        assert_eq!(
            kept.statistics()
                .connects
                .load(std::sync::atomic::Ordering::Relaxed),
            1
        );
        // The last one knows the new CA alone: it gets on with the others if their routes have the new certificates.
        cluster.servers[LAST].restart().await;
        eventually("the last one to be back", LIMIT, async || {
            let (routes, count) = (routes(&cluster, LAST).await, LAST);
            (routes.len() == count).then_some(()).ok_or(routes)
        })
        .await;
    }
}

/// The pod's own call, with files of a test and a look at them every second.
fn call_of_the_pod(container: &Value, files: &Path, file: &Path, version: NatsVersion) -> Command {
    let words = |key: &str| container[key].as_array().unwrap().clone();
    let words = [words("command"), words("args")].concat();
    let mut words = words.iter().map(|word| word.as_str().unwrap());
    let mut command = Command::new(words.next().unwrap());
    for word in words {
        let here = word
            .replace("/etc/nats/cluster-tls.conf", &file.display().to_string())
            .replace("sleep 60", "sleep 1");
        assert!(
            word == "-c" || here.matches("sleep 1;").count() == 1,
            "{word}"
        );
        command.arg(here);
    }
    let programs = version.program().parent().unwrap().display().to_string();
    command.env(
        "PATH",
        format!("{programs}:{}", std::env::var("PATH").unwrap()),
    );
    for (variable, name) in [
        ("TLS_CERT", "tls.crt"),
        ("TLS_KEY", "tls.key"),
        ("TLS_CA", "ca.crt"),
    ] {
        command.env(variable, files.join(name));
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_takes_a_renewed_certificate_by_itself_and_goes_as_one_without_tls() {
    let all = cluster_broker_with("broker-tls");
    let container = nats(&all);
    for version in NatsVersion::ALL {
        let files = Files::new();
        let folder = &files.folders()[0];
        let text = |ports: &[Ports]| shipped::cluster_tls(0, ports, folder, false);
        let call = |file: &Path| call_of_the_pod(container, folder, file, version);
        let mut pod = Pod::start_by(text, call).await;
        let with = |ca: &str| {
            let call = check("tls", "core:core@", pod.port);
            call.arg("--nats-ca").arg(files.ca(ca))
        };
        is_let_in(with("ca.crt")).await;
        let new = Authority::new(files.dir.path(), "new.crt");
        fails(with("new.crt"), &["UnknownIssuer"]).await;
        files.trust(&["new.crt"]);
        issue(&new, files.dir.path(), folder);
        let let_in = async || with("new.crt").run().await;
        eventually("the new certificate", LIMIT, async || {
            let output = let_in().await;
            let is_in = output.stdout.starts_with("ok    broker");
            is_in.then_some(()).ok_or(output)
        })
        .await;
        // Nothing changes for the hook, which says which process the server is. A server without clients ends at once, and
        // with it all of its pod.
        let hook = pod.hook(version, &hook(container)).status;
        let ended_with_it = hook.signal() == Some(Signal::KILL.as_raw());
        assert!(hook.success() || ended_with_it, "{hook:?}");
        let ended = pod.process.end(LIMIT).await;
        assert!(ended.success(), "{version:?}: {ended}");
        let log = pod.process.log();
        assert!(log.contains("Entering lame duck mode"), "{log}");
    }
}

/// `tls` of the shipped configuration with `verify`.
fn mutual_tls(folder: &Path) -> String {
    let ports = [(); 3].map(|()| Ports {
        route: free_port(),
        monitor: free_port(),
    });
    let text = shipped::cluster_tls(0, &ports, folder, true);
    let (_, block) = text.split_once("\ntls {\n").unwrap();
    let (block, _) = block.split_once("\n}\n").unwrap();
    format!("tls {{\n{block}\n}}\n")
}

#[tokio::test]
async fn with_client_certificates_a_login_is_needed_all_the_same_signed_ones_too() {
    for version in NatsVersion::ALL {
        let files = Files::new();
        files.authority.issue("client", "client.test");
        let tls = mutual_tls(&files.folders()[0]);
        let operator = Operator::new();
        let creds = files.ca("user.creds");
        operator.credentials(&creds, Good::Always);
        for (users, login) in [
            (shipped::accounts(), None),
            (operator.config(), Some(creds)),
        ] {
            let nats = NatsServer::start_with(version, &format!("{users}{tls}")).await;
            let url = |with_login: bool| {
                let user = if with_login && login.is_none() {
                    "core:core@"
                } else {
                    ""
                };
                let call = check("tls", user, nats.port());
                let call = call.arg("--nats-ca").arg(files.ca("ca.crt"));
                match &login {
                    Some(creds) if with_login => call.arg("--nats-creds").arg(creds),
                    _ => call,
                }
            };
            let certified = |call: Prewarm| {
                let call = call.arg("--nats-cert").arg(files.ca("client.pem"));
                call.arg("--nats-key").arg(files.ca("client.key"))
            };
            is_let_in(certified(url(true))).await;
            fails(url(true), &["--nats-cert"]).await;
            fails(certified(url(false)), &["refused the login"]).await;
        }
    }
}
