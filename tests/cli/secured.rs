//! Every way to prove oneself to a broker, on the oldest and the newest nats-server: what `check` says of one that is
//! wrong, expired or missing, and that renewed files are used without a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nkeys::KeyPair;
use tempfile::TempDir;

use super::dispatcher::LIMIT;
use crate::support::authority::{Authority, expired};
use crate::support::distance::Distance;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::operator::{Good, Operator};
use crate::support::parts;
use crate::support::prewarm::{Output, Prewarm, Role, prewarm};
use crate::support::shipped::two_nodes;
use crate::support::wait::eventually;

/// Longer than a role pauses between two attempts to reach its broker.
const RECONNECT_LIMIT: Duration = Duration::from_secs(90);

fn check(url: &str) -> Prewarm {
    prewarm(["check", "--runtime", "simulated"]).env("NATS_URL", url)
}

/// `check` is let in; that nobody set the broker up comes after that.
async fn is_let_in(call: Prewarm) {
    let output = call.run().await;
    let stdout = &output.stdout;
    assert!(
        stdout.starts_with("ok    broker        ") && stdout.contains("ok    jetstream"),
        "{output:?}"
    );
}

/// `check` fails at the broker, ends with 3, and says each of these.
async fn fails(call: Prewarm, said: &[&str]) -> Output {
    let output = call.run().await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stdout.starts_with("FAIL  broker        "),
        "{output:?}"
    );
    for part in said {
        assert!(
            output.stdout.contains(part),
            "{part:?} is missing: {output:?}"
        );
    }
    output
}

fn folder() -> (TempDir, impl Fn(&str) -> PathBuf) {
    let folder = parts::temp_dir();
    let path = folder.path().to_owned();
    (folder, move |name: &str| path.join(name))
}

#[tokio::test]
async fn with_credentials() {
    for version in NatsVersion::ALL {
        let (operator, stranger) = (Operator::new(), Operator::new());
        let nats = NatsServer::start_with(version, &operator.config()).await;
        let (_folder, file) = folder();
        let with = |path: &Path| check(&nats.url()).arg("--nats-creds").arg(path);
        let creds = file("user.creds");
        operator.credentials(&creds, Good::Always);
        is_let_in(with(&creds)).await;
        operator.credentials(&creds, Good::For(Duration::from_secs(3600)));
        is_let_in(with(&creds)).await;
        operator.credentials(&creds, Good::Until(Duration::from_secs(3600)));
        let expired = [
            "refused the login",
            "user.creds expired on 20",
            "get new credentials for this user",
        ];
        fails(with(&creds), &expired).await;
        stranger.credentials(&creds, Good::Always);
        let refused = ["refused the login", "check --nats-creds"];
        fails(with(&creds), &refused).await;
        fails(check(&nats.url()), &refused).await;

        let missing = [
            "cannot use",
            "nothing.creds: No such file",
            "check the path",
        ];
        fails(with(&file("nothing.creds")), &missing).await;
        // Half a renewal: the JWT of one user and the key of another.
        operator.credentials(&creds, Good::Always);
        let mixed = std::fs::read_to_string(&creds).unwrap();
        let (token, _) = mixed.split_once("-----BEGIN USER NKEY SEED").unwrap();
        let seed = KeyPair::new_user().seed().unwrap();
        std::fs::write(&creds, format!("{token}\n{seed}\n")).unwrap();
        let output = fails(with(&creds), &["its seed is not that of its JWT's user"]).await;
        assert!(!format!("{output:?}").contains(&seed), "{output:?}");
        std::fs::write(&creds, "something else").unwrap();
        fails(
            with(&creds),
            &["it holds no seed", "the file that was meant"],
        )
        .await;
    }
}

#[tokio::test]
async fn with_an_nkey() {
    for version in NatsVersion::ALL {
        let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
        let nats = NatsServer::start_with(version, &users(&user)).await;
        let (_folder, file) = folder();
        let seed = file("user.nk");
        let with = |path: &Path| check(&nats.url()).arg("--nats-nkey").arg(path);
        std::fs::write(&seed, user.seed().unwrap()).unwrap();
        is_let_in(with(&seed)).await;
        std::fs::write(&seed, stranger.seed().unwrap()).unwrap();
        let output = fails(with(&seed), &["refused the login", "--nats-nkey"]).await;
        assert!(!format!("{output:?}").contains(&stranger.seed().unwrap()));
        std::fs::write(&seed, KeyPair::new_account().seed().unwrap()).unwrap();
        fails(with(&seed), &["it holds no seed of a user nkey"]).await;
        fails(with(&file("no.nk")), &["no.nk: No such file"]).await;
    }
}

/// An account for this user and JetStream.
fn users(user: &KeyPair) -> String {
    format!(
        "accounts {{ CORE: {{ jetstream: enabled, users: [{{nkey: {}}}] }} }}\n",
        user.public_key()
    )
}

