//! The keys that tokens are signed with: read when a token comes whose signer is not known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex as AsyncMutex;

use super::oidc::Keys;
use super::settings::KeySource;

/// How often keys are read at most, whoever asks: tokens of signers that nobody knows cost no more than that.
const READ_EVERY: Duration = Duration::from_secs(10);
/// The same when they could not be read.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long reading them may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest set of keys in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// A set of keys and where it comes from.
pub(super) struct KeyRing {
    source: KeySource,
    keys: Mutex<Arc<Keys>>,
    read: AsyncMutex<Option<Read>>,
    every: Duration,
}

/// When keys were read last, and why they could not be.
struct Read {
    at: Instant,
    error: Option<String>,
}

impl KeyRing {
    pub(super) fn new(source: KeySource) -> Self {
        Self {
            source,
            keys: Mutex::default(),
            read: AsyncMutex::default(),
            every: READ_EVERY,
        }
    }

    /// The keys, looked up anew if they lack the signer of this header's token.
    ///
    /// # Errors
    /// They lack it and cannot be read: whether the token is good is not known.
    pub(super) async fn of(&self, authorization: Option<&[u8]>) -> Result<Arc<Keys>, String> {
        let known = || Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner));
        let lacking = |keys: &Keys| authorization.is_some_and(|value| !keys.know(value));
        if self.source == KeySource::None || !lacking(&known()) {
            return Ok(known());
        }
        let mut read = self.read.lock().await;
        // Somebody else may have read them while we waited.
        if !lacking(&known()) {
            return Ok(known());
        }
        let is_due = read.as_ref().is_none_or(|read| {
            let every = match read.error {
                Some(_) => self.every.min(RETRY_EVERY),
                None => self.every,
            };
            read.at.elapsed() >= every
        });
        if is_due {
            let fetched = self.fetch().await;
            let (at, error) = (Instant::now(), fetched.as_ref().err().cloned());
            *read = Some(Read { at, error });
            match fetched {
                Ok(keys) => {
                    *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                }
                Err(error) => {
                    tracing::warn!(error, source = %self.source, "cannot read the keys of tokens");
                }
            }
        }
        match read.as_ref().and_then(|read| read.error.as_ref()) {
            Some(error) => Err(format!("the keys of tokens cannot be read: {error}")),
            None => Ok(known()),
        }
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
    // The URL may hold a secret.
    let failed = |error: reqwest::Error| error.without_url().to_string();
    let mut answer = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(failed)?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if text.len() + chunk.len() > MAX_BYTES {
            return Err(format!("larger than {MAX_BYTES} bytes"));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    /// What serves keys: which are there, how often it was asked, and whether it answers.
    #[derive(Default)]
    struct Provider {
        kid: Mutex<&'static str>,
        asked: AtomicUsize,
        is_up: AtomicBool,
    }

    impl Provider {
        async fn serve(self: &Arc<Self>) -> String {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let provider = Arc::clone(self);
            let keys = get(async move || {
                provider.asked.fetch_add(1, Ordering::Relaxed);
                let kid = *provider.kid.lock().unwrap();
                let keys = format!(
                    r#"{{"keys": [{{"kty": "RSA", "kid": "{kid}", "n": "AQAB", "e": "AQAB"}}]}}"#
                );
                match provider.is_up.load(Ordering::Relaxed) {
                    true => (StatusCode::OK, keys),
                    false => (StatusCode::BAD_GATEWAY, String::new()),
                }
            });
            let app = Router::new().route("/certs", keys);
            tokio::spawn(async move { axum::serve(listener, app).await });
            format!("http://{address}/certs")
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    fn token(kid: &str) -> Vec<u8> {
        let head = format!(r#"{{"alg": "RS256", "kid": "{kid}"}}"#);
        format!("Bearer {}.e30.AA", URL_SAFE_NO_PAD.encode(head)).into_bytes()
    }

    #[tokio::test]
    async fn keys_of_a_url_are_read_when_a_token_needs_them_and_no_more_often_than_that() {
        let provider = Arc::new(Provider::default());
        provider.is_up.store(true, Ordering::Relaxed);
        *provider.kid.lock().unwrap() = "one";
        let url = provider.serve().await;
        let ring = KeyRing::new(KeySource::Url(url.clone()));
        assert!(ring.of(None).await.is_ok() && provider.asked() == 0);
        let (one, two) = (token("one"), token("two"));
        for _ in 0..3 {
            assert!(ring.of(Some(&one)).await.unwrap().know(&one));
        }
        assert_eq!(provider.asked(), 1);
        for _ in 0..3 {
            assert!(!ring.of(Some(&two)).await.unwrap().know(&two));
        }
        assert_eq!(provider.asked(), 1, "nobody makes it ask all the time");
        *provider.kid.lock().unwrap() = "two";
        let ring = KeyRing {
            every: Duration::ZERO,
            ..ring
        };
        assert!(ring.of(Some(&two)).await.unwrap().know(&two), "new keys");
        assert_eq!(provider.asked(), 2);
    }

    #[tokio::test]
    async fn while_keys_cannot_be_read_nobody_is_called_wrong() {
        let provider = Arc::new(Provider::default());
        *provider.kid.lock().unwrap() = "one";
        let ring = KeyRing::new(KeySource::Url(provider.serve().await));
        let one = token("one");
        for _ in 0..3 {
            let error = ring.of(Some(&one)).await.unwrap_err();
            assert!(error.contains("502"), "{error}");
        }
        assert_eq!(provider.asked(), 1);
        provider.is_up.store(true, Ordering::Relaxed);
        let ring = KeyRing {
            every: Duration::ZERO,
            ..ring
        };
        assert!(ring.of(Some(&one)).await.unwrap().know(&one));
    }
}
