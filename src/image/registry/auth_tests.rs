use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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

/// A registry with one password, whose tokens are good for so many requests and whose token server says so many seconds.
async fn with_short_tokens(uses: usize, seconds: u64) -> Server {
    let issued = Arc::new(AtomicUsize::new(0));
    let left = Arc::new(AtomicUsize::new(0));
    Server::start(move |asked| {
        if asked.is("GET", TOKEN_PATH) {
            if asked.header("authorization") != Some(&basic_of("robot")) {
                return status(401);
            }
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            left.store(uses, Ordering::Relaxed);
            let body = format!(r#"{{"token":"t{number}","expires_in":{seconds}}}"#);
            return reply(200, &[], body);
        }
        let current = format!("Bearer t{}", issued.load(Ordering::Relaxed));
        let is_current = asked.header("authorization") == Some(&current);
        let take = |left: usize| left.checked_sub(1);
        match is_current
            && left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
        {
            true => manifest(),
            false => unauthorized(asked),
        }
    })
    .await
}

#[tokio::test]
async fn a_token_that_expires_in_mid_pull_is_replaced_with_the_same_password() {
    let server = with_short_tokens(2, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = [("s", password_entry("robot"))];
    let (registry, names) = with_secrets(directory.path(), &server, &secrets);
    let image = server.image();
    let repository = registry.repository(&image, &names).await.unwrap();
    for _ in 0..7 {
        repository.resolve(&image).await.unwrap();
    }
    assert_eq!(server.count("GET", TOKEN_PATH), 4);
}

#[tokio::test]
async fn requests_at_once_outlive_a_token_with_one_request_for_the_next() {
    let server = with_short_tokens(8, 3600).await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = [("s", password_entry("robot"))];
    let (registry, names) = with_secrets(directory.path(), &server, &secrets);
    let image = server.image();
    let repository = registry.repository(&image, &names).await.unwrap();
    for _ in 0..2 {
        let requests = (0..8).map(|_| repository.resolve(&image));
        for outcome in futures::future::join_all(requests).await {
            outcome.unwrap();
        }
    }
    assert_eq!(server.count("GET", TOKEN_PATH), 2);
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires() {
    // One second is one that is over at once: only a part of the time that a token is good for is used.
    let server = with_short_tokens(100, 1).await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = [("s", password_entry("robot"))];
    let (registry, names) = with_secrets(directory.path(), &server, &secrets);
    let image = server.image();
    let repository = registry.repository(&image, &names).await.unwrap();
    repository.resolve(&image).await.unwrap();
    // The clock of tokens stands still where it is told to, and goes on by itself while nothing else is to be done.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    repository.resolve(&image).await.unwrap();
    assert_eq!(server.count("GET", TOKEN_PATH), 2);
    let heads = server.count("HEAD", MANIFEST_PATH);
    assert_eq!(heads, 3, "a token was used until it was refused");
}

#[tokio::test]
async fn pulls_at_once_share_one_token_and_one_failure() {
    for (code, tokens) in [(200, 1), (503, 1)] {
        let server = Server::start(move |asked| match asked.header("authorization") {
            _ if asked.is("GET", TOKEN_PATH) && code == 200 => token("t1"),
            _ if asked.is("GET", TOKEN_PATH) => status(code),
            Some("Bearer t1") => manifest(),
            _ => unauthorized(asked),
        })
        .await;
        let registry = bare_registry();
        let pulls = (0..8).map(|_| resolve(&registry, &server, &[]));
        for outcome in futures::future::join_all(pulls).await {
            assert_eq!(outcome.is_ok(), code == 200, "{outcome:?}");
        }
        // Those who were not refused yet when it failed ask once more.
        let asked = server.count("GET", TOKEN_PATH);
        assert!(
            (tokens..=tokens * 3).contains(&asked),
            "{code}: asked {asked} times"
        );
        if code == 200 {
            assert_eq!(asked, tokens);
        }
    }
}

#[tokio::test]
async fn one_blob_that_is_forbidden_does_not_ask_for_tokens_without_end() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => token("t"),
        Some(_) if asked.target.contains("/blobs/") => status(403),
        Some(_) => manifest(),
        None => unauthorized(asked),
    })
    .await;
    let registry = bare_registry();
    let image = server.image();
    let repository = registry.repository(&image, &[]).await.unwrap();
    repository.resolve(&image).await.unwrap();
    let digest = crate::domain::image::Digest::of(b"x");
    let part = super::super::Part::from(0);
    let failure = repository.blob(&digest, 1, part, 0).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::Unauthorized, "{failure}");
    assert!(server.count("GET", TOKEN_PATH) <= 3);
}

#[tokio::test]
async fn the_headers_of_hosts_toml_go_to_the_token_server_and_a_password_wins() {
    let server = Server::start(|asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => token("t1"),
        Some("Bearer t1") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join(&server.addr);
    std::fs::create_dir(&hosts).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[header]\nX-Key = \"k\"\nAuthorization = \"Basic aGVhZGVy\"\n",
        server.addr
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let secret = format!(
        r#"{{"auths":{{"{}":{}}}}}"#,
        server.addr,
        password_entry("u")
    );
    std::fs::write(directory.path().join("s"), secret).unwrap();
    let registry = Registry::new(RegistryConfig {
        hosts_dirs: vec![directory.path().to_owned()],
        secrets_dir: Some(directory.path().to_owned()),
        ..RegistryConfig::default()
    });
    for (secrets, proof) in [
        (vec![], "Basic aGVhZGVy".to_owned()),
        (vec!["s".to_owned()], basic_of("u")),
    ] {
        resolve(&registry, &server, &secrets).await.unwrap();
        let asked = server.asked();
        let mut tokens = asked.iter().filter(|asked| asked.is("GET", TOKEN_PATH));
        let last = tokens.next_back().unwrap();
        assert_eq!(last.header("x-key"), Some("k"));
        assert_eq!(last.header("authorization"), Some(proof.as_str()));
    }
}

#[tokio::test]
async fn a_token_server_may_redirect_and_gets_no_password_elsewhere() {
    let elsewhere = Server::start(|_| token("t1")).await;
    let location = format!("http://{}/t", elsewhere.addr);
    let server = Server::start(move |asked| match asked.header("authorization") {
        _ if asked.is("GET", TOKEN_PATH) => reply(302, &[("location", &location)], ""),
        Some("Bearer t1") => manifest(),
        _ => unauthorized(asked),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = [("s", password_entry("robot"))];
    let (registry, names) = with_secrets(directory.path(), &server, &secrets);
    resolve(&registry, &server, &names).await.unwrap();
    assert_eq!(elsewhere.asked()[0].header("authorization"), None);
}
