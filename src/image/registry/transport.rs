//! HTTP clients: one per set of TLS settings, shared by all pulls so that connections are kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::client_certificates::ClientCertificates;
use super::hosts::{Host, TlsSettings};
use super::proxy::Proxies;

/// Longest time to connect, TLS handshake included, where `dial_timeout` does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for a response's head, and between two reads of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an unused connection is kept.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// Most unused connections kept to one host.
const MAX_IDLE_PER_HOST: usize = 16;
/// Most clients kept; there is one per distinct TLS set-up in `certs.d`.
const MAX_CLIENTS: usize = 64;

/// A `hosts.toml` names a file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

pub(super) struct Transports {
    provider: Arc<CryptoProvider>,
    system_roots: Arc<RootCertStore>,
    proxies: Arc<Proxies>,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// What makes two endpoints share a client. The stamps make renewed certificates count.
#[derive(PartialEq, Eq, Hash)]
struct ClientKey {
    tls: TlsSettings,
    stamps: Vec<Option<(SystemTime, u64)>>,
    dial_timeout: Option<Duration>,
}

impl Transports {
    /// Reads the system's authorities once.
    pub(super) fn new(proxies: Proxies) -> Self {
        let found = rustls_native_certs::load_native_certs();
        let mut system_roots = RootCertStore::empty();
        let (usable, _) = system_roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            tracing::warn!(
                "no certificate authorities on this system: registries are only trusted with a `ca` of their own"
            );
        }
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            system_roots: Arc::new(system_roots),
            proxies: Arc::new(proxies),
            clients: Mutex::default(),
        }
    }

    /// The client for an endpoint.
    pub(super) fn client(&self, host: &Host) -> Result<reqwest::Client, TransportError> {
        let stamps = host
            .tls
            .ca
            .iter()
            .chain(
                host.tls
                    .client
                    .iter()
                    .flat_map(|(a, b)| std::iter::once(a).chain(b)),
            )
            .map(|path| {
                let metadata = std::fs::metadata(path).ok()?;
                Some((metadata.modified().ok()?, metadata.len()))
            })
            .collect();
        let key = ClientKey {
            tls: host.tls.clone(),
            stamps,
            dial_timeout: host.dial_timeout,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(&key)?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, key: &ClientKey) -> Result<reqwest::Client, TransportError> {
        let tls_failed = |error: &dyn std::fmt::Display| TransportError::Tls(error.to_string());
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| tls_failed(&error))?;
        let builder = if key.tls.skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(self.provider.clone())))
        } else {
            builder.with_root_certificates(self.roots(&key.tls.ca)?)
        };
        let mut tls = if key.tls.client.is_empty() {
            builder.with_no_client_auth()
        } else {
            let mut certificates = ClientCertificates::default();
            for (chain, private) in &key.tls.client {
                let pair = (
                    certificates_in(chain)?,
                    private_key_in(private.as_ref().unwrap_or(chain))?,
                );
                certificates
                    .add(pair, &self.provider)
                    .map_err(|error| file_problem(chain, error))?;
            }
            builder.with_client_cert_resolver(Arc::new(certificates))
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let proxies = self.proxies.clone();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .user_agent(concat!("prewarm/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(key.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
            .read_timeout(READ_TIMEOUT)
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .tcp_nodelay(true)
            .proxy(reqwest::Proxy::custom(move |url| proxies.of(url)));
        client.build().map_err(|error| tls_failed(&error))
    }

    fn roots(&self, ca: &[PathBuf]) -> Result<Arc<RootCertStore>, TransportError> {
        if ca.is_empty() {
            return Ok(self.system_roots.clone());
        }
        let mut roots = RootCertStore::clone(&self.system_roots);
        for path in ca {
            for certificate in certificates_in(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| file_problem(path, error))?;
            }
        }
        Ok(Arc::new(roots))
    }
}

fn file_problem(path: &Path, problem: impl std::fmt::Display) -> TransportError {
    TransportError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let pem = std::fs::read(path).map_err(|error| file_problem(path, error))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| file_problem(path, error))?;
    if certificates.is_empty() {
        return Err(file_problem(
            path,
            "there is no certificate in PEM format in it",
        ));
    }
    Ok(certificates)
}

fn private_key_in(path: &Path) -> Result<PrivateKeyDer<'static>, TransportError> {
    let pem = std::fs::read(path).map_err(|error| file_problem(path, error))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| file_problem(path, "there is no private key in PEM format in it"))
}

/// `skip_verify`: any certificate will do, but the handshake has to be signed with its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "proxied_tests.rs"]
mod proxied;
#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
