//! HTTPS, and a certificate that is exchanged while the receiver runs.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::receiver::{LIMIT, Receiver, SECRET};
use crate::support::wait::eventually;

fn certificate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

/// The status of a request by a client that trusts this certificate only.
async fn ask(base: &str, trusted: &CertifiedKey<KeyPair>) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(base.trim_start_matches("http://"))
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let request = format!(
        "POST /webhooks/harbor HTTP/1.1\r\nhost: localhost\r\nauthorization: {SECRET}\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{{\"type\":\"NO\"}}"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut text = String::new();
    // The server may close without a word of TLS, which does not matter after the answer.
    let _ = stream.read_to_string(&mut text).await;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn write(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_without_a_restart_and_a_half_written_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (certificate(), certificate());
    write(folder.path(), "cert.pem", &first.cert.pem());
    write(folder.path(), "key.pem", &first.signing_key.serialize_pem());
    let files = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let receiver = Receiver::start_with(|settings| settings.tls = Some(files), "").await;
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(ask(&receiver.base, &first).await.unwrap(), ok);
    assert!(ask(&receiver.base, &second).await.is_err());
    // The certificate without its key is no pair; the one before stays, though the files are looked at.
    write(folder.path(), "cert.pem", &second.cert.pem());
    let began = std::time::Instant::now();
    eventually("two looks at the files", LIMIT, async || {
        assert_eq!(ask(&receiver.base, &first).await.unwrap(), ok);
        began.elapsed() > std::time::Duration::from_millis(2_100)
    })
    .await;
    write(
        folder.path(),
        "key.pem",
        &second.signing_key.serialize_pem(),
    );
    eventually("the new certificate", LIMIT, async || {
        ask(&receiver.base, &second).await
    })
    .await;
    assert!(ask(&receiver.base, &first).await.is_err());
}
