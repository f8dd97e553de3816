//! One repository and its endpoints: resolve, manifest, blob (OCI distribution spec 1.1, "Pull").

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue,
    RANGE,
};
use reqwest::{Method, Response, StatusCode};

use super::credentials::Keychain;
use super::endpoint::Endpoint;
use super::{MAX_MANIFEST_BYTES, Shared, hosts, http, manifest};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef};

const CONTENT_DIGEST: &str = "docker-content-digest";

/// What a tag means, or a digest turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The digest of the manifest or index.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The bytes of a manifest or index; they hash to the digest they were asked by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawManifest {
    /// What the registry says it is.
    pub media_type: String,
    /// The bytes, exactly as the registry has them.
    pub bytes: Bytes,
}

/// A blob on its way.
pub struct Blob {
    /// The bytes from the offset asked for. Not yet verified.
    pub stream: BoxStream<'static, Result<Bytes, Failure>>,
    /// Which endpoint sends it, for [`Repository::blob`] to go on from.
    pub endpoint: usize,
    /// Whether that is a mirror.
    pub from_mirror: bool,
    /// The offset that the stream goes up to: the end of the part, or of the blob where the endpoint
    /// does not serve parts.
    pub end: u64,
}

/// The part of a blob from one offset to before another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The first byte.
    pub start: u64,
    /// The byte after the last; `None` goes on to the end of the blob.
    pub end: Option<u64>,
}

impl Part {
    /// All from an offset on.
    #[must_use]
    pub const fn from(start: u64) -> Self {
        Self { start, end: None }
    }

    /// The header's value (RFC 9110, section 14.1.2); `None` for a whole blob.
    fn header(self) -> Option<HeaderValue> {
        let value = match self.end {
            None if self.start == 0 => return None,
            None => format!("bytes={}-", self.start),
            Some(end) => format!("bytes={}-{}", self.start, end.saturating_sub(1)),
        };
        HeaderValue::try_from(value).ok()
    }
}

/// An image's repository, and where it is to be had.
pub struct Repository {
    registry: String,
    endpoints: Vec<Endpoint>,
    /// What is wrong with the node's credentials, to be said when they are refused.
    credential_problems: Vec<String>,
}

/// What the endpoints answered so far.
#[derive(Default)]
struct Tried {
    failures: Vec<Failure>,
}

impl Tried {
    fn failed(&mut self, endpoint: &Endpoint, failure: Failure) {
        tracing::debug!(endpoint = endpoint.host.authority, %failure, "endpoint failed");
        self.failures.push(failure);
    }
}

pub(super) async fn open(
    shared: &Arc<Shared>,
    image: &ImageRef,
    pull_secrets: &[String],
) -> Result<Repository, Failure> {
    let config = &shared.config;
    let registry = image.registry();
    let (hosts, problem) = hosts::load(&config.hosts_dirs, registry);
    if let Some(error) = problem {
        tracing::warn!(%error, "going on without this file, as containerd does");
    }
    let provided = shared.plugins.provide(&image.name()).await;
    let keychain = Keychain::load(
        config.secrets_dir.as_deref(),
        pull_secrets,
        provided,
        config.docker_config.as_deref(),
    );
    let mut endpoints = Vec::with_capacity(hosts.len());
    for host in hosts.into_iter().filter(|host| host.can_pull) {
        endpoints.push(Endpoint::new(shared, host, image, &keychain).await?);
    }
    Ok(Repository {
        registry: registry.to_owned(),
        endpoints,
        credential_problems: keychain.missing,
    })
}

