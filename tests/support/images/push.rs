//! Pushing (OCI distribution specification 1.1, "Pushing manifests" and "Pushing blobs").

use std::sync::OnceLock;
use std::time::Instant;

use reqwest::{Client, StatusCode, header};

use super::{Blob, Image};

/// What the registry has now, by digest.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `host:port/repository:tag`.
    pub by_tag: String,
    /// `host:port/repository@sha256:…`.
    pub by_digest: String,
    /// The digest of what the tag points to.
    pub digest: String,
    /// The digest of the config, the first one of an index.
    pub config: String,
    /// When the last request was begun: the one that puts the manifest under its tag.
    pub tagged_at: Instant,
}

/// A client for plain HTTP on this machine.
pub fn http() -> Client {
    static CLIENT: OnceLock<()> = OnceLock::new();
    // reqwest asks for a TLS provider even where nothing is encrypted; a second installation is refused, which is fine.
    CLIENT.get_or_init(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Client::builder()
        .no_proxy()
        .build()
        .expect("an HTTP client")
}

/// Stores `image` in the registry at `address` (`host:port`).
///
/// # Panics
/// When the registry refuses anything.
pub async fn push(address: &str, repository: &str, tag: &str, image: &Image) -> Pushed {
    let client = http();
    let base = format!("http://{address}/v2/{repository}");
    for blob in &image.blobs {
        push_blob(&client, &base, blob).await;
    }
    for manifest in &image.manifests {
        push_manifest(&client, &base, &manifest.digest, manifest).await;
    }
    let tagged_at = Instant::now();
    push_manifest(&client, &base, tag, &image.target).await;
    Pushed {
        tagged_at,
        by_tag: format!("{address}/{repository}:{tag}"),
        by_digest: format!("{address}/{repository}@{}", image.digest()),
        digest: image.digest().to_owned(),
        config: image.config_digest().to_owned(),
    }
}

async fn push_blob(client: &Client, base: &str, blob: &Blob) {
    let there = client
        .head(format!("{base}/blobs/{}", blob.digest))
        .send()
        .await
        .expect("an answer of the registry");
    if there.status() == StatusCode::OK {
        return;
    }
    let begun = client
        .post(format!("{base}/blobs/uploads/"))
        .send()
        .await
        .expect("an answer of the registry");
    assert_eq!(begun.status(), StatusCode::ACCEPTED, "upload to {base}");
    let location = begun
        .headers()
        .get(header::LOCATION)
        .expect("an upload has a location")
        .to_str()
        .unwrap();
    // The location may be relative, and has a query of its own (here the upload's state).
    let mut url = begun.url().join(location).expect("a location is a URL");
    url.query_pairs_mut().append_pair("digest", &blob.digest);
    let stored = client
        .put(url)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(blob.bytes.clone())
        .send()
        .await
        .expect("an answer of the registry");
    assert_eq!(
        stored.status(),
        StatusCode::CREATED,
        "upload of {} to {base}",
        blob.digest
    );
}

async fn push_manifest(client: &Client, base: &str, reference: &str, manifest: &Blob) {
    let stored = client
        .put(format!("{base}/manifests/{reference}"))
        .header(header::CONTENT_TYPE, &manifest.media_type)
        .body(manifest.bytes.clone())
        .send()
        .await
        .expect("an answer of the registry");
    let status = stored.status();
    let answer = stored.text().await.unwrap_or_default();
    assert_eq!(
        status,
        StatusCode::CREATED,
        "{base}/manifests/{reference}: {answer}"
    );
}
