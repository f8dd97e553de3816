use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Response;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::test_server::{Asked, Server, manifest, reply, router};
use super::super::{Part, Registry, RegistryConfig};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;

/// An authority, and what it signed for the server and for a client, as PEM and as DER.
pub(super) struct Certificates {
    pub(super) ca: rcgen::Certificate,
    server: (rcgen::Certificate, KeyPair),
    client: (rcgen::Certificate, KeyPair),
}

/// The name that the server's certificate is good for, beside its address.
pub(super) const NAME: &str = "registry.test";

pub(super) fn certificates() -> Certificates {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A server names the authorities that it trusts.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
    params.distinguished_name.push(DnType::CommonName, name);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let signed = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    Certificates {
        ca,
        server: signed(&["127.0.0.1", NAME]),
        client: signed(&["client"]),
    }
}

struct TlsListener(TcpListener, TlsAcceptor);

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, addr) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, addr);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// Serves one image over TLS and says where.
pub(super) async fn serve(certificates: &Certificates, wants_client: bool) -> String {
    serve_with(certificates, wants_client, |_| manifest())
        .await
        .0
}

/// Answers over TLS, and says where, and what it will have been asked.
async fn serve_with(
    certificates: &Certificates,
    wants_client: bool,
    answer: impl Fn(&Asked) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificates.ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let (certificate, key) = &certificates.server;
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder.with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (router, asked) = router(answer);
    tokio::spawn(async move { axum::serve(TlsListener(listener, acceptor), router).await });
    (addr, asked)
}

/// Resolves over TLS with this `hosts.toml`, in whose directory the certificates are.
async fn resolve(addr: &str, certificates: &Certificates, settings: &str) -> Result<(), Failure> {
    resolve_with(addr, certificates, &[], settings).await
}

