//! The keys that tokens are signed with: read when a token comes whose signer is not known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex as AsyncMutex;

use super::oidc::Keys;
use super::settings::KeySource;

/// How often keys are read at most, whoever asks.
const READ_EVERY: Duration = Duration::from_secs(60);
/// How long reading them may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest set of keys in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// A set of keys and where it comes from.
pub(super) struct KeyRing {
    source: KeySource,
    keys: Mutex<Arc<Keys>>,
    read: AsyncMutex<Option<Instant>>,
}

impl KeyRing {
    pub(super) fn new(source: KeySource) -> Self {
        Self {
            source,
            keys: Mutex::default(),
            read: AsyncMutex::default(),
        }
    }

    /// The keys, looked up anew if they lack the signer of this header's token.
    pub(super) async fn of(&self, authorization: Option<&[u8]>) -> Arc<Keys> {
        let known = || Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner));
        let lacking = |keys: &Keys| authorization.is_some_and(|value| !keys.know(value));
        if self.source == KeySource::None || !lacking(&known()) {
            return known();
        }
        let mut read = self.read.lock().await;
        // Somebody else may have read them while we waited.
        if lacking(&known()) && read.is_none_or(|read| read.elapsed() >= READ_EVERY) {
            *read = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => {
                    *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                }
                Err(error) => {
                    tracing::warn!(error, source = ?self.source, "cannot read the keys of tokens")
                }
            }
        }
        known()
    }

    async fn fetch(&self) -> Result<Keys, String> {
        match &self.source {
            KeySource::None => Ok(Keys::default()),
            KeySource::File(path) => {
                let text = tokio::fs::read(path).await.map_err(|e| e.to_string())?;
                Keys::parse(&text)
            }
            KeySource::Url(url) => {
                let fetching = fetch(url);
                let fetched = tokio::time::timeout(READ_TIMEOUT, fetching).await;
                Keys::parse(&fetched.map_err(|_| "no answer in time".to_owned())??)
            }
        }
    }
}

async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| error.to_string())?;
    let mut answer = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
        if text.len() + chunk.len() > MAX_BYTES {
            return Err(format!("larger than {MAX_BYTES} bytes"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}
