//! One endpoint of a repository: requests with the proof it wants, over the transport it speaks.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::Authorizer;
use super::credentials::Keychain;
use super::hosts::{Host, Transport};
use super::http::Trust;
use super::{Shared, challenge, failure, http};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::ImageRef;

/// Most that is read of the body of an error, in bytes.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// How often a request is sent again with another proof, however many credentials there are, and however fast other
/// requests use them up.
const MAX_REFUSALS: usize = 16;
/// How often a request waits for a token in place of one that was good before. More than one, because those of other
/// requests may use up a token that is only good for a few.
const MAX_RENEWALS: usize = 3;

pub(super) struct Endpoint {
    pub(super) host: Host,
    client: reqwest::Client,
    authorizer: Authorizer,
    registry: String,
    repository: String,
    shared: Arc<Shared>,
}

impl Endpoint {
    pub(super) async fn new(
        shared: &Arc<Shared>,
        host: Host,
        image: &ImageRef,
        keychain: &Keychain,
    ) -> Result<Self, Failure> {
        let (registry, repository) = (image.registry(), image.repository());
        let client = shared.transports.client(&host).map_err(|error| {
            Failure::new(
                FailureKind::RegistryUnavailable,
                format!("the node's settings for {}: {error}", host.authority),
            )
        })?;
        let candidates = keychain
            .candidates(&host.authority, !host.is_proxy, registry, repository)
            .await;
        let authorizer = Authorizer::new(
            shared.cache.clone(),
            client.clone(),
            (host.authority.clone(), repository.to_owned()),
            host.transport != Transport::Https,
            host.headers.clone(),
            candidates,
        );
        Ok(Self {
            host,
            client,
            authorizer,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            shared: shared.clone(),
        })
    }

    /// Sends a request with the proof the endpoint wants. Statuses other than a refusal of the proof
    /// are the caller's. While the host asks for no requests, none is sent, whichever pull it is for.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response, Failure> {
        let what = self.what(&method, path);
        // Ends before, as a rule, because every refusal of a fresh proof uses up one of the credentials.
        let mut renewals = 0;
        for refusals in 0..=MAX_REFUSALS {
            let holds = &self.shared.holds;
            if let Some(failure) = holds.refuse(&self.host.authority, &what, Instant::now()) {
                return Err(failure);
            }
            let proof = self.authorizer.proof().await?;
            let mut headers = headers.clone();
            // Beside our own of the same name, as containerd sends them.
            for (name, value) in &self.host.headers {
                headers.append(name, value.clone());
            }
            if let Some(header) = &proof.header {
                headers.insert(AUTHORIZATION, header.clone());
            }
            let (response, asked) = self.send(&method, path, headers, &what).await?;
            let status = response.status();
            // What the store asks for that the registry redirected to does not hold for the registry.
            let is_registry = http::is_same_place(&asked, response.url());
            if is_registry {
                let wait = failure::retry_after(response.headers());
                holds.note(&self.host.authority, status, wait, Instant::now());
            }
            let wants_proof = status == StatusCode::UNAUTHORIZED
                || (status == StatusCode::FORBIDDEN && proof.header.is_some());
            // A 401 of the store that the registry redirected to is not the registry's.
            if !wants_proof || !is_registry {
                self.authorizer.accepted(&proof);
                return Ok(response);
            }
            let wanted = challenge::choose(response.headers());
            let may_be_old = status == StatusCode::UNAUTHORIZED && renewals < MAX_RENEWALS;
            let refused = self.authorizer.refused(&proof, wanted, may_be_old);
            match refused.await {
                Ok(was_current) if refusals < MAX_REFUSALS => renewals += usize::from(was_current),
                Err(Some(failure)) => return Err(failure),
                Ok(_) | Err(None) => return Err(self.refusal(response, &what).await),
            }
        }
        Err(Failure::new(
            FailureKind::Unauthorized,
            format!("{what}: refused with every proof there is"),
        ))
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: HeaderMap,
        what: &str,
    ) -> Result<(Response, Url), Failure> {
        let host = &self.host;
        let plain_known = || {
            let plain = self
                .shared
                .plain
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            plain.contains(&host.authority)
        };
        let mut plain = match host.transport {
            Transport::Http => true,
            Transport::Https => false,
            Transport::HttpsThenHttp => plain_known(),
        };
        loop {
            let url = self.url(plain, path)?;
            let (client, headers) = (&self.client, headers.clone());
            // Of everything else, the registry's word is all there is.
            let trust = match path.starts_with("blobs/") {
                true => Trust::Digest,
                false => Trust::Connection,
            };
            let sent = http::send(client, method.clone(), url.clone(), headers, (trust, what));
            match sent.await {
                Ok(response) => return Ok((response, url)),
                Err(http::SendError::Redirect(failure)) => return Err(failure),
                Err(http::SendError::Transport(error))
                    if !plain
                        && host.transport == Transport::HttpsThenHttp
                        && failure::is_not_tls(&error) =>
                {
                    plain = true;
                    let mut known = self
                        .shared
                        .plain
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    known.insert(host.authority.clone());
                }
                Err(http::SendError::Transport(error)) => {
                    return Err(failure::of_transport(error, what));
                }
            }
        }
    }

    fn url(&self, plain: bool, path: &str) -> Result<Url, Failure> {
        let host = &self.host;
        let scheme = if plain { "http" } else { "https" };
        let text = format!(
            "{scheme}://{}{}/{}/{path}",
            host.authority, host.path, self.repository
        );
        let mut url = Url::parse(&text).map_err(|error| {
            Failure::new(FailureKind::InvalidReference, format!("{text}: {error}"))
        })?;
        if host.is_proxy {
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        Ok(url)
    }

    /// What is asked of whom, for messages.
    pub(super) fn what(&self, method: &Method, path: &str) -> String {
        format!(
            "{method} {}/{}/{path}",
            self.host.authority, self.repository
        )
    }

    /// The failure that a response means, in the registry's own words where it has some, as far as they hold no secret.
    pub(super) async fn refusal(&self, response: Response, what: &str) -> Failure {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = http::read_bounded(response, MAX_ERROR_BYTES, what)
            .await
            .unwrap_or_default();
        let mut secrets = self.authorizer.secrets().await;
        for value in self.host.headers.values() {
            secrets.add_header(value.to_str().unwrap_or_default());
        }
        failure::of_status(status, &headers, &secrets.hide(&body), what)
    }
}
