//! Through a proxy of the test: registries that have a name no resolver knows, so that there is no other way to them.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::super::proxy::Proxies;
use super::super::test_server::{Server, manifest, reply};
use super::super::{Registry, RegistryConfig};
use super::tests::{NAME, certificates, serve};
use crate::domain::failure::{Failure, FailureKind};

/// `user:secret` in Base64.
const PROOF: &str = "proxy-authorization: basic dxnlcjpzzwnyzxq=";

/// A proxy that brings every request to one server, whatever it is for.
struct Proxy {
    addr: String,
    /// The heads of the requests it got, in lower case.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(target: &str, wants_proof: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, target) = (heads.clone(), target.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target.clone(), wants_proof, log.clone()));
            }
        });
        Self { addr, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn pass(client: TcpStream, target: String, wants_proof: bool, log: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let lower = head.to_lowercase();
    log.lock().unwrap().push(lower.clone());
    if wants_proof && !lower.contains(PROOF) {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = client.write_all(refusal.as_bytes()).await;
        return;
    }
    let mut server = TcpStream::connect(target).await.unwrap();
    if lower.starts_with("connect ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    } else {
        server.write_all(head.as_bytes()).await.unwrap();
    }
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

/// Resolves an image of the registry that has only a name.
async fn resolve(scheme: &str, proxies: Proxies, ca: &str) -> Result<(), Failure> {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(NAME);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("ca.pem"), ca).unwrap();
    let trusts = if ca.is_empty() {
        ""
    } else {
        "ca = \"ca.pem\"\n"
    };
    let hosts = format!("server = \"{scheme}://{NAME}\"\n{trusts}[header]\nX-Key = \"k\"\n");
    std::fs::write(directory.join("hosts.toml"), hosts).unwrap();
    let config = RegistryConfig {
        hosts_dirs: vec![root.path().to_owned()],
        ..RegistryConfig::default()
    };
    let image = format!("{NAME}/app:1").parse().unwrap();
    let repository = Registry::behind(config, proxies)
        .repository(&image, &[])
        .await?;
    repository.resolve(&image).await.map(drop)
}

#[tokio::test]
async fn a_registry_with_tls_is_reached_by_connect_with_a_password_and_without() {
    let certificates = certificates();
    let target = serve(&certificates, false).await;
    for (wants_proof, user) in [(false, ""), (true, "user:secret@"), (false, "user:secret@")] {
        let proxy = Proxy::start(&target, wants_proof).await;
        let url = format!("http://{user}{}", proxy.addr);
        let proxies = Proxies::new("http://127.0.0.1:1", &url, "");
        resolve("https", proxies, &certificates.ca.pem())
            .await
            .unwrap();
        let [head] = &proxy.heads()[..] else {
            panic!("{:?}", proxy.heads())
        };
        assert!(
            head.starts_with(&format!("connect {NAME}:443 http/1.1\r\n")),
            "{head}"
        );
        assert_eq!(head.contains(PROOF), !user.is_empty(), "{head}");
        assert!(
            !head.contains("x-key"),
            "what is for the registry is in TLS: {head}"
        );
    }
}

#[tokio::test]
async fn a_registry_without_tls_is_asked_for_by_its_whole_address() {
    let server = Server::start(|_| manifest()).await;
    for (wants_proof, user) in [(false, ""), (true, "user:secret@")] {
        let proxy = Proxy::start(&server.addr, wants_proof).await;
        let url = format!("http://{user}{}", proxy.addr);
        let proxies = Proxies::new(&url, "http://127.0.0.1:1", "");
        resolve("http", proxies, "").await.unwrap();
        let head = proxy.heads().remove(0);
        let line = format!("head http://{NAME}/v2/app/manifests/1 http/1.1\r\n");
        assert!(head.starts_with(&line), "{head}");
        assert_eq!(head.contains(PROOF), wants_proof, "{head}");
    }
    let asked = server.asked();
    assert_eq!(asked[0].header("x-key"), Some("k"));
}

#[tokio::test]
async fn a_proxy_that_wants_another_password_is_said_to() {
    let certificates = certificates();
    let target = serve(&certificates, false).await;
    let proxy = Proxy::start(&target, true).await;
    for user in ["", "user:wrong@"] {
        for (scheme, ca) in [("https", certificates.ca.pem()), ("http", String::new())] {
            let url = format!("http://{user}{}", proxy.addr);
            let proxies = Proxies::new(&url, &url, "");
            let failure = resolve(scheme, proxies, &ca).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Unauthorized, "{failure}");
            assert!(
                failure.message.contains("proxy wants credentials"),
                "{failure}"
            );
            assert!(!failure.message.contains("wrong"), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_unavailable() {
    let proxies = Proxies::new("", "http://127.0.0.1:1", "");
    let failure = resolve("https", proxies, "").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(failure.message.contains("cannot connect"), "{failure}");
}

/// Each address is decided about for itself: a registry behind the proxy may redirect to a store that is not.
#[tokio::test]
async fn a_redirect_to_this_machine_goes_past_the_proxy() {
    let store = Server::start(|_| manifest()).await;
    let location = format!("http://{}/m", store.addr);
    let server = Server::start(move |_| reply(307, &[("location", &location)], "")).await;
    let proxy = Proxy::start(&server.addr, false).await;
    let proxies = Proxies::new(&proxy.addr, "", "");
    resolve("http", proxies, "").await.unwrap();
    assert_eq!((proxy.heads().len(), store.asked().len()), (1, 1));
}
