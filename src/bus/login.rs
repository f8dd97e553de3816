//! Files that prove who we are. They are read for every connection, so that renewed ones need no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Auth, AuthError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;

use crate::domain::time::Timestamp;

/// Largest file of credentials, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// What a file of credentials holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A JWT and the seed of the user's key, as `nsc` writes them.
    Credentials,
    /// The seed of a user's key.
    NkeySeed,
}

/// A file by which we log in.
#[derive(Debug)]
pub(super) struct LoginFile {
    path: PathBuf,
    kind: Kind,
    last: Mutex<Proof>,
}

/// What was read from it.
#[derive(Clone, Debug)]
struct Proof {
    jwt: Option<String>,
    key: Arc<KeyPair>,
    expires: Option<Timestamp>,
}

impl LoginFile {
    /// Reads it for the first time.
    pub(super) async fn open(path: &Path, kind: Kind) -> io::Result<Arc<Self>> {
        let proof = read(path, kind).await?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            kind,
            last: Mutex::new(proof),
        }))
    }

    /// The answer to the broker's challenge. A file that cannot be used, such as one half written, leaves
    /// what was read before in force.
    pub(super) async fn answer(self: Arc<Self>, nonce: Vec<u8>) -> Result<Auth, AuthError> {
        match read(&self.path, self.kind).await {
            Ok(proof) => {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = proof;
            }
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "the login cannot be read again; the one before is used");
            }
        }
        if let Some(expired) = self.expired(Timestamp::from_millis(
            jiff::Timestamp::now().as_millisecond(),
        )) {
            tracing::warn!(
                file = %self.path.display(), %expired,
                "this login has expired; put a new one in its place, which the next attempt uses"
            );
        }
        let proof = self.proof();
        let signature = proof.key.sign(&nonce).map_err(AuthError::new)?;
        let mut auth = Auth::new();
        if proof.jwt.is_none() {
            auth.nkey = Some(proof.key.public_key());
        }
        auth.jwt = proof.jwt;
        auth.signature = Some(signature);
        Ok(auth)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// When it expired, if it has.
    pub(super) fn expired(&self, now: Timestamp) -> Option<Timestamp> {
        self.proof().expires.filter(|expires| *expires <= now)
    }

    fn proof(&self) -> Proof {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

async fn read(path: &Path, kind: Kind) -> io::Result<Proof> {
    let text = tokio::fs::read_to_string(path).await?;
    let proof = match text.get(..MAX_BYTES) {
        Some(_) => Err("it is too large for a file of credentials".to_owned()),
        None => parse(&text, kind),
    };
    proof.map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
}

fn parse(text: &str, kind: Kind) -> Result<Proof, String> {
    let seed = seed_of(text).ok_or("it holds no seed of a user nkey (SU…)")?;
    let key = KeyPair::from_seed(seed).map_err(|_| "its seed of a user nkey is damaged")?;
    if key.key_pair_type() != KeyPairType::User {
        return Err("its seed is not a user's".to_owned());
    }
    let mut proof = Proof {
        jwt: None,
        key: Arc::new(key),
        expires: None,
    };
    if kind == Kind::Credentials {
        let jwt = jwt_of(text).ok_or("it holds no JWT (-----BEGIN NATS USER JWT-----)")?;
        let claims = Claims::of(jwt).ok_or("its JWT cannot be read")?;
        if claims.sub != proof.key.public_key() {
            return Err("its seed is not that of its JWT's user".to_owned());
        }
        proof.expires = claims.expires();
        proof.jwt = Some(jwt.to_owned());
    }
    Ok(proof)
}

/// The seed of a user nkey: `SU` and base32, alone or in the decorated form that `nk` and `nsc` write.
fn seed_of(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| {
        line.starts_with("SU")
            && line.len() == 58
            && line
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })
}

/// The JWT in its decorated form.
fn jwt_of(text: &str) -> Option<&str> {
    let is_mark = |line: &&str| line.starts_with("---") && line.contains("BEGIN NATS USER JWT");
    let mut lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| !is_mark(line));
    lines.nth(1).filter(|jwt| !jwt.is_empty())
}

/// What a user's JWT claims, of which the broker alone can say whether it is true.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970; absent or 0: never.
    #[serde(default)]
    exp: i64,
}

impl Claims {
    fn of(jwt: &str) -> Option<Self> {
        let claims = jwt.split('.').nth(1)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        serde_json::from_slice(&claims).ok()
    }

    fn expires(&self) -> Option<Timestamp> {
        (self.exp > 0).then(|| Timestamp::from_millis(self.exp.saturating_mul(1000)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A key pair of the NATS documentation ("NKeys").
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const USER: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn credentials(sub: &str, exp: i64) -> String {
        let claims = URL_SAFE_NO_PAD.encode(json!({"sub": sub, "exp": exp}).to_string());
        format!(
            "-----BEGIN NATS USER JWT-----\neyJ9.{claims}.c2ln\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\r\n{SEED}\r\n------END USER NKEY SEED------\n"
        )
    }

    fn problem(text: &str, kind: Kind) -> String {
        parse(text, kind).unwrap_err()
    }

    #[test]
    fn a_seed_is_found_alone_and_decorated() {
        for text in [SEED.to_owned(), format!("{SEED}\n"), credentials(USER, 0)] {
            let proof = parse(&text, Kind::NkeySeed).unwrap();
            assert_eq!((proof.jwt, proof.key.public_key()), (None, USER.to_owned()));
        }
        assert!(problem("something", Kind::NkeySeed).contains("no seed"));
        let damaged = SEED.replace('4', "5").replace("USDXI", "USDXJ");
        assert!(problem(&damaged, Kind::NkeySeed).contains("damaged"));
    }

    #[test]
    fn credentials_are_a_jwt_and_its_own_key() {
        let proof = parse(&credentials(USER, 1_790_000_000), Kind::Credentials).unwrap();
        assert!(proof.jwt.unwrap().starts_with("eyJ9."));
        assert_eq!(
            proof.expires,
            Some(Timestamp::from_millis(1_790_000_000_000))
        );
        let never = parse(&credentials(USER, 0), Kind::Credentials).unwrap();
        assert_eq!(never.expires, None);
        assert!(problem(SEED, Kind::Credentials).contains("no JWT"));
        let foreign = credentials("UANOTHER", 0);
        assert!(problem(&foreign, Kind::Credentials).contains("not that of its JWT's user"));
        let broken = credentials(USER, 0).replace("eyJ9.", "eyJ9");
        assert!(problem(&broken, Kind::Credentials).contains("cannot be read"));
    }
}
