//! A proxy in front of the registry through which things go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::support::images::http;

/// The share of requests that go wrong in bad weather.
const SHARE: f64 = 0.3;
/// How much of a body goes out at once.
const PIECE: usize = 16 * 1024;
/// Bytes a second where the line is thin.
const THIN: u64 = 200_000;
/// How long a client is kept waiting by a registry that hardly sends anything.
const LORIS: Duration = Duration::from_secs(40);
/// How long a token is good for, as the registry says.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How long it is in truth, where tokens expire early.
const SHORT_TOKEN_LIFE: Duration = Duration::from_millis(300);

/// What goes wrong with an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Trouble {
    Latency,
    Bandwidth,
    Reset,
    TooManyRequests,
    ServerError,
    TokenExpiry,
    Truncated,
    Corrupted,
    RedirectLoop,
    SlowLoris,
}

impl Trouble {
    pub(crate) const ALL: [Self; 10] = [
        Self::Latency,
        Self::Bandwidth,
        Self::Reset,
        Self::TooManyRequests,
        Self::ServerError,
        Self::TokenExpiry,
        Self::Truncated,
        Self::Corrupted,
        Self::RedirectLoop,
        Self::SlowLoris,
    ];
}

/// The proxy.
pub(crate) struct Weather {
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    addr: String,
    registry: String,
    client: reqwest::Client,
    state: Mutex<Sky>,
}

struct Sky {
    rng: StdRng,
    now: BTreeSet<Trouble>,
    seen: BTreeMap<Trouble, u64>,
}

impl Weather {
    /// Serves at `addr` (`host:port`) what the registry at `registry` says.
    pub(crate) async fn serve(addr: &str, registry: &str, seed: u64) -> Self {
        let listener = tokio::net::TcpListener::bind(addr)
            .await
            .expect("an address for the proxy");
        let shared = Arc::new(Shared {
            addr: addr.to_owned(),
            registry: registry.to_owned(),
            client: http(),
            state: Mutex::new(Sky {
                rng: StdRng::seed_from_u64(seed),
                now: BTreeSet::new(),
                seen: BTreeMap::new(),
            }),
        });
        let accepting = shared.clone();
        let listener = listener.tap_io(move |stream| {
            // What ends early on such a connection is reset, and not closed.
            if accepting.has(Trouble::Reset) {
                let _ = stream.set_zero_linger();
            }
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the proxy");
        });
        Self { shared, serving }
    }

    /// From now on these go wrong, and nothing else.
    pub(crate) fn set(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.shared.state.lock().unwrap().now = troubles.into_iter().collect();
    }

