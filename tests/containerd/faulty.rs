//! A registry that does things wrong on purpose.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinHandle;

use super::support::images::Image;

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// One byte in the middle is another.
    Corrupt,
    /// The connection ends after so many bytes.
    CutAfter(usize),
    /// All of it comes, whatever range was asked for.
    NoRange,
    /// A status in place of an answer.
    Status(u16),
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
    let start: usize = match (&range, fault) {
        (None, _) | (_, Some(Fault::NoRange)) => 0,
        (Some(range), _) => {
            let start = range.strip_prefix("bytes=").unwrap().trim_end_matches('-');
            start.parse().unwrap()
        }
    };
    let mut rest = bytes.slice(start..).to_vec();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, media_type.parse().unwrap());
    headers.insert(CONTENT_LENGTH, rest.len().into());
    let total = bytes.len();
    let mut status = StatusCode::OK;
    if start > 0 {
        status = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{total}", total - 1);
        headers.insert(CONTENT_RANGE, range.parse().unwrap());
    }
    let body = match fault {
        Some(Fault::Status(status)) => {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Some(Fault::Corrupt) => {
            let middle = rest.len() / 2;
            rest[middle] ^= 1;
            Body::from(rest)
        }
        Some(Fault::CutAfter(bytes)) => {
            rest.truncate(bytes);
            let cut = std::io::Error::other("cut");
            Body::from_stream(futures::stream::iter([Ok(Bytes::from(rest)), Err(cut)]))
        }
        Some(Fault::NoRange) | None => Body::from(rest),
    };
    (status, headers, body).into_response()
}
