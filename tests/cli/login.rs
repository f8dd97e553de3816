//! Ways to a broker that does not let everybody in. Being told that nobody set it up is being let in.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;
use crate::support::prewarm::{Output, Prewarm, prewarm};

async fn is_let_in(call: Prewarm) {
    let output = call.run().await;
    assert!(
        output
            .stderr
            .starts_with("error: no dispatcher has set this broker up"),
        "{output:?}"
    );
}

async fn refused(call: Prewarm) -> Output {
    let output = call.run().await;
    assert_eq!(output.code, 3, "{output:?}");
    output
}

/// A key pair of the NATS documentation ("NKeys").
pub(super) const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
pub(super) const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

#[tokio::test]
async fn with_an_nkey() {
    let nats = NatsServer::start_with(
        NatsVersion::V2_10,
        &format!("authorization {{ users: [{{nkey: {PUBLIC}}}] }}"),
    )
    .await;
    let directory = parts::temp_dir();
    let seed = directory.path().join("user.nk");
    std::fs::write(&seed, format!("{SEED}\n")).unwrap();
    let call = || prewarm(["get", "jobs"]).env("NATS_URL", nats.url());
    is_let_in(call().arg("--nats-nkey").arg(&seed)).await;
    let output = refused(call()).await;
    assert!(
        output.stderr.contains("refused the login") && output.stderr.contains("--nats-nkey"),
        "{output:?}"
    );
    let missing = call()
        .arg("--nats-nkey")
        .arg("/nowhere/user.nk")
        .run()
        .await;
    assert_eq!(missing.code, 2, "{missing:?}");
    assert!(
        missing
            .stderr
            .contains("error: cannot use /nowhere/user.nk: No such file"),
        "{missing:?}"
    );
    std::fs::write(&seed, "something else").unwrap();
    let wrong = call().arg("--nats-nkey").arg(&seed).run().await;
    assert!(
        wrong.code == 2 && wrong.stderr.contains("holds no seed"),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn with_a_token_in_the_address() {
    let nats = NatsServer::start_with(NatsVersion::V2_15, "authorization { token: s3cr3t }").await;
    let with = |login: &str| {
        prewarm(["get", "jobs"]).env(
            "NATS_URL",
            format!("nats://{login}127.0.0.1:{}", nats.port()),
        )
    };
    is_let_in(with("s3cr3t@")).await;
    refused(with("")).await;
    let wrong = refused(with("other@")).await;
    assert!(!wrong.stderr.contains("other"), "{wrong:?}");
}

#[tokio::test]
async fn with_the_selected_context_of_the_nats_command_line() {
    let nats = NatsServer::start_with(
        NatsVersion::V2_15,
        "authorization { user: app, password: pw }",
    )
    .await;
    let home = parts::temp_dir();
    let contexts = home.path().join("nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let context = json!({"description": "", "url": nats.url(), "user": "app", "password": "pw"});
    std::fs::write(contexts.join("here.json"), context.to_string()).unwrap();
    let call = |args: &[&str]| prewarm(args).env("XDG_CONFIG_HOME", home.path());
    is_let_in(call(&["get", "jobs", "--nats-context", "here"])).await;
    std::fs::write(home.path().join("nats/context.txt"), "here").unwrap();
    is_let_in(call(&["get", "jobs"])).await;
    refused(call(&["get", "jobs"]).env("NATS_URL", nats.url())).await;
    let missing = call(&["get", "jobs", "--nats-context", "there"])
        .run()
        .await;
    assert!(
        missing.code == 2
            && missing
                .stderr
                .contains("there is no `nats` context \"there\""),
        "{missing:?}"
    );
}

/// A CA, a server certificate for 127.0.0.1 and a client certificate, as PEM files in a folder.
pub(super) fn certificates(directory: &Path) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    for (name, host) in [("server", "127.0.0.1"), ("client", "client.test")] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        write(
            &format!("{name}.pem"),
            params.signed_by(&key, &issuer).unwrap().pem(),
        );
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test]
async fn with_tls_and_a_client_certificate() {
    let directory = parts::temp_dir();
    certificates(directory.path());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let tls = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let nats = NatsServer::start_with(NatsVersion::V2_15, &tls).await;
    let call =
        |args: &[&str]| prewarm(args).env("NATS_URL", format!("tls://127.0.0.1:{}", nats.port()));
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    is_let_in(call(&[
        "get",
        "jobs",
        "--nats-ca",
        &ca,
        "--nats-cert",
        &cert,
        "--nats-key",
        &key,
    ]))
    .await;
    let stranger = refused(call(&["get", "jobs"])).await;
    assert!(stranger.stderr.contains("--nats-ca"), "{stranger:?}");
    refused(call(&["get", "jobs", "--nats-ca", &ca])).await;
    let half = call(&["get", "jobs", "--nats-cert", &cert]).run().await;
    assert!(
        half.code == 2
            && half
                .stderr
                .contains("--nats-cert: a client certificate needs its key"),
        "{half:?}"
    );
}
