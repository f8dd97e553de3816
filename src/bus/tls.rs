//! TLS with the broker: files that are looked at before they are used, and what to do when it fails.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// Looks whether a file holds certificates. The client reads them whenever it connects, and then says
/// only that TLS failed.
pub(super) async fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = tokio::fs::read(path).await?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(invalid("it holds no certificate in PEM".to_owned())),
        Err(error) => Err(invalid(format!("it is no PEM: {error}"))),
    }
}

/// Looks whether a key is that of a certificate; what is wrong is the key's file.
pub(super) async fn key(path: &Path, chain: Vec<CertificateDer<'static>>) -> io::Result<()> {
    let text = tokio::fs::read(path).await?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| invalid(format!("it holds no private key in PEM: {error}")))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_client_auth_cert(chain, key)
        })
        .map(drop)
        .map_err(|error| invalid(format!("it is not the key of the certificate: {error}")))
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// What to do about an error of TLS; `None` if it is about something else. One of a handshake comes as
/// an I/O error with rustls' inside.
pub(super) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(error) = inner.or_else(|| error.downcast_ref()) {
            return Some(advice_on(error));
        }
        next = error.source();
    }
    None
}

fn advice_on(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(invalid) => match invalid {
            CertificateError::UnknownIssuer => {
                "the broker's certificate is of an authority that is not trusted here; give that authority's certificate with --nats-ca"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the broker's certificate, or set this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "set this machine's clock; the broker's certificate begins later"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "name the broker in --nats-url as its certificate does, or renew that for this name"
            }
            _ => "look at the broker's certificate",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate,
        ) => "the broker asks for a client certificate; give one with --nats-cert and --nats-key",
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the client certificate has expired; renew the files of --nats-cert and --nats-key"
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => {
            "the broker does not accept the client certificate; check that --nats-cert is of an authority that the broker trusts"
        }
        rustls::Error::InvalidMessage(_) => {
            "what answers there speaks no TLS; leave out --nats-ca and --nats-cert, or switch TLS on at the broker"
        }
        _ => "check --nats-ca, --nats-cert and --nats-key, and the broker's log",
    }
}
