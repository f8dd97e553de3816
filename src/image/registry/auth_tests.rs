use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::test_server::{Asked, Server, bare_registry, manifest, reply, status};
use super::super::{Registry, RegistryConfig};
use super::*;

const MANIFEST_PATH: &str = "/v2/app/manifests/1";
const TOKEN_PATH: &str = "/token";

fn challenge(asked: &Asked) -> String {
    let host = asked.header("host").unwrap();
    format!(r#"Bearer realm="http://{host}{TOKEN_PATH}",service="s",scope="repository:app:pull""#)
}

fn unauthorized(asked: &Asked) -> axum::http::Response<axum::body::Body> {
    reply(401, &[("www-authenticate", &challenge(asked))], "")
}

fn token(value: &str) -> axum::http::Response<axum::body::Body> {
    reply(
        200,
        &[],
        format!(r#"{{"token":"{value}","expires_in":300}}"#),
    )
}

fn basic_of(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:sEcReT")))
}

/// A node whose secrets are these: name, and the entry for the server.
fn with_secrets(
    directory: &Path,
    server: &Server,
    secrets: &[(&str, String)],
) -> (Registry, Vec<String>) {
    for (name, entry) in secrets {
        let config = format!(r#"{{"auths":{{"{}":{entry}}}}}"#, server.addr);
        std::fs::write(directory.join(name), config).unwrap();
    }
    let registry = Registry::new(RegistryConfig {
        secrets_dir: Some(directory.to_owned()),
        ..RegistryConfig::default()
    });
    let names = secrets.iter().map(|(name, _)| (*name).to_owned()).collect();
    (registry, names)
}

fn password_entry(user: &str) -> String {
    format!(r#"{{"username":"{user}","password":"sEcReT"}}"#)
}

async fn resolve(registry: &Registry, server: &Server, secrets: &[String]) -> Result<(), Failure> {
    let image = server.image();
    let repository = registry.repository(&image, secrets).await?;
    repository.resolve(&image).await.map(drop)
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_used_again() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => token("t1"),
        Some("Bearer t1") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let registry = bare_registry();
    for _ in 0..3 {
        resolve(&registry, &server, &[]).await.unwrap();
    }
    assert_eq!(server.count("GET", TOKEN_PATH), 1);
    // The first of all requests is refused; later pulls know what is wanted.
    assert_eq!(server.count("HEAD", MANIFEST_PATH), 4);
    let asked = server.asked();
    let token_request = asked
        .iter()
        .find(|asked| asked.is("GET", TOKEN_PATH))
        .unwrap();
    assert_eq!(
        token_request.target,
        "/token?service=s&scope=repository%3Aapp%3Apull"
    );
    assert_eq!(token_request.header("authorization"), None);
}

#[tokio::test]
async fn requests_at_once_share_one_token() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => token("t1"),
        Some("Bearer t1") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let registry = bare_registry();
    let image = server.image();
    let repository = registry.repository(&image, &[]).await.unwrap();
    let requests = (0..8).map(|_| repository.resolve(&image));
    for outcome in futures::future::join_all(requests).await {
        outcome.unwrap();
    }
    assert_eq!(server.count("GET", TOKEN_PATH), 1);
}

#[tokio::test]
async fn a_token_that_is_no_longer_good_is_replaced_once() {
    let issued = Arc::new(AtomicUsize::new(0));
    let counter = issued.clone();
    let revoked = Arc::new(AtomicBool::new(false));
    let is_revoked = revoked.clone();
    let server = Server::start(move |asked| {
        if asked.is("GET", TOKEN_PATH) {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            return token(&format!("t{number}"));
        }
        match asked.header("authorization") {
            Some("Bearer t0") if !is_revoked.load(Ordering::Relaxed) => manifest(),
            Some("Bearer t1") => manifest(),
            _ => unauthorized(asked),
        }
    })
    .await;
    let registry = bare_registry();
    resolve(&registry, &server, &[]).await.unwrap();
    revoked.store(true, Ordering::Relaxed);
    resolve(&registry, &server, &[]).await.unwrap();
    assert_eq!(issued.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn credentials_are_tried_in_turn() {
    let server = Server::start(|asked| {
        let proof = asked.header("authorization");
        match proof {
            Some(proof) if asked.is("GET", TOKEN_PATH) && proof == basic_of("unknown") => {
                status(401)
            }
            Some(proof) if asked.is("GET", TOKEN_PATH) && proof == basic_of("other") => {
                token("no-pull")
            }
            Some(proof) if asked.is("GET", TOKEN_PATH) && proof == basic_of("good") => {
                token("pull")
            }
            Some("Bearer pull") => manifest(),
            Some("Bearer no-pull") => status(403),
            _ => unauthorized(asked),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = ["unknown", "other", "good"].map(|user| (user, password_entry(user)));
    let (registry, names) = with_secrets(directory.path(), &server, &secrets);
    resolve(&registry, &server, &names).await.unwrap();
}

#[tokio::test]
async fn a_stale_credential_does_not_hide_a_public_image() {
    let server = Server::start(|asked| match asked.header("authorization") {
        None if asked.is("GET", TOKEN_PATH) => token("anyone"),
        Some(_) if asked.is("GET", TOKEN_PATH) => status(401),
        Some("Bearer anyone") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let (registry, names) =
        with_secrets(directory.path(), &server, &[("s", password_entry("stale"))]);
    resolve(&registry, &server, &names).await.unwrap();
}

#[tokio::test]
async fn a_password_is_sent_where_the_registry_wants_it() {
    let server = Server::start(|asked| match asked.header("authorization") {
        Some(proof) if proof == basic_of("AWS") => manifest(),
        _ => reply(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let (registry, names) =
        with_secrets(directory.path(), &server, &[("s", password_entry("AWS"))]);
    resolve(&registry, &server, &names).await.unwrap();
    assert_eq!(
        resolve(&registry, &server, &[]).await.unwrap_err().kind,
        FailureKind::Unauthorized
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("POST", TOKEN_PATH) => {
            let wanted = "grant_type=refresh_token&refresh_token=r%2Bt&service=s";
            assert!(asked.body.starts_with(wanted), "{}", asked.body);
            reply(200, &[], r#"{"access_token":"t"}"#)
        }
        Some("Bearer t") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let entry = r#"{"identitytoken":"r+t"}"#.to_owned();
    let (registry, names) = with_secrets(directory.path(), &server, &[("s", entry)]);
    resolve(&registry, &server, &names).await.unwrap();
}

#[tokio::test]
async fn a_refusal_tells_what_was_missing_and_no_secret() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => token("weak-ToKeN"),
        Some(_) => {
            let body = r#"{"errors":[{"code":"DENIED","message":"no access"}]}"#;
            reply(403, &[], body)
        }
        None => unauthorized(asked),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let (registry, mut names) =
        with_secrets(directory.path(), &server, &[("s", password_entry("u"))]);
    names.push("forgotten".to_owned());
    let failure = resolve(&registry, &server, &names).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unauthorized);
    for words in ["403", "forgotten is not in", "pullSecrets"] {
        assert!(failure.message.contains(words), "{failure}");
    }
    for secret in ["sEcReT", "ToKeN"] {
        assert!(!failure.message.contains(secret), "{failure}");
    }
    // Two credentials and nobody, each with a fresh token: no more.
    assert!(server.count("GET", TOKEN_PATH) <= 2);
}

#[tokio::test]
async fn a_token_server_that_is_down_or_limits_is_not_a_refusal() {
    for (code, kind) in [
        (503, FailureKind::RegistryUnavailable),
        (429, FailureKind::RateLimited),
    ] {
        let server = Server::start(move |asked| {
            if asked.is("GET", TOKEN_PATH) {
                reply(code, &[("retry-after", "7")], "")
            } else {
                unauthorized(asked)
            }
        })
        .await;
        let failure = resolve(&bare_registry(), &server, &[]).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn answers_of_a_token_server_that_are_none_are_said_to_be_so() {
    for body in [
        "",
        "{}",
        r#"{"token":""}"#,
        "<html>",
        r#"{"token":"a\u0000b"}"#,
    ] {
        let server = Server::start(move |asked| {
            if asked.is("GET", TOKEN_PATH) {
                reply(200, &[], body)
            } else {
                unauthorized(asked)
            }
        })
        .await;
        let failure = resolve(&bare_registry(), &server, &[]).await.unwrap_err();
        assert!(failure.message.contains("token"), "{body:?}: {failure}");
    }
}

#[tokio::test]
async fn a_challenge_that_cannot_be_answered_is_a_refusal() {
    for challenge in [
        "",
        "Negotiate",
        "Bearer realm=\"ftp://x/\"",
        "Bearer realm=\"not an address\"",
    ] {
        let server =
            Server::start(move |_| reply(401, &[("www-authenticate", challenge)], "")).await;
        let failure = resolve(&bare_registry(), &server, &[]).await.unwrap_err();
        assert_eq!(
            failure.kind,
            FailureKind::Unauthorized,
            "{challenge:?}: {failure}"
        );
    }
}
