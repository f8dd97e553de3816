//! The file that says which sources there are, how each proves itself, and what it may speak for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ring::hmac;
use serde::Deserialize;

use super::auth::{Proof, Secret};
use super::oidc::Expected;
use super::source::Source;

/// Shortest secret in bytes: what is shorter can be guessed.
const MIN_SECRET_BYTES: usize = 16;
/// Where Google keeps the keys its tokens are signed with.
const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
const GOOGLE_ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// Gets the secret of a file or a variable.
type Secrets = dyn Fn(Option<&Path>, Option<&str>) -> Result<String, String>;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sources: BTreeMap<String, Entry>,
}

/// A source as it is written.
#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Entry {
    proof: Option<Kind>,
    secret_file: Option<PathBuf>,
    secret_env: Option<String>,
    header: Option<String>,
    #[serde(default)]
    registries: Vec<String>,
    #[serde(default)]
    hosts: BTreeMap<String, String>,
    #[serde(default)]
    digest_only: bool,
    audience: Option<String>,
    email: Option<String>,
    jwks_file: Option<PathBuf>,
    jwks_url: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Header,
    Hmac,
    Path,
    Oidc,
    None,
}

/// A source that is switched on.
#[derive(Debug)]
pub struct SourceSettings {
    /// Who.
    pub source: Source,
    /// What it has to show.
    pub proof: Proof,
    /// The registries it may speak of; `*.` at the front stands for any labels.
    pub registries: Vec<String>,
    /// Names in payloads (a registry, or a registry with the beginning of a repository) and what they are in
    /// image references.
    pub hosts: BTreeMap<String, String>,
    /// Whether pushes without a tag count where they may be children of an index.
    pub digest_only: bool,
    /// Where the keys of tokens come from.
    pub keys: KeySource,
}

/// Where the keys of tokens come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// No token is looked at.
    None,
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(String),
}

/// Of a URL only where it leads: what stands before an `@` or after a `?` may be a secret.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => {
                let place = url.split(['?', '#']).next().unwrap_or_default();
                match place.split_once("://") {
                    Some((scheme, rest)) => {
                        let rest = rest.rsplit('@').next().unwrap_or_default();
                        write!(f, "{scheme}://{rest}")
                    }
                    None => f.write_str("a URL"),
                }
            }
        }
    }
}

/// Reads the file and the secrets it names.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(path: &Path) -> Result<BTreeMap<Source, SourceSettings>, Vec<String>> {
    let at = |message: String| format!("{}: {message}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| vec![at(error.to_string())])?;
    parse(&text, &secret).map_err(|problems| problems.into_iter().map(at).collect())
}

/// Reads the file's text; `secret` gets the secret of a file or a variable.
fn parse(text: &str, secret: &Secrets) -> Result<BTreeMap<Source, SourceSettings>, Vec<String>> {
    // Without the lines around: somebody may have written a secret where its file should be named.
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| vec![error.to_string()])?;
    let mut problems = Vec::new();
    let mut sources = BTreeMap::new();
    if file.sources.is_empty() {
        problems.push("sources: there is none, so nothing could be received".to_owned());
    }
    for (name, entry) in file.sources {
        let place = format!("sources.{name}");
        let source: Source = match name.parse() {
            Ok(source) => source,
            Err(error) => {
                problems.push(format!("{place}: {error}"));
                continue;
            }
        };
        match settings(source, entry, secret) {
            Ok(settings) => {
                if sources.insert(source, settings).is_some() {
                    problems.push(format!("{place}: the same source is there twice"));
                }
            }
            Err(found) => problems.extend(found.into_iter().map(|one| format!("{place}.{one}"))),
        }
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(problems)
    }
}

fn secret(file: Option<&Path>, variable: Option<&str>) -> Result<String, String> {
    let text = match (file, variable) {
        (Some(path), None) => std::fs::read_to_string(path)
            .map_err(|error| format!("secret-file: cannot read {}: {error}", path.display()))?,
        (None, Some(name)) => std::env::var(name).map_err(|error| match error {
            std::env::VarError::NotPresent => format!("secret-env: {name} is not set"),
            std::env::VarError::NotUnicode(_) => format!("secret-env: {name} is no UTF-8 text"),
        })?,
        (None, None) => {
            return Err("secret-file: this or secret-env has to be set for this proof".to_owned());
        }
        (Some(_), Some(_)) => {
            return Err("secret-file: set either this or secret-env".to_owned());
        }
    };
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.len() < MIN_SECRET_BYTES {
        let say = "the secret is shorter than 16 characters; make one with `openssl rand -hex 32`";
        return Err(format!("secret: {say}"));
    }
    Ok(text)
}

/// How a source proves itself when nobody says.
const fn usual(source: Source) -> Kind {
    match source {
        Source::Quay | Source::DockerHub | Source::Aliyun => Kind::Path,
        Source::GitHub | Source::Gitea | Source::Nexus | Source::Generic => Kind::Hmac,
        Source::Gar => Kind::Oidc,
        Source::Distribution
        | Source::Harbor
        | Source::GitLab
        | Source::Acr
        | Source::Ecr
        | Source::JFrog
        | Source::CloudEvents => Kind::Header,
    }
}

/// The header a source sends its proof in when nobody says.
const fn usual_header(source: Source, kind: Kind) -> &'static str {
    match (source, kind) {
        (Source::JFrog, _) => "x-jfrog-event-auth",
        (Source::GitHub, Kind::Hmac) => "x-hub-signature-256",
        (Source::Gitea, Kind::Hmac) => "x-gitea-signature",
        (Source::Nexus, Kind::Hmac) => "x-nexus-webhook-signature",
        (_, Kind::Hmac) => "x-signature",
        _ => "authorization",
    }
}

