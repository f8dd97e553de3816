//! The node's own registry set-up: mirrors and credentials.

use std::path::PathBuf;

use super::{Check, given};
use crate::image::registry::CredentialProviders;

/// How registries are reached.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Registries")]
pub struct RegistryArgs {
    /// Directories of HOST/hosts.toml, separated by colons
    #[arg(
        long,
        env = "PREWARM_REGISTRY_CONFIG_DIR",
        value_name = "DIR",
        default_value = "/etc/containerd/certs.d"
    )]
    pub registry_config_dir: String,
    /// Docker's config.json, for credentials [default: ~/.docker/config.json]
    #[arg(long, env = "PREWARM_DOCKER_CONFIG", value_name = "FILE")]
    pub docker_config: Option<String>,
    /// kubelet's credential-provider configuration, a file or a directory, as kubelet's --image-credential-provider-config
    #[arg(long, env = "PREWARM_CREDENTIAL_PROVIDER_CONFIG", value_name = "PATH")]
    pub credential_provider_config: Option<String>,
    /// Where kubelet's credential-provider plugins are, as kubelet's --image-credential-provider-bin-dir
    #[arg(long, env = "PREWARM_CREDENTIAL_PROVIDER_BIN_DIR", value_name = "DIR")]
    pub credential_provider_bin_dir: Option<String>,
    /// Where the credentials are that jobs name in `pullSecrets`
    #[arg(
        long,
        env = "PREWARM_SECRETS_DIR",
        value_name = "DIR",
        default_value = "/etc/prewarm/secrets"
    )]
    pub secrets_dir: String,
}

/// Checked settings. Files are read at every pull, so none of them has to be there now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistrySettings {
    /// Directories of `<host>/hosts.toml`, first match wins.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// The directory of pull secrets.
    pub secrets_dir: PathBuf,
    /// kubelet's credential providers.
    pub credential_providers: Option<CredentialProviders>,
}

impl RegistryArgs {
    /// Checks the settings; `home` is the user's.
    pub fn check(&self, home: Option<PathBuf>, check: &mut Check<'_>) -> RegistrySettings {
        let (config, bin_dir) = (
            given(self.credential_provider_config.as_deref()),
            given(self.credential_provider_bin_dir.as_deref()),
        );
        let credential_providers = match (config, bin_dir) {
            (None, None) => None,
            (Some(config), Some(bin_dir)) => Some(CredentialProviders {
                config: PathBuf::from(config),
                bin_dir: PathBuf::from(bin_dir),
            }),
            (Some(_), None) => {
                let name = "credential-provider-bin-dir";
                check.problem(name, "is missing; credential-provider-config goes with it");
                None
            }
            (None, Some(_)) => {
                let name = "credential-provider-config";
                check.problem(name, "is missing; credential-provider-bin-dir goes with it");
                None
            }
        };
        let docker_config = given(self.docker_config.as_deref()).map(PathBuf::from);
        let hosts_dirs = self
            .registry_config_dir
            .split(':')
            .filter(|dir| !dir.is_empty());
        RegistrySettings {
            // containerd's `config_path` is a list of directories separated by colons, too.
            hosts_dirs: hosts_dirs.map(PathBuf::from).collect(),
            docker_config: docker_config
                .or_else(|| home.map(|home| home.join(".docker/config.json"))),
            secrets_dir: PathBuf::from(&self.secrets_dir),
            credential_providers,
        }
    }
}

/// The user's home directory.
#[must_use]
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}
