//! Names of jobs and nodes, and the subject tokens they become.

use std::fmt;
use std::str::FromStr;

use super::text_form;

/// Longest name in bytes (RFC 1123 as Kubernetes reads it: a DNS subdomain).
pub const MAX_NAME_BYTES: usize = 253;

/// Longest label between two dots in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Why a text is not a DNS-1123 subdomain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing between the quotes.
    #[error("is empty; a name has 1 to 253 characters")]
    Empty,
    /// More than [`MAX_NAME_BYTES`].
    #[error("has {0} characters; at most 253 are allowed")]
    TooLong(usize),
    /// A character, or its place, that DNS-1123 does not allow.
    #[error(
        "{0:?} is not a DNS-1123 subdomain: use lower-case letters, digits, '-' and '.', and begin and end each part with a letter or digit"
    )]
    Malformed(String),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(text.len()));
    }
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label_is_legal = |label: &str| {
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
            && bytes.len() <= MAX_LABEL_BYTES
            && bytes.iter().all(|&byte| edge(byte) || byte == b'-')
    };
    if text.split('.').all(label_is_legal) {
        Ok(())
    } else {
        Err(NameError::Malformed(text.to_owned()))
    }
}

macro_rules! subdomain {
    ($(#[$doc:meta])* $type:ident, $title:literal, $description:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $type(Box<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as one token of a subject and key of a bucket: `.` becomes `_`.
            #[must_use]
            pub fn token(&self) -> String {
                self.0.replace('.', "_")
            }

            /// Reads a name back from its token.
            ///
            /// # Errors
            /// The token does not stand for a DNS-1123 subdomain.
            pub fn from_token(token: &str) -> Result<Self, NameError> {
                if token.contains('.') {
                    return Err(NameError::Malformed(token.to_owned()));
                }
                token.replace('_', ".").parse()
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        text_form!(
            $type,
            $title,
            $description,
            r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
        );
    };
}

subdomain!(
    /// The name of a job: a DNS-1123 subdomain, unique in a cell.
    JobName,
    "JobName",
    "A job's name: a DNS-1123 subdomain of at most 253 characters"
);
subdomain!(
    /// The name of a node: a DNS-1123 subdomain, unique in a cell.
    NodeName,
    "NodeName",
    "A node's name: a DNS-1123 subdomain of at most 253 characters"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_become_underscores_and_come_back() {
        let name: NodeName = "ip-10-0-0-1.eu-west-1.compute".parse().unwrap();
        assert_eq!(name.token(), "ip-10-0-0-1_eu-west-1_compute");
        assert_eq!(NodeName::from_token(&name.token()).unwrap(), name);
    }

    #[test]
    fn everything_outside_dns_1123_is_refused() {
        for bad in [
            "", "A", "a b", "a_b", "-a", "a-", "a..b", ".a", "a.", "a*", "a>", "é",
        ] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?} was accepted");
        }
        assert!("a".repeat(64).parse::<JobName>().is_err());
        assert_eq!(
            "a.".repeat(127).parse::<JobName>(),
            Err(NameError::TooLong(254))
        );
        assert!(NodeName::from_token("a.b").is_err());
    }

    #[test]
    fn the_message_names_what_is_allowed() {
        let error = "node one".parse::<NodeName>().unwrap_err().to_string();
        assert!(
            error.contains("\"node one\"") && error.contains("lower-case"),
            "{error}"
        );
    }
}
