//! What registries answer, and how nodes are set up to ask them.

use std::path::Path;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use prewarm::domain::image::Platform;
use prewarm::image::registry::challenge::{self, Challenge, MAX_VALUE_BYTES};
use prewarm::image::registry::credentials::DockerConfig;
use prewarm::image::registry::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Document, ImageConfig, OCI_INDEX, OCI_MANIFEST,
};
use prewarm::image::registry::provider::{ImageKey, Response};
use prewarm::image::registry::{
    content_range, failure, hosts as hosts_toml, token as token_server,
};

use super::choose;

/// Indexes, manifests and configurations.
pub fn document(data: &[u8]) {
    let types = [
        OCI_INDEX,
        OCI_MANIFEST,
        DOCKER_LIST,
        DOCKER_MANIFEST,
        "",
        "text/plain",
    ];
    let Some((number, rest)) = choose(data, types.len()) else {
        return;
    };
    let (body, config) = match rest.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&rest[..end], &rest[end + 2..]),
        None => (rest, &[][..]),
    };
    let platform = Platform::host();
    match Document::with_media_type(types[number], body) {
        Ok((Document::Index(index), _)) => {
            if let Ok(chosen) = index.choose(&platform) {
                assert!(index.manifests.contains(chosen));
            }
        }
        Ok((Document::Manifest(manifest), _)) => {
            if let Ok(config) = ImageConfig::parse(config, &manifest, &platform) {
                assert_eq!(config.rootfs.diff_ids.len(), manifest.layers.len());
                assert_eq!(config.chain_ids().len(), manifest.layers.len());
            }
            let _ = manifest.is_image();
        }
        Err(failure) => assert!(!failure.message.is_empty()),
    }
}

/// Headers of answers: a value for `WWW-Authenticate`, `Retry-After`, `Date` and `Content-Range` each on a line.
pub fn headers(data: &[u8]) {
    let names = ["www-authenticate", "retry-after", "date", "content-range"];
    let mut headers = HeaderMap::new();
    let mut lines = data.split(|byte| *byte == b'\n');
    for name in names {
        let value = HeaderValue::from_bytes(lines.next().unwrap_or_default());
        if let Ok(value) = value.as_ref() {
            headers.append(HeaderName::from_static(name), value.clone());
        }
    }
    if !headers.contains_key("date") {
        headers.insert(
            "date",
            HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"),
        );
    }
    if let Some(Challenge::Bearer {
        realm,
        service,
        scope,
    }) = challenge::choose(&headers)
    {
        let bounded = |value: &str| !value.is_empty() && value.len() <= MAX_VALUE_BYTES;
        assert!(bounded(&realm));
        assert!(service.as_deref().is_none_or(bounded) && scope.as_deref().is_none_or(bounded));
    }
    if let Some(delay) = failure::retry_after(&headers) {
        assert!(delay <= Duration::from_secs(60 * 60), "{delay:?}");
    }
    let _ = content_range(&headers);
}

/// Answers of token servers.
pub fn token(data: &[u8]) {
    if let Some(token) = token_server::read(data) {
        assert!(!token.value.is_empty());
        assert!(token.lifetime <= token_server::MAX_LIFETIME);
    }
}

/// `hosts.toml`: there is always a host to ask, and what is wrong is said.
pub fn hosts(data: &[u8]) {
    thread_local! {
        static ROOT: tempfile::TempDir = {
            let root = tempfile::tempdir().expect("a temporary directory");
            std::fs::create_dir(root.path().join("_default")).expect("its directory");
            root
        };
    }
    ROOT.with(|root| {
        std::fs::write(root.path().join("_default/hosts.toml"), data).expect("a file");
        let roots = [root.path().to_owned()];
        let (hosts, error) = hosts_toml::load(&roots, "registry.example.com:5000");
        assert!(!hosts.is_empty());
        if let Some(error) = error {
            assert!(!error.problems.is_empty());
        }
    });
}

/// Docker's configuration: a credential goes only where its key says.
pub fn docker_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match DockerConfig::parse(text, Path::new("config.json")) {
        Ok(config) => {
            let _ = config.matching(&["registry.example.com:5000", "docker.io"], "team/app");
            let unnamed = config.matching(&["unnamed.invalid"], "team/app");
            let is_named = text.contains("unnamed.invalid") || text.contains(['*', '?', '[', '\\']);
            assert!(unnamed.is_empty() || is_named);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Answers of kubelet's credential providers.
pub fn provider(data: &[u8]) {
    let Ok(response) = Response::parse(data) else {
        return;
    };
    let _ = response.lifetime();
    for (key, _) in response.entries() {
        let _ = key.is_for("registry.example.com:5000", "team/app");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = ImageKey::parse(text);
    }
}