impl Repository {
    /// Asks what the reference means now: its digest, or else its tag.
    ///
    /// # Errors
    /// As the registry answers: not found, refused, limited, unavailable.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Resolved, Failure> {
        let by_digest = image.digest().map(Digest::as_str);
        let name = by_digest.or(image.tag()).unwrap_or("latest").to_owned();
        let mut tried = Tried::default();
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            if by_digest.is_none() && !endpoint.host.can_resolve {
                continue;
            }
            let is_last = at + 1 == self.endpoints.len();
            match self.resolve_at(endpoint, &name, is_last).await {
                Ok(resolved) => return Ok(resolved),
                Err(failure) => tried.failed(endpoint, failure),
            }
        }
        Err(self.exhausted(tried))
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        name: &str,
        is_last: bool,
    ) -> Result<Resolved, Failure> {
        let path = format!("manifests/{name}");
        let response = endpoint
            .request(Method::HEAD, &path, accept_manifests())
            .await?;
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let digest = text(CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
        let size = text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse::<u64>().ok());
        if response.status().is_success()
            && let (Some(digest), Some(size)) = (digest, size)
        {
            if name.contains(':') && digest.as_str() != name {
                return Err(Failure::new(
                    FailureKind::DigestMismatch,
                    format!(
                        "{} answers with {digest} where {name} was asked for",
                        endpoint.host.authority
                    ),
                ));
            }
            let media_type = media_type(headers);
            return Ok(Resolved {
                digest,
                media_type,
                size,
            });
        }
        let status = response.status();
        let is_elsewhere = status == StatusCode::NOT_FOUND && !is_last;
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() || is_elsewhere {
            let what = endpoint.what(&Method::HEAD, &path);
            return Err(endpoint.refusal(response, &what).await);
        }
        // Some registries do not know the method, or leave out the digest; and only the refusal of a
        // GET says why.
        let (media_type, bytes) = self.fetch_manifest(endpoint, name).await?;
        Ok(Resolved {
            digest: Digest::of(&bytes),
            media_type,
            size: bytes.len() as u64,
        })
    }

    /// Fetches a manifest or index.
    ///
    /// # Errors
    /// As the registry answers; `DigestMismatch` when no endpoint has bytes that hash to the digest.
    pub async fn manifest(&self, digest: &Digest) -> Result<RawManifest, Failure> {
        let mut tried = Tried::default();
        for endpoint in &self.endpoints {
            match self.fetch_manifest(endpoint, digest.as_str()).await {
                Ok((media_type, bytes)) if Digest::of(&bytes) == *digest => {
                    return Ok(RawManifest { media_type, bytes });
                }
                Ok((_, bytes)) => tried.failed(
                    endpoint,
                    Failure::new(
                        FailureKind::DigestMismatch,
                        format!(
                            "{} sent a manifest that hashes to {} where {digest} was asked for",
                            endpoint.host.authority,
                            Digest::of(&bytes)
                        ),
                    ),
                ),
                Err(failure) => tried.failed(endpoint, failure),
            }
        }
        Err(self.exhausted(tried))
    }

    async fn fetch_manifest(
        &self,
        endpoint: &Endpoint,
        name: &str,
    ) -> Result<(String, Bytes), Failure> {
        let path = format!("manifests/{name}");
        let response = endpoint
            .request(Method::GET, &path, accept_manifests())
            .await?;
        let what = endpoint.what(&Method::GET, &path);
        if !response.status().is_success() {
            return Err(endpoint.refusal(response, &what).await);
        }
        let media_type = media_type(response.headers());
        let bytes = http::read_bounded(response, MAX_MANIFEST_BYTES, &what).await?;
        Ok((media_type, bytes.into()))
    }

    /// Opens a part of a blob of `size` bytes, trying the endpoints from `first_endpoint` on.
    ///
    /// # Errors
    /// As the registry answers; `DigestMismatch` when the blob there has another size.
    pub async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        part: Part,
        first_endpoint: usize,
    ) -> Result<Blob, Failure> {
        let mut tried = Tried::default();
        for (at, endpoint) in self.endpoints.iter().enumerate().skip(first_endpoint) {
            match self.blob_at(endpoint, digest, size, part).await {
                Ok((stream, end)) => {
                    return Ok(Blob {
                        stream,
                        endpoint: at,
                        from_mirror: endpoint.host.is_mirror,
                        end,
                    });
                }
                Err(failure) => tried.failed(endpoint, failure),
            }
        }
        Err(self.exhausted(tried))
    }

    /// How many endpoints there are to try.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    async fn blob_at(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        size: u64,
        part: Part,
    ) -> Result<(BoxStream<'static, Result<Bytes, Failure>>, u64), Failure> {
        let path = format!("blobs/{digest}");
        let what = endpoint.what(&Method::GET, &path);
        let mut range = part.header();
        let (response, skip, end) = loop {
            let mut headers = HeaderMap::new();
            // A proxy that compresses on the way would make the bytes others than the digest's.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(range) = &range {
                headers.insert(RANGE, range.clone());
            }
            let response = endpoint.request(Method::GET, &path, headers).await?;
            match begins(&response, size, part, &what)? {
                Begins::At { skip, end } => break (response, skip, end),
                // A registry that is wrong about ranges may well have the blob: it is asked for all of it, once.
                Begins::Elsewhere(_) if range.take().is_some() => {}
                Begins::Elsewhere(failure) => return Err(failure),
                Begins::Nowhere => return Err(endpoint.refusal(response, &what).await),
            }
        };
        let stream = http::body(response, what);
        Ok((skipping(stream, skip).boxed(), end))
    }

    fn exhausted(&self, mut tried: Tried) -> Failure {
        // The last endpoint is the registry itself: what it says is what holds.
        let Some(mut failure) = tried.failures.pop() else {
            return Failure::new(
                FailureKind::RegistryUnavailable,
                format!(
                    "hosts.toml leaves no endpoint for {} that may be asked",
                    self.registry
                ),
            );
        };
        let join = |failures: &[Failure]| {
            let messages: Vec<_> = failures
                .iter()
                .map(|failure| failure.message.as_str())
                .collect();
            messages.join("; ")
        };
        if !tried.failures.is_empty() {
            failure.message = format!(
                "{} (before that: {})",
                failure.message,
                join(&tried.failures)
            );
        }
        if failure.kind == FailureKind::Unauthorized && !self.credential_problems.is_empty() {
            failure.message = format!(
                "{} (credentials: {})",
                failure.message,
                self.credential_problems.join("; ")
            );
        }
        failure
    }
}