/// As [`resolve`], with more files in the directory.
async fn resolve_with(
    addr: &str,
    certificates: &Certificates,
    files: &[(&str, String)],
    settings: &str,
) -> Result<(), Failure> {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(addr);
    std::fs::create_dir(&directory).unwrap();
    let (client, key) = &certificates.client;
    for (name, text) in [
        ("ca.pem", certificates.ca.pem()),
        ("client.pem", client.pem()),
        ("client.key", key.serialize_pem()),
        ("both.pem", client.pem() + &key.serialize_pem()),
        ("empty.pem", String::new()),
        (
            "hosts.toml",
            format!("server = \"https://{addr}\"\n{settings}"),
        ),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
    let registry = Registry::new(RegistryConfig {
        hosts_dirs: vec![root.path().to_owned()],
        ..RegistryConfig::default()
    });
    let image = format!("{addr}/app:1").parse().unwrap();
    let repository = registry.repository(&image, &[]).await?;
    repository.resolve(&image).await.map(drop)
}

#[tokio::test]
async fn an_authority_of_its_own_is_trusted_when_named_and_refused_when_not() {
    let certificates = certificates();
    let addr = serve(&certificates, false).await;
    resolve(&addr, &certificates, "ca = \"ca.pem\"")
        .await
        .unwrap();
    resolve(&addr, &certificates, "skip_verify = true")
        .await
        .unwrap();
    let failure = resolve(&addr, &certificates, "").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    for words in ["certificate is not accepted", "hosts.toml"] {
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_from_one_file_or_two() {
    let certificates = certificates();
    let addr = serve(&certificates, true).await;
    for client in ["\"both.pem\"", "[[\"client.pem\", \"client.key\"]]"] {
        let settings = format!("ca = \"ca.pem\"\nclient = {client}");
        resolve(&addr, &certificates, &settings).await.unwrap();
    }
    let failure = resolve(&addr, &certificates, "ca = \"ca.pem\"")
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
}

/// Like Go, which containerd is written in: the first pair that one of the server's authorities signed, or none.
#[tokio::test]
async fn of_several_client_certificates_the_one_that_the_server_accepts_is_shown() {
    let (certificates, others) = (certificates(), certificates());
    let wants = serve(&certificates, true).await;
    let wants_others = serve(&others, true).await;
    let (other, other_key) = &others.client;
    let ca = certificates.ca.pem() + &others.ca.pem();
    let files = [
        ("other.pem", other.pem()),
        ("other.key", other_key.serialize_pem()),
        ("cas.pem", ca),
    ];
    let pairs = "client = [[\"other.pem\", \"other.key\"], \"both.pem\"]\nca = \"cas.pem\"";
    for addr in [&wants, &wants_others] {
        resolve_with(addr, &certificates, &files, pairs)
            .await
            .unwrap();
    }
    let only_the_other = "client = [[\"other.pem\", \"other.key\"]]\nca = \"cas.pem\"";
    let refused = resolve_with(&wants, &certificates, &files, only_the_other).await;
    assert_eq!(refused.unwrap_err().kind, FailureKind::RegistryUnavailable);
    let mixed_up = "client = [[\"other.pem\", \"client.key\"]]";
    let refused = resolve_with(&wants, &certificates, &files, mixed_up).await;
    let failure = refused.unwrap_err();
    assert!(failure.message.contains("other.pem"), "{failure}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let certificates = certificates();
    for (settings, words) in [
        ("ca = \"absent.pem\"", "absent.pem: No such file"),
        ("ca = \"empty.pem\"", "empty.pem: there is no certificate"),
        (
            "client = \"client.pem\"",
            "client.pem: there is no private key",
        ),
    ] {
        let failure = resolve("127.0.0.1:1", &certificates, settings)
            .await
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test]
async fn a_registry_on_this_machine_may_speak_tls_or_not() {
    let certificates = certificates();
    let registry = Registry::new(RegistryConfig::default());
    let tls = serve(&certificates, false).await;
    let plain = Server::start(|_| manifest()).await;
    for addr in [&tls, &plain.addr] {
        let image = format!("{addr}/app:1").parse().unwrap();
        for _ in 0..2 {
            let repository = registry.repository(&image, &[]).await.unwrap();
            repository.resolve(&image).await.unwrap();
        }
    }
}

/// What a tag means is only as true as the connection; a blob is what its digest says, wherever it comes from.
#[tokio::test]
async fn from_tls_to_plain_http_only_blobs_are_followed_and_without_secrets() {
    let store = Server::start(|asked| match asked.target.contains("blobs") {
        true => reply(200, &[], "blob"),
        false => manifest(),
    })
    .await;
    let location = format!("http://{}", store.addr);
    let certificates = certificates();
    let answer = move |asked: &Asked| {
        let location = format!("{location}{}", asked.target);
        reply(307, &[("location", &location)], "")
    };
    let (addr, asked) = serve_with(&certificates, false, answer).await;
    let settings = "skip_verify = true\n[header]\nX-Key = \"k\"\nAuthorization = \"Basic a\"";
    let failure = resolve(&addr, &certificates, settings).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(
        failure.message.contains("from TLS to plain HTTP"),
        "{failure}"
    );
    assert!(store.asked().is_empty());

    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(&addr);
    std::fs::create_dir(&directory).unwrap();
    let hosts = format!("server = \"https://{addr}\"\n{settings}");
    std::fs::write(directory.join("hosts.toml"), hosts).unwrap();
    let registry = Registry::new(RegistryConfig {
        hosts_dirs: vec![root.path().to_owned()],
        ..RegistryConfig::default()
    });
    let image = format!("{addr}/app:1").parse().unwrap();
    let repository = registry.repository(&image, &[]).await.unwrap();
    let digest = Digest::of(b"blob");
    repository.blob(&digest, 4, Part::from(0), 0).await.unwrap();
    let sent = asked.lock().unwrap().clone();
    assert!(sent.iter().all(|asked| asked.header("x-key") == Some("k")));
    for secret in ["x-key", "authorization"] {
        assert_eq!(store.asked()[0].header(secret), None, "{secret}");
    }
}
