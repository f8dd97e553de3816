//! The TLS settings of `hosts.toml`: containerd and we trust the same servers and show them the same certificates.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::hosts::{Hosts, Plays, REGISTRY};
use super::node::{Node, on_all, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;

/// An authority, and a certificate that it signed, with its key.
struct Signed {
    authority: rcgen::Certificate,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Signed {
    fn new(name: &str, subject: &str) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self {
            authority,
            certificate,
            key,
        }
    }

    /// The certificate and its key in files of their own, and both in one.
    fn write(&self, dir: &Path, name: &str) {
        let (certificate, key) = (self.certificate.pem(), self.key.serialize_pem());
        for (kind, text) in [
            ("pem", &certificate),
            ("key", &key),
            ("both", &(certificate.clone() + &key)),
        ] {
            std::fs::write(dir.join(format!("{name}.{kind}")), text).unwrap();
        }
    }
}

/// Ends TLS before a server of plain HTTP, and notes which certificates it was shown: `None` for a client without one.
async fn front(
    server: &Signed,
    accepts: &Signed,
    target: String,
) -> (String, Arc<Mutex<Vec<Option<CertificateDer<'static>>>>>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(accepts.authority.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let key = PrivateKeyDer::try_from(server.key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let shown: Arc<Mutex<Vec<_>>> = Arc::default();
    let log = shown.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, log, target) = (acceptor.clone(), log.clone(), target.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else {
                    return;
                };
                let chain = client.get_ref().1.peer_certificates();
                let first = chain.map(|chain| chain[0].clone().into_owned());
                log.lock().unwrap().push(first);
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (addr, shown)
}

/// Settings of the host, and whether a pull succeeds with which certificate shown.
const CASES: [(&str, Result<Option<&str>, ()>); 9] = [
    ("", Err(())),
    ("ca = \"ca.pem\"", Ok(None)),
    ("ca = [\"other-ca.pem\", \"ca.pem\"]", Ok(None)),
    ("ca = \"other-ca.pem\"", Err(())),
    ("skip_verify = true", Ok(None)),
    (
        "ca = \"ca.pem\"\nclient = \"right.both\"",
        Ok(Some("right")),
    ),
    (
        "ca = \"ca.pem\"\nclient = [[\"wrong.pem\", \"wrong.key\"], [\"right.pem\", \"right.key\"]]",
        Ok(Some("right")),
    ),
    (
        "ca = \"ca.pem\"\nclient = [\"wrong.both\", \"right.both\"]",
        Ok(Some("right")),
    ),
    // What the server would not accept is not shown.
    ("ca = \"ca.pem\"\nclient = \"wrong.both\"", Ok(None)),
];

async fn all_cases(version: ContainerdVersion) {
    let node = Node::start(version).await;
    let server = Signed::new("servers", "127.0.0.1");
    let (right, wrong) = (Signed::new("right", "right"), Signed::new("wrong", "wrong"));
    let dir = node.daemon.certs_dir().join("registry.test_5000_");
    std::fs::create_dir(&dir).unwrap();
    right.write(&dir, "right");
    wrong.write(&dir, "wrong");
    std::fs::write(dir.join("ca.pem"), server.authority.pem()).unwrap();
    std::fs::write(dir.join("other-ca.pem"), wrong.authority.pem()).unwrap();
    for (number, (settings, expected)) in CASES.into_iter().enumerate() {
        let seed = 2 * number as u64;
        let images = [seed, seed + 1].map(|seed| generated(seed, 1, 1_000).build());
        let tags = [format!("theirs-{number}"), format!("ours-{number}")];
        let hosts = Hosts::serve(
            &[Plays::Serves],
            [(&tags[0], &images[0]), (&tags[1], &images[1])],
        )
        .await;
        let (addr, shown) = front(&server, &right, hosts.addrs[0].clone()).await;
        let text =
            format!("server = \"https://127.0.0.1:1\"\n[host.\"https://{addr}\"]\n{settings}\n");
        node.daemon.registry_hosts("registry.test_5000_", &text);
        let name = |tag: &str| format!("{REGISTRY}/app:{tag}");
        let cri = node.daemon.cri().await;
        let theirs = cri.pull_image(&name(&tags[0])).await.map(drop);
        let their_certificates = std::mem::take(&mut *shown.lock().unwrap());
        let ours = node.pull(&request(&name(&tags[1]))).await.map(drop);
        let our_certificates = std::mem::take(&mut *shown.lock().unwrap());
        let row = format!("{version:?}: {settings}: {theirs:?} {ours:?}");
        assert_eq!(
            (theirs.is_ok(), ours.is_ok()),
            (expected.is_ok(), expected.is_ok()),
            "{row}"
        );
        let Ok(certificate) = expected else { continue };
        let certificate = certificate.map(|_| right.certificate.der().clone());
        for shown in [their_certificates, our_certificates] {
            assert!(
                !shown.is_empty() && shown.iter().all(|one| *one == certificate),
                "{row}"
            );
        }
    }
}

#[tokio::test]
async fn the_same_certificates_as_by_containerd() {
    on_all(all_cases).await;
}
