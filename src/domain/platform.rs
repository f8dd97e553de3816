//! Platforms: what a node runs and what an image is built for.

use std::fmt;
use std::str::FromStr;

use super::text_form;

/// An operating system and architecture, with a variant where one matters (OCI image index, `platform`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Platform {
    /// `linux`, as Go's GOOS writes it.
    pub os: Box<str>,
    /// `amd64`, `arm64`, …, as Go's GOARCH writes it.
    pub architecture: Box<str>,
    /// `v7`, `v8`, …; `None` means any.
    pub variant: Option<Box<str>>,
}

/// A text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a platform: write os/architecture or os/architecture/variant, such as linux/arm64"
)]
pub struct PlatformError(String);

impl Platform {
    /// The platform this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: std::env::consts::OS.into(),
            architecture: architecture.into(),
            variant: None,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let legal = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if !parts.iter().all(legal) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self {
            os: (*os).into(),
            architecture: (*architecture).into(),
            variant: variant.map(|variant| (*variant).into()),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

text_form!(
    Platform,
    "Platform",
    "os/architecture or os/architecture/variant, such as linux/arm64",
    r"^[a-z0-9_]+/[a-z0-9_]+(/[a-z0-9_]+)?$"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_two_or_three_lower_case_words() {
        assert_eq!(
            "linux/arm/v7".parse::<Platform>().unwrap().to_string(),
            "linux/arm/v7"
        );
        for bad in ["linux", "linux/", "Linux/amd64", "a/b/c/d", ""] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?} was accepted");
        }
    }
}
