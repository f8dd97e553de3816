//! The registry client: what a tag means, manifests, blobs as streams.
//!
//! Endpoints come from the node's `hosts.toml` files, credentials from the job's pull secrets, kubelet's credential
//! providers and Docker's configuration, tokens from wherever the registry says. Every request tries the endpoints in
//! order and ends in bytes that hash to their digest or in a [`Failure`] of the right kind. Nothing
//! here knows about containerd, and nothing is kept on disk.

mod auth;
pub mod challenge;
mod client;
mod client_certificates;
pub mod credentials;
mod endpoint;
pub mod failure;
mod helper;
mod holds;
pub mod hosts;
mod hosts_file;
mod http;
mod login;
pub mod manifest;
mod platform;
pub mod provider;
mod provider_config;
mod proxy;
mod secrets;
#[cfg(test)]
mod test_server;
pub mod token;
mod transport;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use self::auth::AuthCache;
pub use self::client::{Blob, Part, RawManifest, Repository, Resolved, content_range};
pub use self::credentials::Credential;
use self::holds::Holds;
pub use self::login::Login;
pub use self::provider::CredentialProviders;
use self::provider::Plugins;
use self::proxy::Proxies;
use self::transport::Transports;
use crate::domain::failure::Failure;
use crate::domain::image::ImageRef;

/// Largest manifest or index that is read, in bytes: what registries agree on (OCI distribution
/// spec 1.1, "Pushing Manifests").
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// Where the node keeps its registry set-up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegistryConfig {
    /// Directories of `<host>/hosts.toml`, the first that has one for the host wins.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json`, if there is one.
    pub docker_config: Option<PathBuf>,
    /// The directory with the pull secrets that jobs name.
    pub secrets_dir: Option<PathBuf>,
    /// kubelet's credential providers, if they are to be asked.
    pub credential_providers: Option<CredentialProviders>,
}

/// Clients, connections and tokens for all registries. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    config: RegistryConfig,
    plugins: Plugins,
    transports: Transports,
    cache: Arc<AuthCache>,
    /// Endpoints that turned out not to speak TLS.
    plain: Mutex<HashSet<String>>,
    /// Hosts that want no requests now.
    holds: Holds,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.0.config).finish()
    }
}

impl Registry {
    /// Reads the system's certificate authorities and the proxies in the environment; the rest of the set-up is read at
    /// every pull.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        Self::behind(config, Proxies::from_env())
    }

    fn behind(config: RegistryConfig, proxies: Proxies) -> Self {
        Self(Arc::new(Shared {
            plugins: Plugins::new(config.credential_providers.clone()),
            config,
            transports: Transports::new(proxies),
            cache: Arc::default(),
            plain: Mutex::default(),
            holds: Holds::default(),
        }))
    }

    /// The repository of an image, with the endpoints and credentials there are for it now.
    ///
    /// # Errors
    /// `RegistryUnavailable` when no endpoint can be used, such as for a certificate file that is
    /// not there.
    pub async fn repository(
        &self,
        image: &ImageRef,
        pull_secrets: &[String],
    ) -> Result<Repository, Failure> {
        client::open(&self.0, image, pull_secrets).await
    }

    /// The credentials that the node has for an image, in the order they are to be tried, for a runtime that pulls by
    /// itself.
    pub async fn logins(&self, image: &ImageRef, pull_secrets: &[String]) -> Vec<Login> {
        let provided = self.0.plugins.provide(&image.name()).await;
        login::all(&self.0.config, provided, image, pull_secrets).await
    }
}
