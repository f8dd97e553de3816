//! kubelet's `CredentialProviderConfig`: which plugin is called for which images, and how.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::provider::ImageKey;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Kinds of configuration that are read.
const CONFIG_VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
/// Versions of the protocol between kubelet and a plugin.
const PLUGIN_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One plugin.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Provider {
    /// The program's name.
    pub(super) name: String,
    pub(super) images: Vec<ImageKey>,
    /// How long answers are kept that do not say; zero: not at all.
    pub(super) keep_for: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
}

/// Reads the file, or all files `*.json`, `*.yaml` and `*.yml` of the directory in the order of their names, as one.
/// Like kubelet, it takes all or nothing.
///
/// # Errors
/// Everything that is wrong with it, with file and place.
pub(super) fn read(path: &Path) -> Result<Vec<Provider>, Vec<String>> {
    let (mut providers, mut problems) = (Vec::new(), Vec::new());
    let files = files(path).map_err(|error| vec![format!("{}: {error}", path.display())])?;
    if files.is_empty() {
        let none = "there is no file *.json, *.yaml or *.yml in it";
        return Err(vec![format!("{}: {none}", path.display())]);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let mut note = |place: &str, problem: String| {
            problems.push(format!("{}: {place}{problem}", file.display()));
        };
        let config = match parse(&file) {
            Ok(config) => config,
            Err(problem) => {
                note("", problem);
                continue;
            }
        };
        if !CONFIG_VERSIONS.contains(&config.api_version.as_str())
            || config.kind != "CredentialProviderConfig"
        {
            let (version, kind) = (config.api_version, config.kind);
            note(
                "",
                format!("{version} {kind} is no CredentialProviderConfig of kubelet"),
            );
            continue;
        }
        for (index, entry) in config.providers.into_iter().enumerate() {
            let place = format!("providers[{index}].");
            if !entry.name.is_empty() && !names.insert(entry.name.clone()) {
                note(&place, format!("name: {} is there already", entry.name));
            }
            providers.extend(entry.check(|problem| note(&place, problem)));
        }
    }
    if problems.is_empty() {
        Ok(providers)
    } else {
        Err(problems)
    }
}

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let is_config = file
            .extension()
            .is_some_and(|extension| ["json", "yaml", "yml"].iter().any(|one| extension == *one));
        if is_config && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(file: &Path) -> Result<Config, String> {
    let length = std::fs::metadata(file)
        .map_err(|error| error.to_string())?
        .len();
    if length > MAX_FILE_BYTES {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    // Without the lines around: a variable of a plugin may be a secret.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())
}

impl Entry {
    fn check(self, mut note: impl FnMut(String)) -> Option<Provider> {
        let is_program = !self.name.is_empty()
            && !self.name.contains(['/', ' ', '\0'])
            && !matches!(self.name.as_str(), "." | "..");
        if !is_program {
            note(format!("name: {:?} is no name of a program", self.name));
        }
        if self.match_images.is_empty() {
            note("matchImages: is missing".to_owned());
        }
        let images: Vec<_> = self
            .match_images
            .iter()
            .filter_map(|text| {
                let key = ImageKey::parse(text);
                if key.is_none() {
                    note(format!("matchImages: {text:?} has no host"));
                }
                key
            })
            .collect();
        let keep_for = match &self.default_cache_duration {
            None => {
                note("defaultCacheDuration: is missing".to_owned());
                None
            }
            Some(text) => {
                let keep_for = duration(text);
                if keep_for.is_none() {
                    note(format!(
                        "defaultCacheDuration: {text:?} is no duration such as 12h or 1h30m"
                    ));
                }
                keep_for
            }
        };
        if !PLUGIN_VERSIONS.contains(&self.api_version.as_str()) {
            let known = PLUGIN_VERSIONS.join(", ");
            note(format!(
                "apiVersion: {:?} is none of {known}",
                self.api_version
            ));
        }
        if self
            .token_attributes
            .is_some_and(|token| token.require_service_account)
        {
            // It is for the service account of a pod, and there is no pod yet.
            tracing::debug!(name = %self.name, "this credential provider needs a pod; it is not called");
            return None;
        }
        let variables = self.env.unwrap_or_default().into_iter();
        Some(Provider {
            name: self.name,
            images,
            keep_for: keep_for?,
            api_version: self.api_version,
            args: self.args.unwrap_or_default(),
            env: variables
                .map(|variable| (variable.name, variable.value))
                .collect(),
        })
    }
}

/// A duration as Go writes it (`time.ParseDuration`), unless it is negative.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let is_go = text.bytes().all(|byte| {
        byte.is_ascii_digit()
            || matches!(byte, b'.' | b'h' | b'm' | b's' | b'u' | b'n')
            || !byte.is_ascii()
    });
    let parsed: jiff::SignedDuration = is_go.then(|| text.parse().ok()).flatten()?;
    parsed.try_into().ok()
}