fn accept_manifests() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
    headers
}

fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn content_length(response: &Response) -> Option<u64> {
    let value = response.headers().get(CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// First byte and total of `bytes first-last/total` (RFC 9110, section 14.4).
#[must_use]
pub fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let parse = || {
        let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-')?.0.parse().ok()?;
        Some((first, total.parse().ok()))
    };
    parse().map_or((None, None), |(first, total)| (Some(first), total))
}

/// Where the body of an answer begins.
enum Begins {
    /// So many bytes before the part, and ends where the part, or the blob, does.
    At { skip: u64, end: u64 },
    /// Anywhere but where it was asked to.
    Elsewhere(Failure),
    /// It is a refusal.
    Nowhere,
}

/// Reads the head of the answer to a request for a part of a blob of `size` bytes.
fn begins(response: &Response, size: u64, part: Part, what: &str) -> Result<Begins, Failure> {
    let (first, total) = content_range(response.headers());
    match response.status() {
        StatusCode::OK => {
            same_size(content_length(response), size, what)?;
            Ok(Begins::At {
                skip: part.start,
                end: size,
            })
        }
        StatusCode::PARTIAL_CONTENT => {
            same_size(total, size, what)?;
            if first == Some(part.start) {
                let end = part.end.unwrap_or(size);
                return Ok(Begins::At { skip: 0, end });
            }
            Ok(Begins::Elsewhere(Failure::new(
                FailureKind::RegistryUnavailable,
                format!("{what}: answered with another range than the one asked for"),
            )))
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let start = part.start;
            Ok(Begins::Elsewhere(Failure::new(
                FailureKind::DigestMismatch,
                format!("{what}: has not even the {start} bytes that are here, of {size}"),
            )))
        }
        _ => Ok(Begins::Nowhere),
    }
}

fn same_size(actual: Option<u64>, expected: u64, what: &str) -> Result<(), Failure> {
    match actual {
        Some(actual) if actual != expected => Err(Failure::new(
            FailureKind::DigestMismatch,
            format!("{what}: has {actual} bytes where the manifest says {expected}"),
        )),
        _ => Ok(()),
    }
}

/// Leaves out the first `skip` bytes: what a registry without ranges sends again.
fn skipping(
    stream: impl futures::Stream<Item = Result<Bytes, Failure>>,
    mut skip: u64,
) -> impl futures::Stream<Item = Result<Bytes, Failure>> {
    stream.filter_map(move |chunk| {
        let kept = match chunk {
            Err(failure) => Some(Err(failure)),
            Ok(mut chunk) => {
                let dropped = skip.min(chunk.len() as u64);
                skip -= dropped;
                // `dropped` is at most the chunk's length, which is a usize.
                let rest = chunk.split_off(usize::try_from(dropped).unwrap_or(chunk.len()));
                (!rest.is_empty()).then_some(Ok(rest))
            }
        };
        futures::future::ready(kept)
    })
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
