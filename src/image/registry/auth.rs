//! Proof of who is asking: which credential answers which challenge, and the tokens this yields.
//!
//! An [`Authorizer`] belongs to one endpoint and one repository. It starts with what is cached, replaces a token before
//! it expires, gets a fresh one when the registry refuses one that was good before, and moves to the next credential when
//! the registry refuses a fresh one. For a token challenge the last candidate is nobody: an image that
//! is public must not fail for a stale credential.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::challenge::Challenge;
use super::credentials::{Credential, basic};
use super::secrets::Secrets;
use super::token;
use crate::domain::failure::{Failure, FailureKind};

/// Most tokens, and most challenges, that are kept.
const MAX_CACHED: usize = 1024;
/// Most proofs that are remembered as sent, to be kept out of what is quoted.
const MAX_SENT: usize = 16;

/// Tokens and challenges, shared by all pulls of the process.
#[derive(Default)]
pub(super) struct AuthCache {
    tokens: Mutex<HashMap<TokenKey, Arc<AsyncMutex<Slot>>>>,
    challenges: Mutex<HashMap<(String, String), Challenge>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: Option<String>,
    scope: String,
    credential: Option<Credential>,
}

#[derive(Clone)]
struct CachedToken {
    value: String,
    /// When it is to be replaced, some time before it expires.
    until: Instant,
}

/// The token of one key. Whoever gets it holds the lock, so that all others wait for that one request.
#[derive(Default)]
struct Slot {
    token: Option<CachedToken>,
    /// When the last request failed, and how: the answer to those who waited for it as well.
    failed: Option<(Instant, Failure)>,
}

impl Slot {
    fn usable(&self) -> Option<CachedToken> {
        let token = self.token.as_ref()?;
        (token.until > Instant::now()).then(|| token.clone())
    }
}

