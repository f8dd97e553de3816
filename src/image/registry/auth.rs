//! Proof of who is asking: which credential answers which challenge, and the tokens this yields.
//!
//! An [`Authorizer`] belongs to one endpoint and one repository. It starts with what is cached, moves
//! to the next credential when the registry refuses one, and gets a fresh token once when the
//! registry refuses a cached one. For a token challenge the last candidate is nobody: an image that
//! is public must not fail for a stale credential.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex as AsyncMutex;

use super::challenge::Challenge;
use super::credentials::{Credential, basic};
use super::token;
use crate::domain::failure::{Failure, FailureKind};

/// Most tokens, and most challenges, that are kept.
const MAX_CACHED: usize = 1024;

/// Tokens and challenges, shared by all pulls of the process.
#[derive(Default)]
pub(super) struct AuthCache {
    tokens: Mutex<HashMap<TokenKey, CachedToken>>,
    challenges: Mutex<HashMap<(String, String), Challenge>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: Option<String>,
    scope: String,
    credential: Option<Credential>,
}

struct CachedToken {
    value: String,
    expires: Instant,
}

impl AuthCache {
    fn token(&self, key: &TokenKey) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.get(key)?;
        (token.expires > Instant::now()).then(|| token.value.clone())
    }

    fn keep_token(&self, key: TokenKey, value: String, lifetime: Duration) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if tokens.len() >= MAX_CACHED {
            tokens.retain(|_, token| token.expires > now);
        }
        if tokens.len() >= MAX_CACHED {
            tokens.clear();
        }
        let expires = now + lifetime;
        tokens.insert(key, CachedToken { value, expires });
    }

    fn forget_token(&self, key: &TokenKey) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(key);
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

/// The proof sent with a request, to be handed back if the registry refuses it.
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
    candidates: Vec<Credential>,
    state: AsyncMutex<State>,
}

#[derive(Default)]
struct State {
    started: bool,
    proof: Option<HeaderValue>,
    generation: u32,
    /// The next of the candidates to try; one past the last is nobody.
    candidate: usize,
    /// Whether the proof came from the cache, so that a refusal may only mean that it is too old.
    from_cache: bool,
    key: Option<TokenKey>,
}

impl Authorizer {
    pub(super) fn new(
        cache: Arc<AuthCache>,
        client: reqwest::Client,
        place: (String, String),
        plain: bool,
        candidates: Vec<Credential>,
    ) -> Self {
        Self {
            cache,
            client,
            place,
            plain,
            candidates,
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
        }
        Ok(Proof {
            header: state.proof.clone(),
            generation: state.generation,
        })
    }

    /// Says that the registry refused `refused`. `Ok` means that there is something else to send;
    /// `Err(None)` that nothing is left to try.
    pub(super) async fn refused(
        &self,
        refused: &Proof,
        challenge: Option<Challenge>,
    ) -> Result<(), Option<Failure>> {
        let mut state = self.state.lock().await;
        if refused.generation != state.generation {
            return Ok(());
        }
        let challenge = challenge
            .or_else(|| self.cache.challenge(&self.place))
            .ok_or(None)?;
        self.cache
            .keep_challenge(self.place.clone(), challenge.clone());
        if let Some(key) = state.key.take() {
            self.cache.forget_token(&key);
        }
        if refused.header.is_some() && !state.from_cache {
            state.candidate += 1;
        }
        self.answer(&mut state, &challenge).await.map_err(Some)?;
        if state.proof.is_none() {
            return Err(None);
        }
        Ok(())
    }

    /// Puts the proof of the first candidate that has one into the state, or none.
    async fn answer(&self, state: &mut State, challenge: &Challenge) -> Result<(), Failure> {
        state.generation += 1;
        state.proof = None;
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
        if let Some(token) = self.cache.token(&key) {
            state.from_cache = true;
            state.key = Some(key);
            return Ok(Some(format!("Bearer {token}")));
        }
        let realm = self.realm(realm, credential.is_some())?;
        let token = token::fetch(
            &self.client,
            realm,
            key.service.as_deref(),
            &key.scope,
            credential,
        )
        .await?;
        self.cache
            .keep_token(key.clone(), token.value.clone(), token.lifetime);
        state.key = Some(key);
        Ok(Some(format!("Bearer {}", token.value)))
    }

    /// The token server's address. A registry that is spoken to over TLS must not send a credential
    /// to a server in the clear.
    fn realm(&self, realm: &str, with_credential: bool) -> Result<Url, Failure> {
        let refuse = |problem: &str| {
            Failure::new(
                FailureKind::Unauthorized,
                format!(
                    "{} names a token server that {problem}: {realm:?}",
                    self.place.0
                ),
            )
        };
        let url = Url::parse(realm).map_err(|_| refuse("is no address"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain || !with_credential => Ok(url),
            "http" => Err(refuse("would get the credential in the clear")),
            _ => Err(refuse("is not HTTP")),
        }
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