    /// How many answers went wrong, by what went wrong.
    pub(crate) fn seen(&self) -> BTreeMap<Trouble, u64> {
        self.shared.state.lock().unwrap().seen.clone()
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    fn has(&self, trouble: Trouble) -> bool {
        self.state.lock().unwrap().now.contains(&trouble)
    }

    /// Draws what goes wrong with one answer.
    fn draw(&self, is_blob: bool) -> Option<Trouble> {
        let mut sky = self.state.lock().unwrap();
        if sky.now.is_empty() || !sky.rng.random_bool(SHARE) {
            return None;
        }
        let possible: Vec<Trouble> = sky
            .now
            .iter()
            .copied()
            .filter(|trouble| match trouble {
                Trouble::TokenExpiry => false,
                Trouble::Bandwidth | Trouble::Reset | Trouble::RedirectLoop => is_blob,
                _ => true,
            })
            .collect();
        if possible.is_empty() {
            return None;
        }
        let drawn = sky.rng.random_range(0..possible.len());
        let trouble = possible[drawn];
        *sky.seen.entry(trouble).or_default() += 1;
        Some(trouble)
    }

    fn saw(&self, trouble: Trouble) {
        *self.state.lock().unwrap().seen.entry(trouble).or_default() += 1;
    }

    fn below(&self, limit: u64) -> u64 {
        self.state.lock().unwrap().rng.random_range(0..limit)
    }

    /// A token that says until when it is good.
    fn token(&self) -> Response {
        let life = if self.has(Trouble::TokenExpiry) {
            SHORT_TOKEN_LIFE
        } else {
            TOKEN_LIFE
        };
        let until = millis() + u64::try_from(life.as_millis()).unwrap();
        let body =
            serde_json::json!({"token": until.to_string(), "expires_in": TOKEN_LIFE.as_secs()});
        ([("content-type", "application/json")], body.to_string()).into_response()
    }

    /// The challenge, unless the request has a token that is good.
    fn challenge(&self, request: &Request) -> Option<Response> {
        let proof = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let until = proof.and_then(|proof| proof.strip_prefix("Bearer ")?.parse::<u64>().ok());
        if let Some(until) = until {
            if millis() < until {
                return None;
            }
            self.saw(Trouble::TokenExpiry);
        }
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"chaos\"",
            self.addr
        );
        Some((StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, realm)]).into_response())
    }

    /// The same question to the registry.
    fn ask(&self, request: &Request) -> reqwest::RequestBuilder {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let url = format!("http://{}{path}", self.registry);
        let mut asked = self.client.request(request.method().clone(), url);
        for name in [ACCEPT, RANGE] {
            for value in request.headers().get_all(&name) {
                asked = asked.header(name.clone(), value);
            }
        }
        asked
    }
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/token" {
        return shared.token();
    }
    if let Some(challenge) = shared.challenge(&request) {
        return challenge;
    }
    let is_blob = path.contains("/blobs/");
    let trouble = if path == "/v2/" {
        None
    } else {
        shared.draw(is_blob)
    };
    match trouble {
        Some(Trouble::Latency) => {
            tokio::time::sleep(Duration::from_millis(100 + shared.below(1_900))).await;
        }
        Some(Trouble::TooManyRequests) => {
            let after = (1 + shared.below(2)).to_string();
            return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, after)]).into_response();
        }
        Some(Trouble::ServerError) => {
            let status = [500, 502, 503, 504][usize::try_from(shared.below(4)).unwrap()];
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Some(Trouble::RedirectLoop) => {
            let there = format!("http://{}{path}?hop={}", shared.addr, shared.below(1 << 40));
            return (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, there)]).into_response();
        }
        _ => {}
    }
    let asked = shared.ask(&request);
    match asked.send().await {
        Ok(fetched) => passed_on(fetched, trouble).await,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// The registry's answer, or what the trouble makes of it.
async fn passed_on(fetched: reqwest::Response, trouble: Option<Trouble>) -> Response {
    let (status, headers) = (fetched.status(), fetched.headers().clone());
    let length = headers.get(CONTENT_LENGTH).cloned();
    let Ok(bytes) = fetched.bytes().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let half = bytes.len() / 2;
    let (body, length) = match trouble {
        Some(Trouble::Truncated) => (
            Body::from(bytes.slice(..half)),
            Some(HeaderValue::from(half)),
        ),
        Some(Trouble::Corrupted) if !bytes.is_empty() => {
            let mut wrong = bytes.to_vec();
            wrong[half] ^= 1;
            (Body::from(wrong), length)
        }
        Some(Trouble::Reset) => (cut(bytes.slice(..half)), length),
        Some(Trouble::Bandwidth) => (slowly(bytes, thin_pause()), length),
        Some(Trouble::SlowLoris) => (hardly(bytes.slice(..half)), length),
        _ => (Body::from(bytes), length),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kept = |name: &HeaderName| {
        name == "content-type" || name == "content-range" || name == "docker-content-digest"
    };
    for (name, value) in headers.iter().filter(|(name, _)| kept(name)) {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    if trouble.is_some() {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn thin_pause() -> Duration {
    Duration::from_secs(1) * u32::try_from(PIECE).unwrap() / u32::try_from(THIN).unwrap()
}

/// A body whose connection ends before it does.
fn cut(bytes: Bytes) -> Body {
    let end = std::io::Error::other("cut");
    // Else the connection ends before anything of it was sent.
    let late = futures::stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(end)
    });
    Body::from_stream(futures::stream::iter([Ok(bytes)]).chain(late))
}

/// A body in pieces with a pause before each.
fn slowly(bytes: Bytes, pause: Duration) -> Body {
    let pieces: Vec<Bytes> = bytes.chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let pieces = futures::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, std::io::Error>(piece)
    });
    Body::from_stream(pieces)
}

/// A body that comes a byte a second, and then not at all.
fn hardly(bytes: Bytes) -> Body {
    let few = usize::try_from(LORIS.as_secs()).unwrap().min(bytes.len());
    let bytes = (0..few).map(move |at| bytes.slice(at..=at));
    let sent = futures::stream::iter(bytes).then(|byte| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(byte)
    });
    let end = futures::stream::once(async { Err(std::io::Error::other("the end of patience")) });
    Body::from_stream(sent.chain(end))
}
