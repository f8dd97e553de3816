//! Signed tokens of an OpenID Connect provider (RFC 7519, RFC 7517), as Google's Pub/Sub sends them with a push.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::Deserialize;

/// How far clocks may differ, in seconds.
const CLOCK_SKEW: u64 = 60;

/// What a token has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Who signs: the token's `iss`.
    pub issuers: Vec<String>,
    /// For whom: the token's `aud`.
    pub audience: String,
    /// Who sends, if that was set: the token's `email`, which has to be verified.
    pub email: Option<String>,
}

/// The public keys of the signer by their ids.
#[derive(Clone, Default, Debug)]
pub struct Keys(BTreeMap<String, (Vec<u8>, Vec<u8>)>);

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

impl Keys {
    /// Reads a JSON Web Key Set; keys that are not RSA are left out.
    ///
    /// # Errors
    /// It is none, or has no RSA key.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: KeySet = serde_json::from_slice(text)
            .map_err(|error| format!("not a JSON Web Key Set: {error}"))?;
        let keys: BTreeMap<_, _> = set
            .keys
            .into_iter()
            .filter(|key| key.kty == "RSA")
            .filter_map(|key| {
                let (n, e) = (URL_SAFE_NO_PAD.decode(key.n), URL_SAFE_NO_PAD.decode(key.e));
                Some((key.kid, (n.ok()?, e.ok()?)))
            })
            .collect();
        if keys.is_empty() {
            return Err("the JSON Web Key Set has no RSA key".to_owned());
        }
        Ok(Self(keys))
    }

    /// Whether the signer of this header value is known; a value without a token needs no key.
    #[must_use]
    pub fn know(&self, authorization: &[u8]) -> bool {
        let token = authorization.strip_prefix(b"Bearer ").unwrap_or_default();
        let head = token.split(|byte| *byte == b'.').next().unwrap_or_default();
        part::<Head>(head).is_none_or(|head| self.0.contains_key(&head.kid))
    }
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    #[serde(default)]
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(default)]
    email: String,
    #[serde(default)]
    email_verified: bool,
}

fn part<T: serde::de::DeserializeOwned>(text: &[u8]) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Checks a token; `now` in seconds since 1970.
pub(super) fn check(
    token: &[u8],
    expected: &Expected,
    keys: &Keys,
    now: u64,
) -> Result<(), &'static str> {
    let parts: Vec<&[u8]> = token.split(|byte| *byte == b'.').collect();
    let &[head, claims, signature] = parts.as_slice() else {
        return Err("the bearer token is no signed token");
    };
    let signed = &token[..head.len() + 1 + claims.len()];
    let head: Head = part(head).ok_or("the token's header is not readable")?;
    if head.alg != "RS256" {
        return Err("the token is not signed with RS256");
    }
    let (n, e) = keys
        .0
        .get(&head.kid)
        .ok_or("the token's signer is not known")?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| "the token's signature is not readable")?;
    RsaPublicKeyComponents { n, e }
        .verify(&RSA_PKCS1_2048_8192_SHA256, signed, &signature)
        .map_err(|_| "the token's signature is wrong")?;
    let claims: Claims = part(claims).ok_or("the token's claims are not readable")?;
    if !expected.issuers.contains(&claims.iss) {
        return Err("the token is of another issuer");
    }
    if claims.aud != expected.audience {
        return Err("the token is for another audience");
    }
    if claims.exp.saturating_add(CLOCK_SKEW) < now || claims.nbf > now.saturating_add(CLOCK_SKEW) {
        return Err("the token is not valid now");
    }
    match &expected.email {
        Some(email) if *email != claims.email || !claims.email_verified => {
            Err("the token is of another sender")
        }
        _ => Ok(()),
    }
}
