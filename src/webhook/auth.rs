//! Who sent a request: proofs, checked over the raw body and in constant time.

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use super::oidc::{self, Keys};

/// Compares texts by their codes under this key, so that time says nothing of how far they agree.
const COMPARISON_KEY: &[u8] = b"prewarm webhook secret";

/// What a source has to show.
#[derive(Debug)]
pub enum Proof {
    /// Nothing: anyone who reaches the port may tell.
    None,
    /// The secret as the last part of the path.
    Path(Secret),
    /// The secret in a header: as it is, behind `Bearer`, or as `user:password` behind `Basic`.
    Header {
        /// The header's name in lower case.
        name: String,
        /// What it holds.
        secret: Secret,
    },
    /// A code of the body in a header, in hexadecimal digits, behind `sha256=` or bare.
    Hmac {
        /// The header's name in lower case.
        name: String,
        /// The key.
        key: hmac::Key,
        /// Whether the code may be of the JSON without its white space, as Nexus makes it.
        compact: bool,
    },
    /// A signed token behind `Bearer`, as Google's Pub/Sub sends it.
    Oidc(oidc::Expected),
}

impl Proof {
    /// Whether it proves who says what: a path is written to logs on its way, and nothing proves nothing.
    #[must_use]
    pub const fn is_strong(&self) -> bool {
        matches!(
            self,
            Self::Header { .. } | Self::Hmac { .. } | Self::Oidc(_)
        )
    }
}

/// A secret that is only ever compared.
#[derive(Debug)]
pub struct Secret {
    plain: hmac::Tag,
    bearer: hmac::Tag,
    basic: hmac::Tag,
}

impl Secret {
    /// Takes a secret in.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        let code = |text: &str| hmac::sign(&comparison_key(), text.as_bytes());
        Self {
            plain: code(secret),
            bearer: code(&format!("Bearer {secret}")),
            basic: code(&format!("Basic {}", STANDARD.encode(secret))),
        }
    }

    fn is(&self, text: &[u8]) -> bool {
        equal(&self.plain, text)
    }

    /// All three are looked at in any case.
    fn is_in_header(&self, value: &[u8]) -> bool {
        equal(&self.plain, value) | equal(&self.bearer, value) | equal(&self.basic, value)
    }
}

fn comparison_key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, COMPARISON_KEY)
}

fn equal(code: &hmac::Tag, text: &[u8]) -> bool {
    hmac::verify(&comparison_key(), text, code.as_ref()).is_ok()
}

/// A request as far as proofs look at it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'r> {
    /// What follows the source in the path.
    pub path: Option<&'r str>,
    /// The headers.
    pub headers: &'r HeaderMap,
    /// The body as it came.
    pub body: &'r [u8],
    /// Seconds since 1970.
    pub now: u64,
}

/// Checks a proof. `keys` are the signers of tokens.
///
/// # Errors
/// What is missing or wrong, without a word of what it should be.
pub fn check(proof: &Proof, shown: Shown<'_>, keys: &Keys) -> Result<(), &'static str> {
    let header = |name: &str| {
        shown
            .headers
            .get(name)
            .map(axum::http::HeaderValue::as_bytes)
    };
    match proof {
        Proof::None => Ok(()),
        Proof::Path(secret) => match shown.path {
            None => Err("the path has no secret"),
            Some(path) if secret.is(path.as_bytes()) => Ok(()),
            Some(_) => Err("the secret in the path is wrong"),
        },
        Proof::Header { name, secret } => match header(name) {
            None => Err("the header with the secret is missing"),
            Some(value) if secret.is_in_header(value) => Ok(()),
            Some(_) => Err("the secret in the header is wrong"),
        },
        Proof::Hmac { name, key, compact } => {
            let value = header(name).ok_or("the header with the signature is missing")?;
            let digits = value.strip_prefix(b"sha256=").unwrap_or(value);
            let code = unhex(digits).ok_or("the signature is not in hexadecimal digits")?;
            let right = hmac::verify(key, shown.body, &code).is_ok()
                || (*compact && hmac::verify(key, &without_space(shown.body), &code).is_ok());
            right.then_some(()).ok_or("the signature is wrong")
        }
        Proof::Oidc(expected) => {
            let token = header("authorization")
                .and_then(|value| value.strip_prefix(b"Bearer "))
                .ok_or("the header authorization has no bearer token")?;
            oidc::check(token, expected, keys, shown.now)
        }
    }
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    if !digits.len().is_multiple_of(2) || digits.len() > 128 {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok())
        .collect()
}

/// JSON without the white space between its parts.
fn without_space(body: &[u8]) -> Vec<u8> {
    let (mut text, mut escaped) = (false, false);
    body.iter()
        .copied()
        .filter(|byte| {
            if text {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => text = false,
                    _ => {}
                }
                return true;
            }
            text = *byte == b'"';
            !byte.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(proof: &Proof, path: Option<&str>, header: Option<(&'static str, &str)>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let shown = Shown {
            path,
            headers: &headers,
            body: b"{ \"a b\": 1 }",
            now: 0,
        };
        check(proof, shown, &Keys::default()).is_ok()
    }

    #[test]
    fn a_secret_is_known_in_every_form_it_is_sent_in() {
        let proof = Proof::Header {
            name: "authorization".to_owned(),
            secret: Secret::new("user:secret"),
        };
        for good in [
            "user:secret",
            "Bearer user:secret",
            "Basic dXNlcjpzZWNyZXQ=",
        ] {
            assert!(
                checked(&proof, None, Some(("authorization", good))),
                "{good}"
            );
        }
        for bad in [
            "",
            "user:secre",
            "user:secrets",
            "Bearer",
            "Basic dXNlcjpzZWNyZXQ",
        ] {
            assert!(
                !checked(&proof, None, Some(("authorization", bad))),
                "{bad}"
            );
        }
        assert!(!checked(&proof, Some("user:secret"), None));
    }

    #[test]
    fn a_secret_in_the_path_is_all_of_the_path() {
        let proof = Proof::Path(Secret::new("s"));
        assert!(checked(&proof, Some("s"), None));
        assert!(!checked(&proof, Some("s/"), None) && !checked(&proof, Some(""), None));
        assert!(!checked(&proof, None, None));
    }

    #[test]
    fn a_code_is_of_the_body_and_may_be_of_its_compact_form_for_nexus_only() {
        let key = || hmac::Key::new(hmac::HMAC_SHA256, b"k");
        let hex = |body: &[u8]| {
            let tag = hmac::sign(&key(), body);
            tag.as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let proof = |compact| Proof::Hmac {
            name: "x-signature".to_owned(),
            key: key(),
            compact,
        };
        let (raw, short) = (hex(b"{ \"a b\": 1 }"), hex(b"{\"a b\":1}"));
        let is = |proof: &Proof, value: &str| checked(proof, None, Some(("x-signature", value)));
        assert!(is(&proof(false), &raw) && is(&proof(false), &format!("sha256={raw}")));
        assert!(!is(&proof(false), &short) && is(&proof(true), &short));
        assert!(
            !is(&proof(false), &raw[2..]) && !is(&proof(false), "zz") && !is(&proof(false), "")
        );
    }
}
