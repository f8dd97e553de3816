//! What a registry's refusal means: HTTP statuses and transport errors as kinds of failure.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use crate::domain::failure::{Failure, FailureKind};

/// Longest delay that is taken from a `Retry-After`; a registry that asks for more is asked again
/// after this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Most characters of a registry's own words that go into a message.
const MAX_QUOTED_CHARS: usize = 200;

/// What hyper-util says when a proxy answers `CONNECT` with 407; the error has no type of its own.
const PROXY_REFUSED: &str = "proxy authorization required";
const PROXY_ADVICE: &str =
    "the HTTP proxy wants credentials (user:password@ in HTTP_PROXY or HTTPS_PROXY)";

/// The failure that a status stands for; `what` says what was asked of whom.
pub(super) fn of_status(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    what: &str,
) -> Failure {
    let kind = match status.as_u16() {
        401 | 403 | 407 | 451 => FailureKind::Unauthorized,
        404 | 410 => FailureKind::ImageNotFound,
        429 => FailureKind::RateLimited,
        400 | 406 | 414 => FailureKind::InvalidReference,
        _ => FailureKind::RegistryUnavailable,
    };
    let mut message = format!("{what}: {status}");
    if let Some(words) = registry_words(body) {
        let _ = write!(message, " ({words})");
    }
    if let Some(advice) = advice(status) {
        let _ = write!(message, "; {advice}");
    }
    Failure {
        kind,
        message,
        retry_after: retry_after(headers),
    }
}

fn advice(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        401 | 403 => Some(
            "the registry wants credentials that may read this repository (pullSecrets, docker-config)",
        ),
        404 | 410 => Some("check the name and the tag"),
        407 => Some(PROXY_ADVICE),
        _ => None,
    }
}

/// The failure that no answer stands for; `what` says what was asked of whom.
pub(super) fn of_transport(error: reqwest::Error, what: &str) -> Failure {
    // The URL may carry a signature that opens the blob to anyone, so it stays out of the message.
    let error = error.without_url();
    let mut kind = FailureKind::RegistryUnavailable;
    let message = match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(problem)) => format!(
            "{what}: the certificate is not accepted ({problem}); if the registry has an authority of its own, name it as `ca` in its hosts.toml"
        ),
        Some(problem) => format!("{what}: TLS failed: {problem}"),
        None if error.is_connect() && deepest(&error).ends_with(PROXY_REFUSED) => {
            kind = FailureKind::Unauthorized;
            format!("{what}: cannot connect: {PROXY_ADVICE}")
        }
        None if error.is_connect() => format!("{what}: cannot connect: {}", deepest(&error)),
        None if error.is_timeout() => format!("{what}: no answer in time"),
        None => format!("{what}: {}", deepest(&error)),
    };
    Failure::new(kind, message)
}

/// Whether the other side does not speak TLS.
pub(super) fn is_not_tls(error: &reqwest::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

/// What lies behind an error, the nearest first.
fn causes(error: &reqwest::Error) -> Vec<&(dyn Error + 'static)> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        // An I/O error that wraps another error hides it from `source`.
        next = match cause.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
    }
    causes
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error)
        .into_iter()
        .find_map(|cause| cause.downcast_ref::<rustls::Error>())
}

fn deepest(error: &reqwest::Error) -> String {
    causes(error)
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// The registry's error body (OCI distribution spec 1.1, "Error Codes"), first entry.
fn registry_words(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: String,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let entry = body.errors.into_iter().next()?;
    let words = if entry.message.is_empty() {
        entry.code
    } else {
        format!("{}: {}", entry.code, entry.message)
    };
    Some(
        words
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_QUOTED_CHARS)
            .collect(),
    )
}

/// `Retry-After` as seconds or as a date (RFC 9110, section 10.2.3); a date is measured against the
/// response's own `Date`, so that the two clocks need not agree.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = |text: &str| {
                let time = jiff::fmt::rfc2822::parse(text).ok()?;
                Some(time.timestamp().as_second())
            };
            let now = headers
                .get(DATE)
                .and_then(|value| date(value.to_str().ok()?))
                .unwrap_or_else(|| jiff::Timestamp::now().as_second());
            Duration::from_secs(u64::try_from(date(text)?.saturating_sub(now)).unwrap_or(0))
        }
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn statuses_have_kinds() {
        for (status, kind) in [
            (400, FailureKind::InvalidReference),
            (401, FailureKind::Unauthorized),
            (403, FailureKind::Unauthorized),
            (404, FailureKind::ImageNotFound),
            (408, FailureKind::RegistryUnavailable),
            (429, FailureKind::RateLimited),
            (500, FailureKind::RegistryUnavailable),
            (503, FailureKind::RegistryUnavailable),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                of_status(status, &headers(&[]), b"", "x").kind,
                kind,
                "{status}"
            );
        }
    }

    #[test]
    fn the_registrys_words_are_quoted_and_cut() {
        let body = serde_json::json!({
            "errors": [{"code": "DENIED", "message": format!("no\nway{}", "y".repeat(400))}]
        })
        .to_string();
        let failure = of_status(
            StatusCode::FORBIDDEN,
            &headers(&[]),
            body.as_bytes(),
            "GET m",
        );
        assert!(
            failure
                .message
                .starts_with("GET m: 403 Forbidden (DENIED: noway")
        );
        assert!(failure.message.len() < 500, "{}", failure.message);
        let html = of_status(StatusCode::BAD_GATEWAY, &headers(&[]), b"<html>", "GET m");
        assert_eq!(html.message, "GET m: 502 Bad Gateway");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        for (pairs, seconds) in [
            (vec![("retry-after", "7")], Some(7)),
            (vec![("retry-after", "999999")], Some(3600)),
            (
                vec![
                    ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT"),
                    ("date", date),
                ],
                Some(30),
            ),
            (vec![("retry-after", date)], Some(0)),
            (vec![("retry-after", "soon")], None),
            (vec![], None),
        ] {
            assert_eq!(
                retry_after(&headers(&pairs)),
                seconds.map(Duration::from_secs),
                "{pairs:?}"
            );
        }
    }
}