/// nats-server's TLS with this certificate.
fn tls(folder: &Path, certificate: &str, more: &str) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", {more} }}\n",
        path(&format!("{certificate}.pem")),
        path(&format!("{certificate}.key"))
    )
}

/// The same with client certificates of the authority in `ca.pem`.
fn mutual_tls(folder: &Path) -> String {
    let ca = folder.join("ca.pem").display().to_string();
    tls(
        folder,
        "server",
        &format!("ca_file: \"{ca}\", verify: true"),
    )
}

#[tokio::test]
async fn with_tls() {
    for version in NatsVersion::ALL {
        let (folder, file) = folder();
        let authority = Authority::new(folder.path(), "ca.pem");
        Authority::new(folder.path(), "other.pem");
        authority.issue("server", "127.0.0.1");
        authority.issue_with("old", "127.0.0.1", expired);
        let nats = NatsServer::start_with(version, &tls(folder.path(), "server", "")).await;
        let url = format!("tls://127.0.0.1:{}", nats.port());
        let with = |ca: &str| check(&url).arg("--nats-ca").arg(file(ca));
        is_let_in(with("ca.pem")).await;
        let untrusted = ["no TLS connection", "UnknownIssuer", "--nats-ca"];
        fails(check(&url), &untrusted).await;
        fails(with("other.pem"), &untrusted).await;
        fails(with("no.pem"), &["cannot use", "no.pem: No such file"]).await;
        fails(with("server.key"), &["it holds no certificate in PEM"]).await;
        let by_name = format!("tls://localhost:{}", nats.port());
        let call = check(&by_name).arg("--nats-ca").arg(file("ca.pem"));
        fails(call, &["localhost", "as its certificate does"]).await;
        drop(nats);

        let nats = NatsServer::start_with(version, &tls(folder.path(), "old", "")).await;
        let url = format!("tls://127.0.0.1:{}", nats.port());
        let call = check(&url).arg("--nats-ca").arg(file("ca.pem"));
        fails(
            call,
            &["certificate expired", "renew the broker's certificate"],
        )
        .await;
        drop(nats);

        let nats = NatsServer::start(version).await;
        let call = check(&nats.url()).arg("--nats-ca").arg(file("ca.pem"));
        fails(call, &["--nats-ca"]).await;
    }
}

#[tokio::test]
async fn with_mutual_tls() {
    for version in NatsVersion::ALL {
        let (folder, file) = folder();
        let authority = Authority::new(folder.path(), "ca.pem");
        let other = Authority::new(folder.path(), "other.pem");
        authority.issue("server", "127.0.0.1");
        authority.issue("client", "client.test");
        authority.issue_with("old", "client.test", expired);
        other.issue("stranger", "client.test");
        let nats = NatsServer::start_with(version, &mutual_tls(folder.path())).await;
        let url = format!("tls://127.0.0.1:{}", nats.port());
        let without = || check(&url).arg("--nats-ca").arg(file("ca.pem"));
        let with = |certificate: &str, key: &str| {
            let call = without().arg("--nats-cert").arg(file(certificate));
            call.arg("--nats-key").arg(file(key))
        };
        is_let_in(with("client.pem", "client.key")).await;
        fails(without(), &["--nats-cert"]).await;
        fails(with("old.pem", "old.key"), &["client certificate"]).await;
        fails(
            with("stranger.pem", "stranger.key"),
            &["client certificate"],
        )
        .await;
        let mixed = ["client.key", "it is not the key of the certificate"];
        fails(with("old.pem", "client.key"), &mixed).await;
        fails(with("no.pem", "client.key"), &["no.pem: No such file"]).await;
        fails(with("client.pem", "no.key"), &["no.key: No such file"]).await;
    }
}

/// A dispatcher that logs in this way, and leads.
async fn dispatcher(url: &str, flags: &[(&str, PathBuf)]) -> Role {
    let mut call = prewarm(["dispatcher", "--metrics-listen", "off"]).env("NATS_URL", url);
    for (flag, path) in flags {
        call = call.arg(flag).arg(path);
    }
    let mut dispatcher = call.spawn("the dispatcher");
    dispatcher.logs("leading", LIMIT).await;
    dispatcher
}

