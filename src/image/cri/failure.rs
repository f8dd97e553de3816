//! What a refused `PullImage` means. Runtimes say little by the status code (containerd: `NotFound` for a 404, else
//! `Unknown`), so that the words have to be read.

use std::path::Path;

use containerd_client::tonic::{Code, Status};

use crate::domain::failure::{Failure, FailureKind};

/// Most characters of the runtime's own words that go into a message.
const MAX_QUOTED_CHARS: usize = 600;

/// Words in lower case and what they mean; the first that is found counts. From containerd 1.6 to 2.1
/// (`core/remotes/docker`, `core/content/local`, `archive`, `errdefs`) and CRI-O 1.24 to 1.30 (`containers/image`).
const WORDS: [(&str, FailureKind); 56] = [
    ("no space left on device", FailureKind::InsufficientDisk),
    ("disk quota exceeded", FailureKind::InsufficientDisk),
    ("no match for platform", FailureKind::NoMatchingPlatform),
    ("no matching manifest for", FailureKind::NoMatchingPlatform),
    (
        "no image found in manifest list",
        FailureKind::NoMatchingPlatform,
    ),
    (
        "no image found in image index",
        FailureKind::NoMatchingPlatform,
    ),
    ("too many requests", FailureKind::RateLimited),
    ("toomanyrequests", FailureKind::RateLimited),
    ("pull rate limit", FailureKind::RateLimited),
    ("statuscode: 429", FailureKind::RateLimited),
    ("401 unauthorized", FailureKind::Unauthorized),
    ("403 forbidden", FailureKind::Unauthorized),
    ("401 (unauthorized)", FailureKind::Unauthorized),
    ("403 (forbidden)", FailureKind::Unauthorized),
    ("statuscode: 401", FailureKind::Unauthorized),
    ("statuscode: 403", FailureKind::Unauthorized),
    ("authorization failed", FailureKind::Unauthorized),
    ("authentication required", FailureKind::Unauthorized),
    ("unauthorized:", FailureKind::Unauthorized),
    ("insufficient_scope", FailureKind::Unauthorized),
    ("no basic auth credentials", FailureKind::Unauthorized),
    ("pull access denied", FailureKind::Unauthorized),
    (
        "access to the resource is denied",
        FailureKind::Unauthorized,
    ),
    ("signaturevalidationfailed", FailureKind::Unauthorized),
    ("unexpected commit digest", FailureKind::DigestMismatch),
    ("failed size validation", FailureKind::DigestMismatch),
    ("unexpected commit size", FailureKind::DigestMismatch),
    ("wrong diff id", FailureKind::DigestMismatch),
    ("digest did not match", FailureKind::DigestMismatch),
    ("does not match", FailureKind::DigestMismatch),
    ("invalid reference format", FailureKind::InvalidReference),
    ("unsupported media type", FailureKind::InvalidReference),
    (
        "media type no longer supported",
        FailureKind::InvalidReference,
    ),
    ("unsupported manifest", FailureKind::InvalidReference),
    ("no processor for media-type", FailureKind::InvalidReference),
    (
        "failed to get stream processor",
        FailureKind::InvalidReference,
    ),
    (
        "missing private key needed for decryption",
        FailureKind::InvalidReference,
    ),
    ("registryunavailable", FailureKind::RegistryUnavailable),
    ("connection refused", FailureKind::RegistryUnavailable),
    ("connection reset", FailureKind::RegistryUnavailable),
    ("no such host", FailureKind::RegistryUnavailable),
    ("i/o timeout", FailureKind::RegistryUnavailable),
    ("x509:", FailureKind::RegistryUnavailable),
    ("tls:", FailureKind::RegistryUnavailable),
    (
        "http response to https client",
        FailureKind::RegistryUnavailable,
    ),
    ("unexpected eof", FailureKind::RegistryUnavailable),
    ("manifest unknown", FailureKind::ImageNotFound),
    ("404 not found", FailureKind::ImageNotFound),
    ("statuscode: 404", FailureKind::ImageNotFound),
    ("statuscode: 5", FailureKind::RegistryUnavailable),
    ("unexpected status", FailureKind::RegistryUnavailable),
    ("unexpected http status", FailureKind::RegistryUnavailable),
    (
        "invalid status code from registry",
        FailureKind::RegistryUnavailable,
    ),
    ("failed with status code", FailureKind::RegistryUnavailable),
    ("context deadline exceeded", FailureKind::Timeout),
    ("context canceled", FailureKind::Timeout),
];

/// The failure that a refusal to pull `name` means.
pub(super) fn of_pull(name: &str, address: &Path, status: &Status) -> Failure {
    let address = address.display();
    let words = without_queries(status.message());
    let kind = kind(name, status);
    let advice = match kind {
        FailureKind::Unauthorized => {
            "; the registry wants credentials that may read this repository (pullSecrets, docker-config)"
        }
        FailureKind::ImageNotFound => "; check the name and the tag",
        FailureKind::RuntimeUnavailable if status.code() == Code::Unavailable => {
            "; is the runtime running, and is containerd-address right?"
        }
        _ => "",
    };
    Failure::new(
        kind,
        format!(
            "{name}: the runtime at {address} did not pull it ({:?}): {words}{advice}",
            status.code()
        ),
    )
}

fn kind(name: &str, status: &Status) -> FailureKind {
    // The client's own words, of a socket that does not answer.
    if std::error::Error::source(status).is_some() {
        return FailureKind::RuntimeUnavailable;
    }
    // A repository may be called like a refusal.
    let words = status.message().replace(name, "").to_lowercase();
    if let Some((_, kind)) = WORDS.iter().find(|(said, _)| words.contains(said)) {
        return *kind;
    }
    match status.code() {
        Code::NotFound => FailureKind::ImageNotFound,
        Code::PermissionDenied | Code::Unauthenticated => FailureKind::Unauthorized,
        Code::ResourceExhausted => FailureKind::RateLimited,
        Code::InvalidArgument => FailureKind::InvalidReference,
        Code::DeadlineExceeded | Code::Cancelled => FailureKind::Timeout,
        _ => FailureKind::RuntimeUnavailable,
    }
}

