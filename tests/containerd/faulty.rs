//! A registry that does things wrong on purpose.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::support::images::Image;

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// One byte in the middle is another.
    Corrupt,
    /// The first byte is another, so that the rest cannot be unpacked.
    CorruptFirst,
    /// The connection ends after so many bytes.
    CutAfter(usize),
    /// All of it comes, whatever range was asked for.
    NoRange,
    /// A status in place of an answer.
    Status(u16),
    /// The same, with when to come again.
    Later(u16, &'static str),
    /// The answer ends after so many bytes as if that were all, with their number in front or without.
    Short(usize, Length),
    /// Some bytes more come, with their number in front or without.
    Long(Length),
    /// Whatever range was asked for, another one comes, and says so.
    OtherRange,
    /// After so many bytes, the rest waits until it is let go.
    HoldAfter(usize),
    /// A redirect to the same place.
    Circle,
    /// A redirect to another host, which has everything.
    Elsewhere,
}

/// Whether an answer says how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    Said,
    NotSaid,
}

/// Tokens that the registry wants, each good for so many requests.
#[derive(Default)]
struct Tokens {
    uses: usize,
    issued: usize,
    left: usize,
}

/// A registry at a loopback port with one image, `app:1`.
pub struct Faulty {
    addr: String,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    /// Media type and bytes, by what follows the last slash.
    things: HashMap<String, (String, Bytes)>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    /// Every request for a blob: digest and range.
    blobs: Mutex<Vec<(String, Option<String>)>>,
    /// What `Authorization` has to be.
    wanted: Mutex<Option<String>>,
    tokens: Mutex<Option<Tokens>>,
    elsewhere: Mutex<String>,
    let_go: Semaphore,
}

impl Faulty {
    pub async fn serve(image: &Image) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let all = image
            .blobs
            .iter()
            .chain(&image.manifests)
            .chain([&image.target]);
        let mut things: HashMap<_, _> = all
            .map(|blob| {
                (
                    blob.digest.clone(),
                    (blob.media_type.clone(), blob.bytes.clone()),
                )
            })
            .collect();
        things.insert("1".to_owned(), things[&image.target.digest].clone());
        let shared = Arc::new(Shared {
            things,
            faults: Mutex::default(),
            blobs: Mutex::default(),
            wanted: Mutex::default(),
            tokens: Mutex::default(),
            elsewhere: Mutex::default(),
            let_go: Semaphore::new(0),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            addr,
            shared,
            serving,
        }
    }

    /// `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The image's reference.
    pub fn image(&self) -> String {
        format!("{}/app:1", self.addr)
    }

    /// Has the next answers for a digest or tag go wrong, one fault each.
    pub fn break_next(&self, what: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut planned = self.shared.faults.lock().unwrap();
        planned.entry(what.to_owned()).or_default().extend(faults);
    }

    /// Answers from now on only who has this user name and password.
    pub fn want(&self, user: &str, password: &str) {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        *self.shared.wanted.lock().unwrap() = Some(format!("Basic {pair}"));
    }

    /// Answers from now on only who has a token, which anybody gets, and which is good for so many requests.
    pub fn want_tokens(&self, uses: usize) {
        let tokens = Tokens {
            uses,
            ..Tokens::default()
        };
        *self.shared.tokens.lock().unwrap() = Some(tokens);
    }

    /// How many tokens there were.
    pub fn tokens(&self) -> usize {
        let tokens = self.shared.tokens.lock().unwrap();
        tokens.as_ref().map_or(0, |tokens| tokens.issued)
    }

    /// Lets all go on that waits, or will.
    pub fn let_go(&self) {
        self.shared.let_go.close();
    }

    /// Where [`Fault::Elsewhere`] leads: `host:port`.
    pub fn elsewhere(&self, addr: &str) {
        addr.clone_into(&mut self.shared.elsewhere.lock().unwrap());
    }

