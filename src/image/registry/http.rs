//! Requests: bounded bodies, and redirects that take no secret along.

use futures::StreamExt as _;
use reqwest::header::{ACCEPT, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, Method, Response, Url};

use super::failure;
use crate::domain::failure::{Failure, FailureKind};

/// Most redirects that are followed; registries use one, to where blobs are stored.
const MAX_REDIRECTS: usize = 5;

/// Why a request brought no response.
pub(super) enum SendError {
    /// The request could not be sent or was not answered.
    Transport(reqwest::Error),
    /// A redirect that is not followed.
    Redirect(Failure),
}

/// Sends a request without a body and follows redirects. To another origin go only `Accept` and
/// `Range`: neither credentials nor the headers of a `hosts.toml`.
pub(super) async fn send(
    client: &Client,
    method: Method,
    url: Url,
    mut headers: HeaderMap,
    what: &str,
) -> Result<Response, SendError> {
    let refuse = |problem: String| {
        SendError::Redirect(Failure::new(
            FailureKind::RegistryUnavailable,
            format!("{what}: {problem}"),
        ))
    };
    let mut url = url;
    for _ in 0..=MAX_REDIRECTS {
        let response = client
            .request(method.clone(), url.clone())
            .headers(headers.clone())
            .send()
            .await
            .map_err(SendError::Transport)?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(response);
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| url.join(location).ok())
            .filter(|location| matches!(location.scheme(), "http" | "https"))
            .ok_or_else(|| refuse("redirects to no usable address".to_owned()))?;
        if location.origin() != url.origin() {
            headers = [ACCEPT, RANGE]
                .into_iter()
                .filter_map(|name| headers.get(&name).map(|value| (name, value.clone())))
                .collect();
        }
        // What is not named by a digest is only as true as the connection it came by.
        if url.scheme() == "https" && location.scheme() == "http" && headers.contains_key(ACCEPT) {
            return Err(refuse(format!(
                "redirects from TLS to plain HTTP at {}",
                location.host_str().unwrap_or_default()
            )));
        }
        url = location;
    }
    Err(refuse(format!("redirects more than {MAX_REDIRECTS} times")))
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_bounded(
    response: Response,
    limit: u64,
    what: &str,
) -> Result<Vec<u8>, Failure> {
    let too_large = || {
        Failure::new(
            FailureKind::InvalidReference,
            format!("{what}: the answer is larger than {limit} bytes"),
        )
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit)
    {
        return Err(too_large());
    }
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| failure::of_transport(error, what))?;
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
