//! The token server: `GET` with a password or nobody's, `POST` with a refresh token (distribution's
//! `docs/spec/auth/{token,oauth}.md`).

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::credentials::{Credential, basic};
use super::http::{SendError, Trust};
use super::secrets::Secrets;
use super::{failure, http};
use crate::domain::failure::{Failure, FailureKind};

/// Largest answer of a token server, in bytes; tokens of some clouds are several kilobytes.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// The lifetime of a token whose server does not say (distribution's token specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest lifetime that is believed.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How much of its lifetime a token is used for, in percent: the rest is for requests under way.
const USED_LIFETIME_PERCENT: u32 = 80;
const CLIENT_ID: &str = "prewarm";

/// A token, and how long it may be used.
pub struct Token {
    /// What is shown to the registry.
    pub value: String,
    /// For how long.
    pub lifetime: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Asks for a token that may pull.
///
/// # Errors
/// `Unauthorized` when the server refuses the credential, else as for any request.
pub(super) async fn fetch(
    client: &reqwest::Client,
    realm: Url,
    headers: HeaderMap,
    (service, scope): (Option<&str>, &str),
    credential: Option<&Credential>,
) -> Result<Token, Failure> {
    let what = format!("token server {}", realm.host_str().unwrap_or_default());
    let mut secrets = Secrets::default();
    for value in headers.values() {
        secrets.add_header(value.to_str().unwrap_or_default());
    }
    if let Some(credential) = credential {
        secrets.add(credential);
    }
    let response = match credential {
        Some(Credential::Identity(secret)) => {
            let fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", secret),
                ("service", service.unwrap_or_default()),
                ("client_id", CLIENT_ID),
                ("scope", scope),
            ];
            client
                .post(realm)
                .headers(headers)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(&fields))
                .send()
                .await
                .map_err(SendError::Transport)
        }
        credential => {
            let (url, headers) = query(realm, headers, (service, scope), credential);
            let trust = Trust::Connection;
            http::send(client, Method::GET, url, headers, (trust, &what)).await
        }
    };
    let response = response.map_err(|error| match error {
        SendError::Transport(error) => failure::of_transport(error, &what),
        SendError::Redirect(failure) => failure,
    })?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = http::read_bounded(response, MAX_TOKEN_BYTES, &what).await?;
    if !status.is_success() {
        let body = secrets.hide(&body);
        let mut failure = failure::of_status(status, &headers, &body, &what);
        // A token server says 400 or 404 to a refresh token that is no longer good.
        if matches!(status.as_u16(), 400 | 404) {
            failure.kind = FailureKind::Unauthorized;
        }
        return Err(failure);
    }
    let unusable = || {
        Failure::new(
            FailureKind::RegistryUnavailable,
            format!("{what}: the answer has no token"),
        )
    };
    read(&body).ok_or_else(unusable)
}

/// Reads the answer of a token server.
#[must_use]
pub fn read(body: &[u8]) -> Option<Token> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token);
    let value = token.filter(|token| !token.is_empty())?;
    let lifetime = answer
        .expires_in
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_LIFETIME, Duration::from_secs)
        .min(MAX_LIFETIME);
    Some(Token {
        value,
        lifetime: lifetime * USED_LIFETIME_PERCENT / 100,
    })
}

/// A request as a `GET`.
fn query(
    mut url: Url,
    mut headers: HeaderMap,
    (service, scope): (Option<&str>, &str),
    credential: Option<&Credential>,
) -> (Url, HeaderMap) {
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        for scope in scope.split(' ') {
            query.append_pair("scope", scope);
        }
    }
    if let Some(Credential::Password { user, password }) = credential
        && let Ok(mut proof) = HeaderValue::try_from(basic(user, password))
    {
        proof.set_sensitive(true);
        headers.insert(AUTHORIZATION, proof);
    }
    (url, headers)
}

/// `application/x-www-form-urlencoded`, which is what a URL's query is written in.
fn form(fields: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("form:") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}
