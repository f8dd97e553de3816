//! kubelet's credential provider plugins, run as kubelet runs them (`pkg/credentialprovider/plugin` of Kubernetes 1.35).
//!
//! A plugin is a program in a directory. It gets the image's name on its standard input and answers with credentials and
//! for how long, and for what, they may be kept.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Mutex as AsyncMutex;

use super::credentials::{Credential, host_matches};
use super::provider_config::{self, Provider};

/// Longest time a plugin may take (`pluginExecTimeout`).
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// Most that is read of what a plugin says, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Most answers of one plugin that are kept.
const MAX_KEPT: usize = 1_024;
/// The key of an answer that is good for every image.
const GLOBAL: &str = "global";

/// Where kubelet's plugins are and what says which are called for what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CredentialProviders {
    /// kubelet's `CredentialProviderConfig`: a file, or a directory of them.
    pub config: PathBuf,
    /// The directory with the programs.
    pub bin_dir: PathBuf,
}

/// The plugins of a node, with what they answered lately.
pub(super) struct Plugins {
    place: Option<CredentialProviders>,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// What the configuration said when it was read last.
struct Loaded {
    providers: Vec<Provider>,
    plugins: Vec<Plugin>,
}

#[derive(Default)]
struct Plugin {
    kept: Mutex<HashMap<String, Kept>>,
    /// One at a time asks about an image; the others find what was kept.
    turns: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

struct Kept {
    entries: Entries,
    expires: Instant,
}

/// Credentials by the images they are for, the most exact first.
type Entries = Arc<Vec<(ImageKey, Credential)>>;

/// What plugins had for an image.
#[derive(Default)]
pub(super) struct Provided {
    entries: Vec<(ImageKey, Credential)>,
    /// Why a plugin, or all of them, had nothing.
    pub(super) problems: Vec<String>,
}

/// Why a plugin gave nothing. What it printed is left out: it may be the secret.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is no such program, or it cannot be talked to.
    #[error("cannot be run: {0}")]
    Run(#[from] std::io::Error),
    /// It took too long.
    #[error("did not answer within {EXEC_TIMEOUT:?}")]
    Timeout,
    /// It said by its exit code that it failed.
    #[error("failed: {0}")]
    Status(std::process::ExitStatus),
    /// Its answer cannot be read.
    #[error("answered something else than a CredentialProviderResponse (line {0})")]
    Answer(usize),
    /// Its answer is of another version than is set.
    #[error("answered in another apiVersion than {0:?}, which is set for it")]
    Version(String),
    /// Its answer says for how long in a way that cannot be read.
    #[error("answered with a cacheDuration that is none")]
    Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'a str,
    image: &'a str,
}

/// A plugin's answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    api_version: String,
    kind: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize, Clone, Copy)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Response {
    /// Reads what a plugin printed.
    ///
    /// # Errors
    /// It is no answer.
    pub fn parse(answer: &[u8]) -> Result<Self, PluginError> {
        let response: Self =
            serde_json::from_slice(answer).map_err(|error| PluginError::Answer(error.line()))?;
        if response.kind != "CredentialProviderResponse" {
            return Err(PluginError::Answer(1));
        }
        Ok(response)
    }

    /// For how long it may be kept; `None` if it does not say.
    ///
    /// # Errors
    /// What it says is no duration.
    pub fn lifetime(&self) -> Result<Option<Duration>, PluginError> {
        let Some(text) = &self.cache_duration else {
            return Ok(None);
        };
        let lifetime = provider_config::duration(text);
        lifetime.map(Some).ok_or(PluginError::Duration)
    }

    /// The credentials by what they are for, the most exact first.
    #[must_use]
    pub fn entries(self) -> Vec<(ImageKey, Credential)> {
        let auth = self.auth.unwrap_or_default();
        let mut entries: Vec<_> = auth
            .into_iter()
            .filter_map(|(key, auth)| {
                let credential = Credential::Password {
                    user: auth.username,
                    password: auth.password,
                };
                Some((ImageKey::parse(&key)?, credential))
            })
            .collect();
        entries.sort_by_key(|(key, _)| key.rank());
        entries
    }
}

impl Plugins {
    pub(super) fn new(place: Option<CredentialProviders>) -> Self {
        Self {
            place,
            loaded: Mutex::default(),
        }
    }

    /// Asks every plugin that is for the image, by its name without tag or digest. Those that fail keep no other from
    /// answering.
    pub(super) async fn provide(&self, image: &str) -> Provided {
        let mut provided = Provided::default();
        let Some(place) = &self.place else {
            return provided;
        };
        let loaded = match self.load(place) {
            Ok(loaded) => loaded,
            Err(problems) => {
                provided.problems = problems;
                return provided;
            }
        };
        for (provider, plugin) in loaded.providers.iter().zip(&loaded.plugins) {
            if !provider.images.iter().any(|key| key.matches(image)) {
                continue;
            }
            match plugin.provide(provider, &place.bin_dir, image).await {
                Ok(entries) => {
                    for (key, credential) in entries.iter() {
                        // The plugin that comes first in the configuration has the word.
                        if !provided.entries.iter().any(|(known, _)| known == key) {
                            provided.entries.push((key.clone(), credential.clone()));
                        }
                    }
                }
                Err(error) => {
                    let problem = format!("credential provider {} {error}", provider.name);
                    tracing::warn!(image, problem, "a credential provider gave nothing");
                    provided.problems.push(problem);
                }
            }
        }
        provided.entries.sort_by_key(|(key, _)| key.rank());
        provided
    }

