//! Credentials for registries: pull secrets of the job, then kubelet's credential providers, then Docker's `config.json`.
//!
//! Keys are matched as kubelet does (`pkg/credentialprovider/keyring.go` of Kubernetes 1.35): a host,
//! whose labels may be globs, with an optional port and path prefix. A credential goes to the
//! endpoints its key names and to no other: a mirror gets one only if a key names the mirror.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::helper;
use super::provider::Provided;

/// Largest file with credentials that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// What Docker Hub's endpoints are all called here.
const DOCKER_HUB: &str = "docker.io";
/// The key that `docker login` writes for Docker Hub, and helpers know it by.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Something that proves who is asking.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// A user name and a password, or what stands for one.
    Password {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token of the token server.
    Identity(String),
    /// A token for the registry itself.
    Registry(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Registry(_) => "Registry(…)",
        })
    }
}

/// A file with credentials that cannot be used. The message never has what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{}: larger than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// It is something else.
    #[error("{}: not a Docker config.json (line {line})", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where it stops to be one.
        line: usize,
    },
    /// An entry is no credential.
    #[error("{}: the entry for {key:?} is not base64 of user:password", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's key.
        key: String,
    },
}

/// Everything the node has for one pull, in the order it is to be tried.
#[derive(Default)]
pub(super) struct Keychain {
    sources: Vec<Source>,
    /// Names of pull secrets that the node does not have or cannot read, and why.
    pub(super) missing: Vec<String>,
}

enum Source {
    Docker(DockerConfig),
    /// What kubelet's plugins had.
    Provided(Provided),
    /// A pair of files `username` and `password`: for the registry the image's name says.
    Bare(Credential),
}

/// Docker's `config.json`.
#[derive(Default)]
pub struct DockerConfig {
    entries: Vec<(Key, Credential)>,
    store: Option<String>,
    helpers: BTreeMap<String, String>,
}

impl Keychain {
    /// Reads the named secrets and Docker's configuration, and has what plugins provided between them. A secret that
    /// is missing is noted, as for kubelet it is no reason not to try.
    pub(super) fn load(
        secrets_dir: Option<&Path>,
        names: &[String],
        mut provided: Provided,
        docker_config: Option<&Path>,
    ) -> Self {
        let mut keychain = Self::default();
        for name in names {
            match secrets_dir.map(|directory| load_secret(directory, name)) {
                Some(Ok(Some(source))) => keychain.sources.push(source),
                Some(Ok(None)) | None => keychain.missing.push(match secrets_dir {
                    Some(directory) => format!("{name} is not in {}", directory.display()),
                    None => format!("{name}: this process has no secrets directory"),
                }),
                Some(Err(error)) => keychain.missing.push(error.to_string()),
            }
        }
        keychain.missing.append(&mut provided.problems);
        keychain.sources.push(Source::Provided(provided));
        if let Some(path) = docker_config {
            match DockerConfig::load(path) {
                Ok(Some(config)) => keychain.sources.push(Source::Docker(config)),
                Ok(None) => {}
                Err(error) => keychain.missing.push(error.to_string()),
            }
        }
        keychain
    }

    /// The credentials for an endpoint, best first, without repeats. `is_upstream` says whether the
    /// endpoint is the registry that the image's name says.
    pub(super) async fn candidates(
        &self,
        authority: &str,
        is_upstream: bool,
        registry: &str,
        repository: &str,
    ) -> Vec<Credential> {
        let mut found: Vec<Credential> = Vec::new();
        let mut hosts = vec![canonical(authority)];
        if is_upstream && canonical(registry) != hosts[0] {
            hosts.push(canonical(registry));
        }
        for source in &self.sources {
            let mut credentials = match source {
                Source::Bare(credential) if is_upstream => vec![credential.clone()],
                Source::Bare(_) => Vec::new(),
                Source::Provided(provided) => provided.matching(&hosts, repository),
                Source::Docker(config) => {
                    let mut credentials = config.matching(&hosts, repository);
                    if credentials.is_empty() {
                        credentials.extend(config.ask_helper(&hosts).await);
                    }
                    credentials
                }
            };
            credentials.retain(|credential| !found.contains(credential));
            found.append(&mut credentials);
        }
        found
    }
}

/// `<dir>/<name>` is a Docker config, or a directory as Kubernetes mounts a secret.
fn load_secret(directory: &Path, name: &str) -> Result<Option<Source>, CredentialError> {
    // The name comes with the job: it must not lead out of the directory.
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Ok(None);
    }
    let path = directory.join(name);
    if !path.is_dir() {
        return Ok(DockerConfig::load(&path)?.map(Source::Docker));
    }
    for file in [".dockerconfigjson", "config.json"] {
        if let Some(config) = DockerConfig::load(&path.join(file))? {
            return Ok(Some(Source::Docker(config)));
        }
    }
    // A secret of type `kubernetes.io/dockercfg`.
    if let Some(config) = DockerConfig::load_old(&path.join(".dockercfg"))? {
        return Ok(Some(Source::Docker(config)));
    }
    let user = read_bounded(&path.join("username"))?;
    let password = read_bounded(&path.join("password"))?;
    Ok(user.zip(password).map(|(user, password)| {
        let trimmed = |text: String| text.trim_end_matches(['\r', '\n']).to_owned();
        Source::Bare(Credential::Password {
            user: trimmed(user),
            password: trimmed(password),
        })
    }))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CredentialError> {
    let text = read_bounded(path)?;
    text.map(|text| json(&text, path)).transpose()
}