    /// The ranges that were asked for of a blob, in order; `None` for all of it.
    pub fn ranges(&self, digest: &str) -> Vec<Option<String>> {
        let blobs = self.shared.blobs.lock().unwrap();
        let of_digest = blobs.iter().filter(|(asked, _)| asked == digest);
        of_digest.map(|(_, range)| range.clone()).collect()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let proof = request.headers().get(AUTHORIZATION);
    let wanted = shared.wanted.lock().unwrap().clone();
    if wanted.is_some_and(|wanted| proof.is_none_or(|proof| *proof != *wanted)) {
        let challenge = [(WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    let path = request.uri().path().to_owned();
    if let Some(answer) = token_answer(&shared, &path, request.headers()) {
        return answer;
    }
    // Some clients look first whether there is a registry at all.
    if path == "/v2/" {
        return StatusCode::OK.into_response();
    }
    let Some((_, name)) = path.rsplit_once('/') else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = request
        .headers()
        .get(RANGE)
        .map(|range| range.to_str().unwrap().to_owned());
    if path.contains("/blobs/") {
        let mut blobs = shared.blobs.lock().unwrap();
        blobs.push((name.to_owned(), range.clone()));
    }
    let Some((media_type, bytes)) = shared.things.get(name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        faults.get_mut(name).and_then(VecDeque::pop_front)
    };
    let redirect = |to: String| (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response();
    match fault {
        Some(Fault::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Fault::Later(status, when)) => {
            (StatusCode::from_u16(status).unwrap(), [(RETRY_AFTER, when)]).into_response()
        }
        Some(Fault::Circle) => redirect(path),
        Some(Fault::Elsewhere) => {
            let host = shared.elsewhere.lock().unwrap().clone();
            redirect(format!("http://{host}{path}"))
        }
        fault => part(&shared, (&media_type, &bytes), range.as_deref(), fault),
    }
}

/// The token server's answer, or the refusal of who has no token that is good.
fn token_answer(shared: &Shared, path: &str, headers: &HeaderMap) -> Option<Response> {
    let mut tokens = shared.tokens.lock().unwrap();
    let tokens = tokens.as_mut()?;
    if path == "/token" {
        tokens.issued += 1;
        tokens.left = tokens.uses;
        let body = format!(r#"{{"token":"t{}"}}"#, tokens.issued);
        return Some(body.into_response());
    }
    let current = format!("Bearer t{}", tokens.issued);
    let is_current = headers
        .get(AUTHORIZATION)
        .is_some_and(|proof| *proof == *current);
    if is_current && tokens.left > 0 {
        tokens.left -= 1;
        return None;
    }
    let host = headers.get(HOST)?.to_str().ok()?;
    let challenge = format!("Bearer realm=\"http://{host}/token\"");
    Some((StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)]).into_response())
}

/// The part that was asked for, or what a fault makes of it.
fn part(
    shared: &Arc<Shared>,
    (media_type, bytes): (&str, &Bytes),
    range: Option<&str>,
    fault: Option<Fault>,
) -> Response {
    let total = bytes.len();
    let asked = range.filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let (start, end) = asked.map_or((0, total), |range| {
        let (start, end) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let last = end.parse().map_or(total, |last: usize| last + 1);
        (start.parse::<usize>().unwrap(), last.min(total))
    });
    let (start, end) = match (fault, asked) {
        (Some(Fault::OtherRange), Some(_)) => (start / 2, end),
        _ => (start, end),
    };
    let mut rest = bytes.slice(start..end).to_vec();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, media_type.parse().unwrap());
    let mut status = StatusCode::OK;
    if asked.is_some() {
        status = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{total}", end - 1);
        headers.insert(CONTENT_RANGE, range.parse().unwrap());
    }
    let mut length = Length::Said;
    let mut cut = false;
    match fault {
        Some(Fault::Corrupt) => {
            let middle = rest.len() / 2;
            rest[middle] ^= 1;
        }
        Some(Fault::CorruptFirst) => rest[0] ^= 1,
        Some(Fault::CutAfter(bytes)) => {
            headers.insert(CONTENT_LENGTH, rest.len().into());
            rest.truncate(bytes);
            cut = true;
        }
        Some(Fault::Short(bytes, said)) => {
            rest.truncate(bytes);
            length = said;
        }
        Some(Fault::Long(said)) => {
            rest.extend([0; 100]);
            length = said;
        }
        _ => {}
    }
    if length == Length::Said && !cut {
        headers.insert(CONTENT_LENGTH, rest.len().into());
    }
    let mut held = Bytes::new();
    if let Some(Fault::HoldAfter(bytes)) = fault {
        held = rest.split_off(bytes).into();
    }
    let piece = Ok(Bytes::from(rest));
    let body = if cut {
        let cut = std::io::Error::other("cut");
        Body::from_stream(futures::stream::iter([piece, Err(cut)]))
    } else {
        // A stream has no length of its own, so that without one said it comes in chunks.
        let shared = shared.clone();
        let rest = async move {
            if !held.is_empty() {
                // It never gives a permit: it is closed.
                let _ = shared.let_go.acquire().await;
            }
            std::io::Result::Ok(held)
        };
        let pieces = futures::stream::iter([piece]).chain(futures::stream::once(rest));
        Body::from_stream(pieces)
    };
    (status, headers, body).into_response()
}
