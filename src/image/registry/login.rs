//! Credentials for somebody else who pulls: a runtime asked through CRI.

use super::credentials::{Credential, Keychain};
use super::provider::Provided;
use super::{RegistryConfig, hosts};
use crate::domain::image::ImageRef;

/// A credential and the server it is for. A mirror gets none: a runtime takes one credential for a pull.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Login {
    /// The registry's host, with the port if it has one.
    pub server: String,
    /// What proves who is asking.
    pub credential: Credential,
}

/// Everything the node has for the registry that the image's name says, best first.
pub(super) async fn all(
    config: &RegistryConfig,
    provided: Provided,
    image: &ImageRef,
    pull_secrets: &[String],
) -> Vec<Login> {
    let registry = image.registry();
    let keychain = Keychain::load(
        config.secrets_dir.as_deref(),
        pull_secrets,
        provided,
        config.docker_config.as_deref(),
    );
    if !keychain.missing.is_empty() {
        let missing = keychain.missing.join("; ");
        tracing::warn!(%image, missing, "credentials that cannot be used");
    }
    let (hosts, _) = hosts::load(&config.hosts_dirs, registry);
    let mut logins = Vec::new();
    for host in hosts.into_iter().filter(|host| !host.is_proxy) {
        let credentials = keychain
            .candidates(&host.authority, true, registry, image.repository())
            .await;
        logins.extend(credentials.into_iter().map(|credential| Login {
            server: host.authority.clone(),
            credential,
        }));
    }
    logins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_is_for_the_registry_and_its_password_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = r#"{"auths": {"reg.example.com:5000/team": {"username": "u", "password": "secret"},
            "mirror.example.com": {"username": "m", "password": "secret"}}}"#;
        std::fs::write(&path, text).unwrap();
        let hosts = dir.path().join("certs.d/reg.example.com:5000");
        std::fs::create_dir_all(&hosts).unwrap();
        let mirror = "[host.\"https://mirror.example.com\"]\n";
        std::fs::write(hosts.join("hosts.toml"), mirror).unwrap();
        let config = RegistryConfig {
            hosts_dirs: vec![dir.path().join("certs.d")],
            docker_config: Some(path),
            ..RegistryConfig::default()
        };
        let of = async |image: &str| {
            all(&config, Provided::default(), &image.parse().unwrap(), &[]).await
        };
        let logins = of("reg.example.com:5000/team/app:1").await;
        let servers: Vec<_> = logins.iter().map(|login| login.server.as_str()).collect();
        assert_eq!(servers, ["reg.example.com:5000"]);
        assert!(!format!("{logins:?}").contains("secret"));
        assert_eq!(of("reg.example.com:5000/other:1").await, []);
    }
}
