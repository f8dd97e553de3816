//! Image references and digests.
//!
//! A reference is read as Docker and containerd read it (`distribution/reference`, "familiar" names):
//! `nginx` is `docker.io/library/nginx:latest`. The normalised form is what is stored, compared and
//! hashed into a subject token.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

pub use super::platform::{Platform, PlatformError};
use super::text_form;

/// Longest repository path in bytes, host left out (`distribution/reference`: NameTotalLengthMax).
const MAX_NAME_BYTES: usize = 255;
/// Longest tag in bytes (OCI distribution spec 1.1, "Pulling manifests").
const MAX_TAG_BYTES: usize = 128;
/// Hex digits of an image's token in subjects.
const TOKEN_DIGITS: usize = 12;

const DEFAULT_HOST: &str = "docker.io";
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
const OFFICIAL_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A SHA-256 content digest, `sha256:<64 lower-case hex digits>` (OCI image spec, "Digests").
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

/// A text that is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: expected sha256: and 64 lower-case hex digits")]
pub struct DigestError(String);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    /// The digest whose SHA-256 value is `hash`.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        text.push_str(&hex(&hash));
        Self(text.into())
    }

    /// The whole digest, algorithm included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let legal = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        if legal {
            Ok(Self(text.into()))
        } else {
            Err(DigestError(text.to_owned()))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_form!(
    Digest,
    "Digest",
    "A SHA-256 content digest",
    r"^sha256:[0-9a-f]{64}$"
);

/// A normalised image reference: registry host, repository, and a tag, a digest, or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing between the quotes.
    #[error("the image reference is empty")]
    Empty,
    /// `https://…` and the like: a reference has no scheme.
    #[error("{0:?}: an image reference has no scheme; leave out everything up to \"://\"")]
    Scheme(String),
    /// The host part is not a host name, address or `host:port`.
    #[error("{0:?}: {1:?} is not a registry host")]
    Host(String, String),
    /// The repository path breaks the grammar.
    #[error(
        "{0:?}: {1:?} is not a repository path (lower-case letters, digits, and single '.', '_', '__' or '-' between them)"
    )]
    Repository(String, String),
    /// The repository path is too long.
    #[error("{0:?}: the repository path is longer than 255 characters")]
    TooLong(String),
    /// The tag breaks the grammar.
    #[error(
        "{0:?}: {1:?} is not a tag (letters, digits, '_', '.', '-', at most 128, not beginning with '.' or '-')"
    )]
    Tag(String, String),
    /// What follows `@` is no digest.
    #[error("{0:?}: {1}")]
    Digest(String, DigestError),
}

