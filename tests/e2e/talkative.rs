//! A registry that talks too much: its token server's address, its redirects and its refusals hold secrets.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::images::Image;

/// What stands in every secret of the test.
pub(crate) const MARK: &str = "PLANTED";
/// The password that opens it, for `bob`.
pub(crate) const PASSWORD: &str = "PLANTED-docker-password";

/// Repositories, all under `team/`, and what they do.
/// - `good` redirects to where its blobs are;
/// - `broken` redirects to where nobody listens;
/// - `refused` refuses whatever it is shown, and repeats it;
/// - `odd` has a token server that is no HTTP.
pub(crate) struct Talkative {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    port: u16,
    image: Image,
    /// Every request, with its headers: what was really sent.
    heard: Mutex<String>,
}

impl Talkative {
    pub(crate) async fn start(image: Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            port,
            image,
            heard: Mutex::default(),
        });
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, shared, task }
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Everything that it was sent.
    pub(crate) fn heard(&self) -> String {
        self.shared.heard.lock().unwrap().clone()
    }
}

impl Drop for Talkative {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `Authorization: Basic …` of this user and password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}")
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let shown = headers
        .get(header::AUTHORIZATION)
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    let said = format!("{uri} {headers:?} {shown}\n");
    shared.heard.lock().unwrap().push_str(&said);
    let port = shared.port;
    let path = uri.path().to_owned();
    if path == "/token" {
        return token(&shown);
    }
    if let Some(digest) = path.strip_prefix("/store/") {
        let blobs = &shared.image.blobs;
        return match blobs.iter().find(|blob| blob.digest == digest) {
            Some(blob) => Response::new(Body::from(blob.bytes.clone())),
            None => refuse(StatusCode::NOT_FOUND, "no such blob"),
        };
    }
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "v2", "team", repository, kind, name] = parts[..] else {
        return refuse(StatusCode::NOT_FOUND, "no such place");
    };
    match (repository, kind) {
        ("odd", _) => challenge(&format!(
            "ftp://bob:{MARK}-realm-password@127.0.0.1/token?key={MARK}-realm-key"
        )),
        ("refused", _) if !shown.is_empty() => {
            refuse(StatusCode::FORBIDDEN, &format!("{shown} may not pull this"))
        }
        _ if shown != format!("Bearer {MARK}-access-token") => challenge(&format!(
            "http://127.0.0.1:{port}/token?session={MARK}-challenge"
        )),
        (_, "manifests") => {
            let target = &shared.image.target;
            let mut response = Response::new(Body::from(target.bytes.clone()));
            let said = response.headers_mut();
            said.insert(header::CONTENT_TYPE, target.media_type.parse().unwrap());
            said.insert("docker-content-digest", target.digest.parse().unwrap());
            response
        }
        ("broken", _) => redirect(&format!(
            "http://127.0.0.1:1/{name}?signature={MARK}-broken"
        )),
        _ => redirect(&format!(
            "http://127.0.0.1:{port}/store/{name}?signature={MARK}-signature"
        )),
    }
}

fn token(shown: &str) -> Response<Body> {
    let token = |name: &str| {
        let body = json!({ "token": format!("{MARK}-{name}"), "refresh_token": format!("{MARK}-refresh") });
        Response::new(Body::from(body.to_string()))
    };
    if shown == basic("bob", PASSWORD) {
        return token("access-token");
    }
    // Good for nothing, so that the last word is a registry's that repeats what it was shown.
    if shown.is_empty() {
        return token("anonymous-token");
    }
    refuse(StatusCode::UNAUTHORIZED, &format!("{shown} is wrong"))
}

fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    let body = json!({ "errors": [{ "code": "DENIED", "message": message }] });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
}

fn challenge(realm: &str) -> Response<Body> {
    let mut response = refuse(StatusCode::UNAUTHORIZED, "authentication required");
    let value = format!("Bearer realm=\"{realm}\",service=\"talkative\"");
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, value.parse().unwrap());
    response
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response
        .headers_mut()
        .insert(header::LOCATION, to.parse().unwrap());
    response
}
