//! An operator of NATS: accounts and users by signed JWTs, as `nsc` makes them, without `nsc`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// How long credentials are good for.
#[derive(Debug, Clone, Copy)]
pub enum Good {
    /// For ever.
    Always,
    /// For this long from now.
    For(Duration),
    /// Until this long ago.
    Until(Duration),
}

/// An operator with an account that may use JetStream.
pub struct Operator {
    key: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

impl Operator {
    /// One with new keys.
    pub fn new() -> Self {
        Self {
            key: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            system: KeyPair::new_account(),
        }
    }

    /// What makes a nats-server trust it.
    pub fn config(&self) -> String {
        let operator =
            json!({"type": "operator", "version": 2, "system_account": self.system.public_key()});
        let mut config = String::new();
        let token = signed(
            &self.key,
            &self.key.public_key(),
            "operator",
            Good::Always,
            operator,
        );
        writeln!(config, "operator: {token}").unwrap();
        writeln!(config, "system_account: {}", self.system.public_key()).unwrap();
        writeln!(config, "resolver: MEMORY\nresolver_preload: {{").unwrap();
        for (name, account, storage) in [("CORE", &self.account, -1), ("SYS", &self.system, 0)] {
            let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
                "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage,
                "consumer": storage});
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            let token = signed(&self.key, &account.public_key(), name, Good::Always, claims);
            writeln!(config, "  {}: {token}", account.public_key()).unwrap();
        }
        config + "}\n"
    }

    /// Writes the credentials of a new user of the account to this file.
    pub fn credentials(&self, file: &Path, good: Good) {
        let user = KeyPair::new_user();
        let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let token = signed(&self.account, &user.public_key(), "user", good, claims);
        write(file, &token, &user);
    }
}

/// As `nsc` writes them.
fn write(file: &Path, token: &str, user: &KeyPair) {
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    std::fs::write(file, text).unwrap();
}

/// A token of version 2 (nats-io/jwt).
fn signed(issuer: &KeyPair, subject: &str, name: &str, good: Good, nats: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut claims = json!({
        "jti": format!("{name}-{}", now.as_nanos()), "iat": now.as_secs(), "iss": issuer.public_key(), "sub": subject,
        "name": name, "nats": nats,
    });
    match good {
        Good::Always => {}
        Good::For(time) => claims["exp"] = (now + time).as_secs().into(),
        Good::Until(time) => claims["exp"] = (now - time).as_secs().into(),
    }
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let text = format!("{header}.{claims}");
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
