//! Requests: bounded bodies that keep coming, and redirects that take no secret along.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{ACCEPT, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, Method, Response, Url};

use tokio::time::Instant;

use super::failure;
use crate::domain::failure::{Failure, FailureKind};

/// Most redirects that are followed; registries use one, to where blobs are stored.
const MAX_REDIRECTS: usize = 5;

/// Fewest bytes in a second that an answer may bring: 20 connections at it are still within the 160 kbit/s of the slowest
/// links that nodes are on, and a pull that is slower is better begun anew.
const LEAST_RATE: u64 = 1024;
/// How long an answer may be slower, in time spent waiting for it.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Why a request brought no response.
pub(super) enum SendError {
    /// The request could not be sent or was not answered.
    Transport(reqwest::Error),
    /// A redirect that is not followed.
    Redirect(Failure),
}

/// What makes an answer true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trust {
    /// Its bytes hash to a digest that is known, wherever they come from.
    Digest,
    /// Nothing but the connection it came by, so that it must not come by a weaker one than was asked.
    Connection,
}

/// Sends a request without a body and follows redirects. To another place go only `Accept` and
/// `Range`: neither credentials nor the headers of a `hosts.toml`.
pub(super) async fn send(
    client: &Client,
    method: Method,
    url: Url,
    mut headers: HeaderMap,
    (trust, what): (Trust, &str),
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
        if !is_same_place(&url, &location) {
            headers = [ACCEPT, RANGE]
                .into_iter()
                .filter_map(|name| headers.get(&name).map(|value| (name, value.clone())))
                .collect();
        }
        if trust == Trust::Connection && url.scheme() == "https" && location.scheme() == "http" {
            return Err(refuse(format!(
                "redirects from TLS to plain HTTP at {}",
                location.host_str().unwrap_or_default()
            )));
        }
        url = location;
    }
    Err(refuse(format!("redirects more than {MAX_REDIRECTS} times")))
}

/// Whether a redirect stays with the server that was asked, or goes from plain HTTP to its TLS.
pub(super) fn is_same_place(from: &Url, to: &Url) -> bool {
    let is_upgrade = from.scheme() == "http"
        && to.scheme() == "https"
        && from.host() == to.host()
        // `None` is the default port of either scheme.
        && from.port() == to.port();
    from.origin() == to.origin() || is_upgrade
}

/// The bytes of an answer as they come. It fails when they come too slowly; time in which nobody asks for them, such as
/// while a limit on the bandwidth is waited for, does not count.
pub(super) fn body(
    response: Response,
    what: String,
) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
    let body = Body {
        stream: response.bytes_stream().boxed(),
        what,
        waited: Duration::ZERO,
        received: 0,
    };
    stream::try_unfold(body, |mut body| async {
        let piece = body.next().await?;
        Ok(piece.map(|piece| (piece, body)))
    })
}

struct Body {
    stream: BoxStream<'static, reqwest::Result<Bytes>>,
    what: String,
    /// Time waited, and bytes received in it, since the rate was last looked at.
    waited: Duration,
    received: u64,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let asked = Instant::now();
        let Some(piece) = self.stream.next().await else {
            return Ok(None);
        };
        let piece = piece.map_err(|error| failure::of_transport(error, &self.what))?;
        self.waited += asked.elapsed();
        self.received += piece.len() as u64;
        // One that stands still ends by the client's own limit for a read.
        if self.waited >= RATE_WINDOW {
            if self.received < LEAST_RATE * RATE_WINDOW.as_secs() {
                return Err(Failure::new(
                    FailureKind::RegistryUnavailable,
                    format!(
                        "{}: sends less than {LEAST_RATE} bytes a second ({} in {:?})",
                        self.what, self.received, RATE_WINDOW
                    ),
                ));
            }
            (self.waited, self.received) = (Duration::ZERO, 0);
        }
        Ok(Some(piece))
    }
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
    let mut stream = pin!(self::body(response, what.to_owned()));
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