impl AuthCache {
    fn slot(&self, key: &TokenKey) -> Arc<AsyncMutex<Slot>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_CACHED && !tokens.contains_key(key) {
            // One that cannot be locked is being fetched.
            tokens.retain(|_, slot| slot.try_lock().map_or(true, |slot| slot.usable().is_some()));
            if tokens.len() >= MAX_CACHED {
                tokens.clear();
            }
        }
        tokens.entry(key.clone()).or_default().clone()
    }

    /// The token for a key, from the cache or by `fetch`, which runs once for all who ask at the same time. Says whether
    /// it was there.
    async fn token(
        &self,
        key: &TokenKey,
        fetch: impl Future<Output = Result<token::Token, Failure>>,
    ) -> Result<(CachedToken, bool), Failure> {
        let asked = Instant::now();
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some(token) = slot.usable() {
            return Ok((token, true));
        }
        if let Some((at, failure)) = &slot.failed
            && *at >= asked
        {
            return Err(failure.clone());
        }
        let fetched = fetch.await;
        slot.token = None;
        slot.failed = None;
        match fetched {
            Ok(token) => {
                let token = CachedToken {
                    until: Instant::now() + token.lifetime,
                    value: token.value,
                };
                slot.token = Some(token.clone());
                Ok((token, false))
            }
            Err(failure) => {
                slot.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Forgets a token that was refused, unless another has taken its place.
    async fn forget_token(&self, key: &TokenKey, value: &str) {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if slot
            .token
            .as_ref()
            .is_some_and(|token| token.value == value)
        {
            slot.token = None;
        }
    }

    fn challenge(&self, place: &(String, String)) -> Option<Challenge> {
        let challenges = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        challenges.get(place).cloned()
    }

    fn keep_challenge(&self, place: (String, String), challenge: Challenge) {
        let mut challenges = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if challenges.len() >= MAX_CACHED {
            challenges.clear();
        }
        challenges.insert(place, challenge);
    }
}

/// The proof sent with a request, to be handed back with what the registry thinks of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Proof {
    /// The `Authorization` header; `None` when none is sent.
    pub(super) header: Option<HeaderValue>,
    /// Grows with every change, so that the refusal of an old proof is told from that of the current.
    generation: u32,
}

/// Answers the challenges of one endpoint for one repository.
pub(super) struct Authorizer {
    cache: Arc<AuthCache>,
    client: reqwest::Client,
    /// Endpoint and repository.
    place: (String, String),
    /// Whether the endpoint is spoken to in the clear, so that its token server may be as well.
    plain: bool,
    /// What `hosts.toml` adds to requests, which goes to the token server too, as from containerd 2.1 on.
    headers: HeaderMap,
    candidates: Vec<Credential>,
    /// The latest generation of a proof that the registry did not refuse.
    accepted: AtomicU32,
    state: AsyncMutex<State>,
}

#[derive(Clone, Default)]
struct State {
    started: bool,
    proof: Option<HeaderValue>,
    generation: u32,
    /// The next of the candidates to try; one past the last is nobody.
    candidate: usize,
    /// Whether the proof came from the cache, so that a refusal may only mean that it is too old.
    from_cache: bool,
    /// The token that the proof is made of, and what it answers.
    token: Option<(TokenKey, CachedToken)>,
    challenge: Option<Challenge>,
    /// What was sent so far, the last [`MAX_SENT`] of it.
    sent: VecDeque<HeaderValue>,
}

impl Authorizer {
    pub(super) fn new(
        cache: Arc<AuthCache>,
        client: reqwest::Client,
        place: (String, String),
        plain: bool,
        headers: HeaderMap,
        candidates: Vec<Credential>,
    ) -> Self {
        Self {
            cache,
            client,
            place,
            plain,
            headers,
            candidates,
            accepted: AtomicU32::new(0),
            state: AsyncMutex::default(),
        }
    }

    /// What to send now.
    pub(super) async fn proof(&self) -> Result<Proof, Failure> {
        let mut state = self.state.lock().await;
        if !state.started {
            state.started = true;
            if let Some(challenge) = self.cache.challenge(&self.place) {
                self.answer(&mut state, &challenge).await?;
            }
        } else if let Some((_, token)) = &state.token
            && token.until <= Instant::now()
            && let Some(challenge) = state.challenge.clone()
        {
            let before = state.clone();
            if let Err(failure) = self.answer(&mut state, &challenge).await {
                // The old one may do for a while; when it does not, the registry says so.
                tracing::debug!(%failure, "a token is not replaced yet");
                *state = State {
                    token: None,
                    ..before
                };
            }
        }
        Ok(Proof {
            header: state.proof.clone(),
            generation: state.generation,
        })
    }

    /// Says that the registry did not refuse `proof`.
    pub(super) fn accepted(&self, proof: &Proof) {
        self.accepted.fetch_max(proof.generation, Ordering::Relaxed);
    }

    /// Says that the registry refused `refused`, and whether that may be because it was good for long enough. `Ok` means
    /// that there is something else to send, and says whether it is because of this refusal; `Err(None)` that nothing is
    /// left to try.
    pub(super) async fn refused(
        &self,
        refused: &Proof,
        challenge: Option<Challenge>,
        may_be_old: bool,
    ) -> Result<bool, Option<Failure>> {
        let mut state = self.state.lock().await;
        if refused.generation != state.generation {
            return Ok(false);
        }
        let challenge = challenge
            .or_else(|| self.cache.challenge(&self.place))
            .ok_or(None)?;
        self.cache
            .keep_challenge(self.place.clone(), challenge.clone());
        if let Some((key, token)) = state.token.take() {
            self.cache.forget_token(&key, &token.value).await;
        }
        // A token that was good expires or is revoked in the middle of a pull; the credential it came from still is.
        let was_good = may_be_old && self.accepted.load(Ordering::Relaxed) == refused.generation;
        if refused.header.is_some() && !state.from_cache && !was_good {
            state.candidate += 1;
        }
        self.answer(&mut state, &challenge).await.map_err(Some)?;
        if state.proof.is_none() {
            return Err(None);
        }
        Ok(true)
    }

    /// Puts the proof of the first candidate that has one into the state, or none.
    async fn answer(&self, state: &mut State, challenge: &Challenge) -> Result<(), Failure> {
        state.generation += 1;
        state.proof = None;
        state.token = None;
        state.challenge = Some(challenge.clone());
        while state.candidate <= self.candidates.len() {
            let credential = self.candidates.get(state.candidate);
            match self.answer_with(state, challenge, credential).await {
                Ok(Some(value)) => {
                    let mut header = HeaderValue::try_from(value).map_err(|_| {
                        Failure::new(
                            FailureKind::Unauthorized,
                            format!(
                                "the token for {} has characters no header may have",
                                self.place.0
                            ),
                        )
                    })?;
                    header.set_sensitive(true);
                    if state.sent.len() >= MAX_SENT {
                        state.sent.pop_front();
                    }
                    state.sent.push_back(header.clone());
                    state.proof = Some(header);
                    return Ok(());
                }
                Ok(None) => state.candidate += 1,
                // The token server refused this one; the next may do.
                Err(failure)
                    if failure.kind == FailureKind::Unauthorized
                        && state.candidate < self.candidates.len() =>
                {
                    state.candidate += 1;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn answer_with(
        &self,
        state: &mut State,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Option<String>, Failure> {
        state.from_cache = false;
        let (realm, service, scope) = match (challenge, credential) {
            (_, Some(Credential::Registry(token))) => return Ok(Some(format!("Bearer {token}"))),
            (Challenge::Basic, Some(Credential::Password { user, password })) => {
                return Ok(Some(basic(user, password)));
            }
            (Challenge::Basic, _) => return Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => (realm, service, scope),
        };
        let key = TokenKey {
            realm: realm.clone(),
            service: service.clone(),
            scope: scope
                .clone()
                .unwrap_or_else(|| format!("repository:{}:pull", self.place.1)),
            credential: credential.cloned(),
        };
        let realm = self.realm(realm, credential.is_some())?;
        let headers = match realm.scheme() {
            "http" if !self.plain => HeaderMap::new(),
            _ => self.headers.clone(),
        };
        let fetch = token::fetch(
            &self.client,
            realm,
            headers,
            (key.service.as_deref(), &key.scope),
            credential,
        );
        let (token, from_cache) = self.cache.token(&key, fetch).await?;
        state.from_cache = from_cache;
        let value = format!("Bearer {}", token.value);
        state.token = Some((key.clone(), token));
        Ok(Some(value))
    }

    /// What the registry must not be quoted with: a registry may repeat in its refusal what it was sent.
    pub(super) async fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        for candidate in &self.candidates {
            secrets.add(candidate);
        }
        let state = self.state.lock().await;
        for sent in &state.sent {
            secrets.add_header(sent.to_str().unwrap_or_default());
        }
        secrets
    }

    /// The token server's address. A registry that is spoken to over TLS must not send a credential
    /// to a server in the clear.
    fn realm(&self, realm: &str, with_credential: bool) -> Result<Url, Failure> {
        // Of the address only where it is: the rest may open something to whoever reads it.
        let refuse = |problem: &str, place: &str| {
            Failure::new(
                FailureKind::Unauthorized,
                format!(
                    "{} names a token server that {problem}: {place}",
                    self.place.0
                ),
            )
        };
        let url = Url::parse(realm).map_err(|error| refuse("is no address", &error.to_string()))?;
        let place = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain || !with_credential => Ok(url),
            "http" => Err(refuse("would get the credential in the clear", &place)),
            _ => Err(refuse("is not HTTP", &place)),
        }
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
