//! The certificate the receiver shows, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A certificate with its key, and where they come from.
pub(super) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: [Option<(SystemTime, u64)>; 2],
    looked: Instant,
}

impl Certificate {
    /// Reads both files.
    pub(super) fn load(chain: PathBuf, key: PathBuf) -> Result<Self, String> {
        let stamps = [stamp(&chain), stamp(&key)];
        let loaded = Mutex::new(Loaded {
            config: read(&chain, &key)?,
            stamps,
            looked: Instant::now(),
        });
        Ok(Self { chain, key, loaded })
    }

    /// What the next connection gets. A pair that cannot be used leaves the one before in its place.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK_EVERY {
            loaded.looked = Instant::now();
            let stamps = [stamp(&self.chain), stamp(&self.key)];
            if stamps != loaded.stamps {
                match read(&self.chain, &self.key) {
                    Ok(config) => {
                        tracing::info!(file = %self.chain.display(), "the certificate was read again");
                        loaded.config = config;
                        loaded.stamps = stamps;
                    }
                    // The stamps stay as they were, so that a pair half written is tried again.
                    Err(error) => tracing::warn!(
                        error,
                        "the new certificate cannot be used; the one before stays"
                    ),
                }
            }
        }
        Arc::clone(&loaded.config)
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let of = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| of(chain, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map_err(|error| of(chain, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