    /// The plugins as the configuration has them now. What they answered is kept as long as it is the same.
    fn load(&self, place: &CredentialProviders) -> Result<Arc<Loaded>, Vec<String>> {
        let providers = provider_config::read(&place.config)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded
            && loaded.providers == providers
        {
            return Ok(Arc::clone(loaded));
        }
        let plugins = providers.iter().map(|_| Plugin::default()).collect();
        let new = Arc::new(Loaded { providers, plugins });
        *loaded = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl Provided {
    /// The credentials for a repository at an endpoint, best first.
    pub(super) fn matching(&self, hosts: &[&str], repository: &str) -> Vec<Credential> {
        let is_for = |key: &ImageKey| hosts.iter().any(|host| key.is_for(host, repository));
        let found = self.entries.iter().filter(|(key, _)| is_for(key));
        found.map(|(_, credential)| credential.clone()).collect()
    }
}

impl Plugin {
    async fn provide(
        &self,
        provider: &Provider,
        bin_dir: &Path,
        image: &str,
    ) -> Result<Entries, PluginError> {
        if let Some(entries) = self.kept(image) {
            return Ok(entries);
        }
        let turn = self.turn(image);
        let _turn = turn.lock().await;
        if let Some(entries) = self.kept(image) {
            return Ok(entries);
        }
        let response = exec(provider, bin_dir, image).await?;
        let lifetime = response.lifetime()?.unwrap_or(provider.keep_for);
        let cache_key_type = response.cache_key_type;
        let entries = Arc::new(response.entries());
        if !lifetime.is_zero() {
            let key = match cache_key_type {
                CacheKeyType::Image => image,
                CacheKeyType::Registry => registry(image),
                CacheKeyType::Global => GLOBAL,
            };
            self.keep(key, Arc::clone(&entries), lifetime);
        }
        Ok(entries)
    }

    /// What was answered for the image, else for its registry, else for all.
    fn kept(&self, image: &str) -> Option<Entries> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        [image, registry(image), GLOBAL]
            .into_iter()
            .filter_map(|key| kept.get(key))
            .find(|kept| kept.expires > now)
            .map(|kept| Arc::clone(&kept.entries))
    }

    fn keep(&self, key: &str, entries: Entries, lifetime: Duration) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| kept.expires > now);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let Some(expires) = now.checked_add(lifetime) else {
            return;
        };
        kept.insert(key.to_owned(), Kept { entries, expires });
    }

    fn turn(&self, image: &str) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(image).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(AsyncMutex::new(()));
        turns.insert(image.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

/// Runs a plugin. Its environment is ours, with what the configuration adds.
async fn exec(provider: &Provider, bin_dir: &Path, image: &str) -> Result<Response, PluginError> {
    let request = Request {
        api_version: &provider.api_version,
        kind: "CredentialProviderRequest",
        image,
    };
    let request = serde_json::to_vec(&request).map_err(std::io::Error::other)?;
    let run = async {
        let mut child = Command::new(bin_dir.join(&provider.name))
            .args(&provider.args)
            .envs(provider.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A plugin that does not read is not wrong by that alone.
            let _ = input.write_all(&request).await;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output
                .take(MAX_ANSWER_BYTES)
                .read_to_end(&mut answer)
                .await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(EXEC_TIMEOUT, run)
        .await
        .map_err(|_| PluginError::Timeout)??;
    if !status.success() {
        return Err(PluginError::Status(status));
    }
    let response = Response::parse(&answer)?;
    if response.api_version != provider.api_version {
        return Err(PluginError::Version(provider.api_version.clone()));
    }
    Ok(response)
}

/// Which images something is for, such as `*.dkr.ecr.*.amazonaws.com` or `r.example.com:5000/team`. Labels of the host
/// may be globs; the path is a plain prefix (`urlsMatch` in `pkg/credentialprovider/keyring.go`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageKey {
    host: String,
    path: String,
}

impl ImageKey {
    /// Reads a key of an answer or of a configuration; `None` if it names no host.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        (!host.is_empty()).then(|| Self {
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    fn matches(&self, image: &str) -> bool {
        let (host, repository) = image.split_once('/').unwrap_or((image, ""));
        self.is_for(host, repository)
    }

    /// Whether it is for this repository at this endpoint.
    #[must_use]
    pub fn is_for(&self, host: &str, repository: &str) -> bool {
        repository.starts_with(&self.path) && host_matches(&self.host, host)
    }

    /// The longest path first, and a name before a glob.
    fn rank(&self) -> (std::cmp::Reverse<usize>, bool) {
        (std::cmp::Reverse(self.path.len()), self.host.contains('*'))
    }
}

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