/// The registry of those that have but one.
fn usual_registries(source: Source) -> Vec<String> {
    let only = match source {
        Source::DockerHub => "docker.io",
        Source::GitHub => "ghcr.io",
        Source::Quay => "quay.io",
        _ => return Vec::new(),
    };
    vec![only.to_owned()]
}

/// What the source has to show, sent in the header `name`.
fn proof(
    source: Source,
    entry: &Entry,
    kind: Kind,
    name: String,
    secret: &Secrets,
) -> Result<Proof, String> {
    let secret = || secret(entry.secret_file.as_deref(), entry.secret_env.as_deref());
    match kind {
        Kind::None => Ok(Proof::None),
        Kind::Path => {
            let text = secret()?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            if text.bytes().all(plain) {
                Ok(Proof::Path(Secret::new(&text)))
            } else {
                Err("secret: in a path it has letters, digits, '-', '.', '_' and '~' only".into())
            }
        }
        Kind::Header => secret().map(|text| Proof::Header {
            name,
            secret: Secret::new(&text),
        }),
        Kind::Hmac => secret().map(|text| {
            let nexus = source == Source::Nexus;
            let algorithm = if nexus {
                hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY
            } else {
                hmac::HMAC_SHA256
            };
            Proof::Hmac {
                name,
                key: hmac::Key::new(algorithm, text.as_bytes()),
                compact: nexus,
            }
        }),
        Kind::Oidc => match &entry.audience {
            None => Err("audience: has to be set: the one of the Pub/Sub subscription".to_owned()),
            Some(audience) => Ok(Proof::Oidc(Expected {
                issuers: GOOGLE_ISSUERS.map(str::to_owned).to_vec(),
                audience: audience.clone(),
                email: entry.email.clone(),
            })),
        },
    }
}

/// Where the keys of its tokens come from.
fn keys(entry: &Entry, kind: Kind) -> Result<KeySource, String> {
    match (kind, &entry.jwks_file, &entry.jwks_url) {
        (Kind::Oidc, Some(_), Some(_)) => Err("jwks-file: set either this or jwks-url".to_owned()),
        (Kind::Oidc, Some(path), None) => Ok(KeySource::File(path.clone())),
        (Kind::Oidc, None, url) => Ok(KeySource::Url(
            url.clone().unwrap_or_else(|| GOOGLE_KEYS.to_owned()),
        )),
        _ => Ok(KeySource::None),
    }
}

fn settings(source: Source, entry: Entry, secret: &Secrets) -> Result<SourceSettings, Vec<String>> {
    let mut problems = Vec::new();
    let kind = entry.proof.unwrap_or(usual(source));
    let usual_name = usual_header(source, kind);
    let name = entry.header.as_deref().unwrap_or(usual_name).to_lowercase();
    if axum::http::HeaderName::try_from(name.as_str()).is_err() {
        problems.push(format!("header: {name:?} is no name of a header"));
    }
    let proof = proof(source, &entry, kind, name, secret);
    let proof = proof.map_err(|problem| problems.push(problem)).ok();
    if kind == Kind::Oidc && entry.email.is_none() {
        problems.push("email: has to be set: the service account of the subscription".to_owned());
    }
    let keys = keys(&entry, kind);
    let keys = keys.map_err(|problem| problems.push(problem)).ok();
    let registries = if entry.registries.is_empty() {
        usual_registries(source)
    } else {
        entry.registries
    };
    if registries.is_empty() {
        let say = "has to be set: the hosts of image references that this source may speak of";
        problems.push(format!("registries: {say}"));
    }
    match proof.zip(keys) {
        Some((proof, keys)) if problems.is_empty() => Ok(SourceSettings {
            source,
            proof,
            registries,
            hosts: entry.hosts,
            digest_only: entry.digest_only,
            keys,
        }),
        _ => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<BTreeMap<Source, SourceSettings>, Vec<String>> {
        parse(text, &|file, _| match file {
            Some(_) => Ok("0123456789abcdef".to_owned()),
            None => Err("secret-file: missing".to_owned()),
        })
    }

    #[test]
    fn what_is_usual_need_not_be_said() {
        let sources = parsed("sources: {github: {secret-file: a}, gitea: {secret-file: b, registries: [g.example.com]}}").unwrap();
        assert!(
            matches!(&sources[&Source::GitHub].proof, Proof::Hmac { name, .. } if name == "x-hub-signature-256")
        );
        assert_eq!(sources[&Source::GitHub].registries, ["ghcr.io"]);
        assert!(!sources[&Source::Gitea].digest_only);
    }

    #[test]
    fn every_problem_is_told_with_its_place() {
        let problems = parsed(
            "sources: {nowhere: {}, harbor: {}, gar: {registries: [a.io]}, quay: {proof: none}}",
        )
        .unwrap_err();
        let wanted = [
            "sources.gar.audience: ",
            "sources.gar.email: ",
            "sources.harbor.secret-file: ",
            "sources.harbor.registries: ",
            "sources.nowhere: \"nowhere\" is no source",
        ];
        assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
        for (problem, wanted) in problems.iter().zip(wanted) {
            assert!(problem.starts_with(wanted), "{problem} is not {wanted}");
        }
        assert!(parsed("sources: {quay: {prof: none}}").is_err());
    }

    #[test]
    fn a_short_secret_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(secret(Some(file.path()), None).unwrap_err().contains("16"));
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        assert_eq!(secret(Some(file.path()), None).unwrap(), "0123456789abcdef");
    }
}
