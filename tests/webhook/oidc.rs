//! Tokens as Google's Pub/Sub sends them, signed by a key of the test's.

use std::path::Path;
use std::process::Command;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prewarm::webhook::auth::{self, Proof, Shown};
use prewarm::webhook::oidc::{Expected, Keys};
use prewarm::webhook::settings;
use prewarm::webhook::source::Source;
use serde_json::{Value, json};

use super::events::{payload, tagged};
use super::receiver::{Receiver, send};

const NOW: u64 = 1_800_000_000;

fn openssl(args: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(args)
        .output()
        .expect("openssl, for an RSA key");
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
    output.stdout
}

struct Signer {
    folder: tempfile::TempDir,
}

impl Signer {
    fn new() -> Self {
        let signer = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        openssl(&[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
            &signer.file("key"),
        ]);
        signer
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The public half as a JSON Web Key Set; the exponent is OpenSSL's usual 65537.
    fn keys(&self) -> Value {
        let text = openssl(&["rsa", "-in", &self.file("key"), "-noout", "-modulus"]);
        let text = String::from_utf8(text).unwrap();
        let digits = text.trim().strip_prefix("Modulus=").unwrap();
        let modulus: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        json!({"keys": [{"kty": "EC", "kid": "other"},
            {"kty": "RSA", "alg": "RS256", "kid": "k1", "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"}]})
    }

    fn token(&self, head: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(head), part(claims));
        std::fs::write(self.file("signed"), &signed).unwrap();
        let signature = openssl(&[
            "dgst",
            "-sha256",
            "-sign",
            &self.file("key"),
            &self.file("signed"),
        ]);
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn head() -> Value {
    json!({"alg": "RS256", "kid": "k1", "typ": "JWT"})
}

fn claims() -> Value {
    json!({"iss": "https://accounts.google.com", "aud": "https://hook.example.com", "exp": NOW + 3_600,
        "email": "push@p.iam.gserviceaccount.com", "email_verified": true})
}

#[test]
fn only_a_whole_and_timely_token_of_the_sender_is_believed() {
    let signer = Signer::new();
    let keys = Keys::parse(signer.keys().to_string().as_bytes()).unwrap();
    let proof = Proof::Oidc(Expected {
        issuers: vec!["https://accounts.google.com".to_owned()],
        audience: "https://hook.example.com".to_owned(),
        email: Some("push@p.iam.gserviceaccount.com".to_owned()),
    });
    let check = |token: &str, now: u64| {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let shown = Shown {
            path: None,
            headers: &headers,
            body: b"{}",
            now,
        };
        auth::check(&proof, shown, &keys)
    };
    let good = signer.token(&head(), &claims());
    assert_eq!(check(&good, NOW), Ok(()));
    assert_eq!(check(&good, NOW + 3_700), Err("the token is not valid now"));
    for (field, value, why) in [
        (
            "iss",
            json!("https://evil.example.org"),
            "the token is of another issuer",
        ),
        (
            "aud",
            json!("https://other.example.com"),
            "the token is for another audience",
        ),
        (
            "email",
            json!("other@p.iam.gserviceaccount.com"),
            "the token is of another sender",
        ),
        (
            "email_verified",
            json!(false),
            "the token is of another sender",
        ),
        ("nbf", json!(NOW + 600), "the token is not valid now"),
    ] {
        let mut claims = claims();
        claims[field] = value;
        assert_eq!(
            check(&signer.token(&head(), &claims), NOW),
            Err(why),
            "{field}"
        );
    }
    for (name, value) in [("alg", "none"), ("alg", "HS256"), ("kid", "k2")] {
        let mut head = head();
        head[name] = json!(value);
        assert!(
            check(&signer.token(&head, &claims()), NOW).is_err(),
            "{name} {value}"
        );
    }
    let other = Signer::new().token(&head(), &claims());
    assert_eq!(check(&other, NOW), Err("the token's signature is wrong"));
    let (signed, _) = good.rsplit_once('.').unwrap();
    for bad in [signed, "", "a.b.c", &format!("{signed}.")] {
        assert!(check(bad, NOW).is_err(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_read_from_their_file_when_a_token_needs_them() {
    let signer = Signer::new();
    let keys = signer.file("jwks");
    std::fs::write(&keys, signer.keys().to_string()).unwrap();
    let config = format!(
        "sources: {{gar: {{audience: 'https://hook.example.com', email: push@p.iam.gserviceaccount.com, jwks-file: '{keys}', registries: ['*.pkg.dev']}}}}"
    );
    std::fs::write(signer.file("config"), config).unwrap();
    let sources = settings::read(Path::new(&signer.file("config"))).unwrap();
    let receiver = Receiver::start_with(|settings| settings.sources = sources, "").await;
    let url = format!("{}/webhooks/gar", receiver.base);
    let body = payload(Source::Gar, &tagged("1.4", 1)).to_string();
    let mut late = claims();
    late["exp"] = json!(4_000_000_000_u64);
    let bearer = |token: String| vec![("authorization", format!("Bearer {token}"))];
    let good = bearer(signer.token(&head(), &late));
    let (status, answer) = send(&url, body.as_bytes(), &good).await;
    assert_eq!(status, 202, "{answer}");
    late["exp"] = json!(1);
    let expired = bearer(signer.token(&head(), &late));
    assert_eq!(send(&url, body.as_bytes(), &expired).await.0, 401);
    assert_eq!(send(&url, body.as_bytes(), &[]).await.0, 401);
    assert_eq!(receiver.pushes().await.len(), 1);
}