impl ImageRef {
    /// The registry host as in the name, `docker.io` when the text had none.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository path without the host, such as `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one. A reference has a tag, a digest, or both.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference names one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host/repository`, the part of the name that tag and digest hang on.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `host/repository:tag`, the name CRI lists under RepoTags; `None` without a tag.
    #[must_use]
    pub fn tag_name(&self) -> Option<String> {
        self.tag
            .as_ref()
            .map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `host/repository@digest`, the name CRI lists under RepoDigests.
    #[must_use]
    pub fn digest_name(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// The image's token in subjects: the first 12 hex digits of the SHA-256 of the normalised text.
    #[must_use]
    pub fn token(&self) -> String {
        Digest::of(self.to_string().as_bytes()).hex()[..TOKEN_DIGITS].to_owned()
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains("://") {
            return Err(ReferenceError::Scheme(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|error| ReferenceError::Digest(text.to_owned(), error))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (host, path) = split_host(rest);
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let registry = match host {
            None | Some(LEGACY_DEFAULT_HOST) => DEFAULT_HOST,
            Some(host) if host_is_legal(host) => host,
            Some(host) => return Err(ReferenceError::Host(text.to_owned(), host.to_owned())),
        };
        if !path.split('/').all(component_is_legal) {
            return Err(ReferenceError::Repository(text.to_owned(), path.to_owned()));
        }
        let repository = if registry == DEFAULT_HOST && !path.contains('/') {
            format!("{OFFICIAL_NAMESPACE}{path}")
        } else {
            path.to_owned()
        };
        if repository.len() > MAX_NAME_BYTES {
            return Err(ReferenceError::TooLong(text.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !tag_is_legal(tag)) {
            return Err(ReferenceError::Tag(text.to_owned(), tag.to_owned()));
        }
        let tag = tag.or(if digest.is_none() {
            Some(DEFAULT_TAG)
        } else {
            None
        });
        Ok(Self {
            registry: registry.into(),
            repository: repository.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }
}

/// The first component is a host if it could not be a path component of Docker Hub: it has a dot or
/// a colon, is `localhost`, or has an upper-case letter (`distribution/reference`, splitDockerDomain).
fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn host_is_legal(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest {
                "" => return true,
                rest => match rest.strip_prefix(':') {
                    Some(port) => ("", Some(port)),
                    None => return false,
                },
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    (host.starts_with('[') || name.split('.').all(label))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn component_is_legal(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_legal = matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if alphanumeric(first) && alphanumeric(last));
    if !ends_legal {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn tag_is_legal(tag: &str) -> bool {
    tag.len() <= MAX_TAG_BYTES
        && tag
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

text_form!(
    ImageRef,
    "ImageReference",
    "An image reference: [host[:port]/]repository[:tag][@sha256:digest]",
    r"^\S+$"
);

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn familiar_names_are_normalised() {
        for (text, normalised) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            (
                "127.0.0.1:5000/a/b__c/d--e:v1_2",
                "127.0.0.1:5000/a/b__c/d--e:v1_2",
            ),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("quay.io/org/app", "quay.io/org/app:latest"),
        ] {
            assert_eq!(
                text.parse::<ImageRef>().unwrap().to_string(),
                normalised,
                "{text}"
            );
        }
    }

    #[test]
    fn a_digest_is_kept_and_takes_the_place_of_the_default_tag() {
        let image: ImageRef = format!("registry.example.com/a/b@{D}").parse().unwrap();
        assert_eq!(
            (image.tag(), image.digest().map(Digest::as_str)),
            (None, Some(D))
        );
        let both: ImageRef = format!("registry.example.com/a/b:1@{D}").parse().unwrap();
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.to_string(), format!("registry.example.com/a/b:1@{D}"));
        assert_eq!(both.tag_name().unwrap(), "registry.example.com/a/b:1");
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        for bad in [
            "",
            "https://a.io/b",
            "UPPER",
            "a.io/Upper",
            "a.io/b:",
            "a.io/b:-x",
            "a.io/b@sha256:12",
            "a.io//b",
            "a.io/b/",
            "a b",
            "a.io:99999/b",
            "a.io:/b",
            "-a.io/b",
            "a.io/a___b",
            "a.io/.b",
            "[::1/b",
            "[x]:1/b",
            "a@b@c",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?} was accepted");
        }
        assert!(
            format!("a.io/{}", "x".repeat(256))
                .parse::<ImageRef>()
                .is_err()
        );
        assert!(
            format!("a.io/b:{}", "x".repeat(129))
                .parse::<ImageRef>()
                .is_err()
        );
    }

    #[test]
    fn the_token_is_a_function_of_the_normalised_reference() {
        let token = "nginx".parse::<ImageRef>().unwrap().token();
        assert_eq!(
            token,
            "docker.io/library/nginx:latest"
                .parse::<ImageRef>()
                .unwrap()
                .token()
        );
        assert_eq!(token.len(), 12);
        assert_ne!(token, "nginx:1".parse::<ImageRef>().unwrap().token());
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses_to_a_fixed_point_or_an_error(text in "[a-zA-Z0-9./:@_\\-\\[\\] ]{0,60}") {
            if let Ok(image) = text.parse::<ImageRef>() {
                let again: ImageRef = image.to_string().parse().unwrap();
                proptest::prop_assert_eq!(again, image);
            }
        }
    }
}