fn json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, CredentialError> {
    serde_json::from_str(text).map_err(|error| CredentialError::Format {
        path: path.to_owned(),
        line: error.line(),
    })
}

fn read_bounded(path: &Path) -> Result<Option<String>, CredentialError> {
    let failed = |source: std::io::Error| CredentialError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(CredentialError::TooLarge(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    std::fs::read_to_string(path).map(Some).map_err(failed)
}

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity: String,
    #[serde(default, rename = "registrytoken")]
    registry: String,
}

impl DockerConfig {
    fn load(path: &Path) -> Result<Option<Self>, CredentialError> {
        let text = read_bounded(path)?;
        text.map(|text| Self::parse(&text, path)).transpose()
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// It is no such file, or an entry is no credential.
    pub fn parse(text: &str, path: &Path) -> Result<Self, CredentialError> {
        Self::of(json(text, path)?, path)
    }

    /// The form before `config.json`: what stands there under `auths`, and nothing around it.
    fn load_old(path: &Path) -> Result<Option<Self>, CredentialError> {
        let of = |auths| {
            let file = ConfigFile {
                auths,
                ..ConfigFile::default()
            };
            Self::of(file, path)
        };
        read_json(path)?.map(of).transpose()
    }

    fn of(file: ConfigFile, path: &Path) -> Result<Self, CredentialError> {
        let mut entries = Vec::with_capacity(file.auths.len());
        for (key, entry) in file.auths {
            let Some(parsed) = Key::parse(&key) else {
                continue;
            };
            let credential = entry.credential().map_err(|()| CredentialError::Entry {
                path: path.to_owned(),
                key,
            })?;
            // `docker login` leaves an empty entry where a helper has the credential.
            entries.extend(credential.map(|credential| (parsed, credential)));
        }
        // The longest path first, and a name before a glob, as kubelet tries them.
        entries.sort_by_key(|(key, _)| (std::cmp::Reverse(key.path.len()), key.host.contains('*')));
        Ok(Self {
            entries,
            store: file.store.filter(|name| !name.is_empty()),
            helpers: file.helpers,
        })
    }

    /// The credentials for a repository at an endpoint that goes by these names, best first.
    #[must_use]
    pub fn matching(&self, hosts: &[&str], repository: &str) -> Vec<Credential> {
        self.entries
            .iter()
            .filter(|(key, _)| hosts.iter().any(|host| key.matches(host, repository)))
            .map(|(_, credential)| credential.clone())
            .collect()
    }

    async fn ask_helper(&self, hosts: &[&str]) -> Option<Credential> {
        for host in hosts {
            let own = self
                .helpers
                .iter()
                .find(|(key, _)| Key::parse(key).is_some_and(|key| key.host == *host))
                .map(|(_, helper)| helper);
            let Some(helper) = own.or(self.store.as_ref()).filter(|name| !name.is_empty()) else {
                continue;
            };
            let server = if *host == DOCKER_HUB {
                DOCKER_HUB_KEY
            } else {
                host
            };
            match helper::get(helper, server).await {
                Ok(Some(credential)) => return Some(credential),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a Docker credential helper failed"),
            }
        }
        None
    }
}

impl AuthEntry {
    fn credential(self) -> Result<Option<Credential>, ()> {
        if !self.identity.is_empty() {
            return Ok(Some(Credential::Identity(self.identity)));
        }
        if !self.registry.is_empty() {
            return Ok(Some(Credential::Registry(self.registry)));
        }
        if !self.auth.is_empty() {
            let engine = GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                GeneralPurposeConfig::new()
                    .with_decode_padding_mode(DecodePaddingMode::Indifferent),
            );
            let decoded = engine.decode(self.auth.trim()).map_err(|_| ())?;
            let decoded = String::from_utf8(decoded).map_err(|_| ())?;
            let (user, password) = decoded.split_once(':').ok_or(())?;
            return Ok(Some(Credential::Password {
                user: user.to_owned(),
                // Old versions of Docker padded with NUL.
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        if self.username.is_empty() {
            return Ok(None);
        }
        Ok(Some(Credential::Password {
            user: self.username,
            password: self.password,
        }))
    }
}

/// The value of an `Authorization: Basic` header (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A key under `auths`, such as `*.example.com:5000/team`.
struct Key {
    host: String,
    path: String,
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let path = match path {
            "v1" | "v2" => "",
            path => path
                .strip_prefix("v1/")
                .or_else(|| path.strip_prefix("v2/"))
                .unwrap_or(path),
        };
        (!host.is_empty()).then(|| Self {
            host: canonical(host).to_owned(),
            path: path.to_owned(),
        })
    }

    fn matches(&self, host: &str, repository: &str) -> bool {
        let path_matches = self.path.is_empty()
            || repository
                .strip_prefix(self.path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        path_matches && host_matches(&self.host, host)
    }
}

/// Each label of the pattern is matched with the label in its place; the port has to be the same.
pub(super) fn host_matches(pattern: &str, host: &str) -> bool {
    if pattern == host {
        return true;
    }
    let split = |text: &str| match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), Some(port.to_owned())),
        None => (text.to_owned(), None),
    };
    let ((pattern, pattern_port), (host, host_port)) = (split(pattern), split(host));
    pattern_port == host_port
        && pattern.split('.').count() == host.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// `*` stands for any characters, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        Some((b'?', rest)) => !text.is_empty() && glob(rest, &text[1..]),
        Some((byte, rest)) => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

/// Docker Hub goes by several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