/// The words, cut, without the queries of URLs: a signature there opens a blob to anyone.
fn without_queries(words: &str) -> String {
    let mut in_query = false;
    words
        .chars()
        .filter(|&c| {
            let ends = c.is_whitespace() || c == '"' || c == '\'';
            in_query = (in_query && !ends) || c == '?';
            !in_query && !c.is_control()
        })
        .take(MAX_QUOTED_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 1.6 to 2.1 and CRI-O say it.
    const SAID: [(Code, &str, FailureKind); 25] = [
        (
            Code::Unknown,
            "reading manifest 1 in localhost:5000/app: StatusCode: 403, ",
            FailureKind::Unauthorized,
        ),
        (
            Code::Unknown,
            "reading manifest 1 in localhost:5000/app: StatusCode: 404, ",
            FailureKind::ImageNotFound,
        ),
        (
            Code::Unknown,
            "reading manifest 1 in localhost:5000/app: StatusCode: 429, ",
            FailureKind::RateLimited,
        ),
        (
            Code::Unknown,
            "reading manifest 1 in localhost:5000/app: received unexpected HTTP status: 503 Service Unavailable",
            FailureKind::RegistryUnavailable,
        ),
        (
            Code::Unknown,
            "writing blob: storing blob to file \"/var/tmp/storage4114674060/1\": happened during read: Digest did not match, expected sha256:a, got sha256:b",
            FailureKind::DigestMismatch,
        ),
        (
            Code::Unknown,
            "pinging container registry localhost:5000: invalid status code from registry 404 (Not Found)",
            FailureKind::RegistryUnavailable,
        ),
        (
            Code::Unknown,
            "pinging container registry localhost:5000: invalid status code from registry 403 (Forbidden)",
            FailureKind::Unauthorized,
        ),
        (
            Code::Unknown,
            "reading manifest 1 in localhost:5000/nope: manifest unknown: manifest unknown",
            FailureKind::ImageNotFound,
        ),
        (
            Code::NotFound,
            "failed to pull and unpack image \"localhost:5000/unauthorized/denied:1\": failed to resolve reference: not found",
            FailureKind::ImageNotFound,
        ),
        (
            Code::NotFound,
            "failed to unpack image: no match for platform in manifest: not found",
            FailureKind::NoMatchingPlatform,
        ),
        (
            Code::Unknown,
            "failed to resolve reference: unexpected status from HEAD request to http://localhost:5000/v2/a/manifests/1: 401 Unauthorized",
            FailureKind::Unauthorized,
        ),
        (
            Code::Unknown,
            "failed to resolve reference: pulling from host localhost:5000 failed with status code [manifests 1]: 403 Forbidden",
            FailureKind::Unauthorized,
        ),
        (
            Code::Unknown,
            "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
            FailureKind::Unauthorized,
        ),
        (
            Code::Unknown,
            "unexpected status from HEAD request to http://h/v2/a/manifests/1: 429 Too Many Requests",
            FailureKind::RateLimited,
        ),
        (
            Code::Unknown,
            "unexpected status from HEAD request to http://h/v2/a/manifests/1: 503 Service Unavailable",
            FailureKind::RegistryUnavailable,
        ),
        (
            Code::Unknown,
            "failed to do request: Head \"https://h/v2/a/manifests/1\": dial tcp 127.0.0.1:1: connect: connection refused",
            FailureKind::RegistryUnavailable,
        ),
        (
            Code::Unknown,
            "failed to copy: write /a/b: no space left on device",
            FailureKind::InsufficientDisk,
        ),
        (
            Code::FailedPrecondition,
            "unexpected commit digest sha256:a, expected sha256:b: failed precondition",
            FailureKind::DigestMismatch,
        ),
        (
            Code::Cancelled,
            "failed to copy: context canceled",
            FailureKind::Timeout,
        ),
        (
            Code::InvalidArgument,
            "failed to parse image reference",
            FailureKind::InvalidReference,
        ),
        (
            Code::Unknown,
            "initializing source docker://a:1: reading manifest 1 in a: manifest unknown",
            FailureKind::ImageNotFound,
        ),
        (
            Code::Unknown,
            "choosing image instance: no image found in manifest list for architecture arm64, variant \"v8\", OS linux",
            FailureKind::NoMatchingPlatform,
        ),
        (
            Code::Unknown,
            "RegistryUnavailable: pinging container registry",
            FailureKind::RegistryUnavailable,
        ),
        (
            Code::Unavailable,
            "error trying to connect",
            FailureKind::RuntimeUnavailable,
        ),
        (
            Code::Unknown,
            "something new",
            FailureKind::RuntimeUnavailable,
        ),
    ];

    #[test]
    fn refusals_have_kinds() {
        let name = "localhost:5000/unauthorized/denied:1";
        for (code, words, kind) in SAID {
            let failure = of_pull(name, Path::new("/run/c.sock"), &Status::new(code, words));
            assert_eq!(failure.kind, kind, "{words}");
        }
    }

    #[test]
    fn what_opens_a_blob_is_not_told() {
        let status = Status::unknown(
            "Get \"https://store/blob?X-Amz-Signature=secret\": 403 Forbidden, and more",
        );
        let failure = of_pull("a", Path::new("/run/c.sock"), &status);
        assert!(!failure.message.contains("secret"), "{failure}");
        assert!(failure.message.contains("and more"), "{failure}");
    }
}