/// Waits until it has been connected so often.
async fn connected(dispatcher: &Role, times: usize) {
    let what = format!("the dispatcher to connect for the {times}. time");
    eventually(&what, RECONNECT_LIMIT, async || {
        let log = dispatcher.log();
        if log.matches("the broker is connected").count() >= times {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
}

#[tokio::test]
async fn renewed_credentials_are_used_when_the_old_ones_expire() {
    let operator = Operator::new();
    let nats = NatsServer::start_with(NatsVersion::V2_15, &operator.config()).await;
    let (_folder, file) = folder();
    let creds = file("user.creds");
    operator.credentials(&creds, Good::For(Duration::from_secs(20)));
    let mut role = dispatcher(&nats.url(), &[("--nats-creds", creds.clone())]).await;
    // The broker ends the connection when they expire, and refuses them from then on.
    let line = role.logs("this login has expired", RECONNECT_LIMIT).await;
    assert!(line.contains("user.creds"), "{line}");
    operator.credentials(&creds, Good::Always);
    connected(&role, 2).await;
    assert!(role.terminate().await.success(), "{}", role.log());
}

#[tokio::test]
async fn a_renewed_nkey_is_used_at_the_next_connection_and_a_broken_file_is_not() {
    let (folder, file) = folder();
    let (seed, conf) = (file("user.nk"), file("users.conf"));
    let write = |user: &KeyPair| {
        std::fs::write(&conf, users(user)).unwrap();
        std::fs::write(&seed, user.seed().unwrap()).unwrap();
    };
    write(&KeyPair::new_user());
    // nats-server looks for it from the folder of its own configuration, which is beside ours.
    let beside = folder.path().file_name().unwrap().to_str().unwrap();
    let include = format!("include \"../{beside}/users.conf\"");
    let mut nats = NatsServer::start_with(NatsVersion::V2_10, &include).await;
    let role = dispatcher(&nats.url(), &[("--nats-nkey", seed.clone())]).await;
    write(&KeyPair::new_user());
    nats.restart().await;
    connected(&role, 2).await;
    std::fs::write(&seed, "half a se").unwrap();
    nats.restart().await;
    connected(&role, 3).await;
    assert!(
        role.log().contains("the one before is used"),
        "{}",
        role.log()
    );
}

#[tokio::test]
async fn renewed_certificates_are_used_at_the_next_connection() {
    let (folder, file) = folder();
    let renew = || {
        let authority = Authority::new(folder.path(), "ca.pem");
        authority.issue("server", "127.0.0.1");
        authority.issue("client", "client.test");
    };
    renew();
    let mut nats = NatsServer::start_with(NatsVersion::V2_15, &mutual_tls(folder.path())).await;
    let url = format!("tls://127.0.0.1:{}", nats.port());
    let flags = [
        ("--nats-ca", file("ca.pem")),
        ("--nats-cert", file("client.pem")),
        ("--nats-key", file("client.key")),
    ];
    let role = dispatcher(&url, &flags).await;
    renew();
    nats.restart().await;
    connected(&role, 2).await;
}

/// What `check` says of the login of node-1 for that node, and for another one.
async fn assert_only_its_own_node(port: u16) {
    let for_node = |node: &str| {
        let url = format!("nats://node-1:node@127.0.0.1:{port}");
        check(&url).env("PREWARM_NODE", node).run()
    };
    let (own, other) = tokio::join!(for_node("node-1"), for_node("node-2"));
    assert_eq!(own.code, 0, "{own:?}");
    for line in [
        "ok    permissions   this login may do all that the worker of node-1 does\n",
        "ok    permissions   and nothing in the name of another node\n",
    ] {
        assert!(own.stdout.contains(line), "{line:?} is missing: {own:?}");
    }
    assert_eq!(other.code, 3, "{other:?}");
    for part in [
        "FAIL  permissions   this login may not work for node node-2: the broker refuses \
         $JS.API.CONSUMER.MSG.NEXT.PREWARM_TASKS.node-2, prewarm.worker.node-2, prewarm.heartbeat.node-2 and 5 more",
        "use the credentials of this very node",
    ] {
        assert!(
            other.stdout.contains(part),
            "{part:?} is missing: {other:?}"
        );
    }
}

#[tokio::test]
async fn the_credentials_of_one_node_are_refused_for_another_and_check_says_so() {
    for version in NatsVersion::ALL {
        let nats = NatsServer::start_with(version, &two_nodes()).await;
        assert_only_its_own_node(nats.port()).await;
    }
}

/// Every answer comes later than a refusal is waited for after the last one.
#[tokio::test]
async fn check_says_the_same_of_a_broker_that_is_far_away() {
    let nats = NatsServer::start_with(NatsVersion::V2_15, &two_nodes()).await;
    let target = format!("127.0.0.1:{}", nats.port());
    let far = Distance::of(Duration::from_millis(600), &target).await;
    assert_only_its_own_node(far.port()).await;
}

#[tokio::test]
async fn a_login_that_may_speak_for_every_node_is_warned_about_and_nothing_is_changed() {
    let cell = super::dispatcher::Dispatcher::start().await;
    let stream = cell.bus.subjects.events_stream();
    let stored = async || {
        let mut stream = cell.bus.jetstream.get_stream(&stream).await.unwrap();
        stream.info().await.unwrap().state.messages
    };
    let before = stored().await;
    let output = cell
        .prewarm(&["check", "--runtime", "simulated", "--node", "n"])
        .run()
        .await;
    assert!(
        output
            .stdout
            .contains("warn  permissions   it may speak for other nodes, too"),
        "{output:?}"
    );
    assert_eq!(stored().await, before);
}
