//! An HTTP server in the test's own process that answers as the test says, and remembers what it was
//! asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Registry, RegistryConfig};
use crate::domain::image::{Digest, ImageRef};

/// One request as the server got it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.target.split('?').next() == Some(path)
    }
}

pub(super) struct Server {
    pub(super) addr: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(
        answer: impl Fn(&Asked) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self::on(listener, answer)
    }

    pub(super) fn on(
        listener: TcpListener,
        answer: impl Fn(&Asked) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        let addr = listener.local_addr().unwrap().to_string();
        let (router, asked) = router(answer);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            addr,
            asked,
            serving,
        }
    }

    /// Every request so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests there were of this kind.
    pub(super) fn count(&self, method: &str, path: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|asked| asked.is(method, path)).count()
    }

    pub(super) fn image(&self) -> ImageRef {
        format!("{}/app:1", self.addr).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The answers of a server as an axum router, and what it will have been asked.
pub(super) fn router(
    answer: impl Fn(&Asked) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (Router, Arc<Mutex<Vec<Asked>>>) {
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let log = asked.clone();
    let handler = move |request: Request| {
        let (answer, log) = (answer.clone(), log.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let request = Asked {
                method: head.method.to_string(),
                target: head.uri.path_and_query().unwrap().to_string(),
                headers: head.headers,
                body: String::from_utf8(body.to_vec()).unwrap(),
            };
            let response = answer(&request);
            log.lock().unwrap().push(request);
            response
        }
    };
    (Router::new().fallback(handler), asked)
}

pub(super) fn status(status: u16) -> Response<Body> {
    reply(status, &[], "")
}

pub(super) fn reply(
    status: u16,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// A manifest that is good for a resolve, and the answer to `HEAD` or `GET` for it.
pub(super) const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

pub(super) fn manifest() -> Response<Body> {
    let digest = Digest::of(MANIFEST.as_bytes()).to_string();
    let headers = [
        ("docker-content-digest", digest.as_str()),
        ("content-type", super::manifest::OCI_MANIFEST),
    ];
    reply(200, &headers, MANIFEST)
}

/// A client of a node without any set-up of its own.
pub(super) fn bare_registry() -> Registry {
    Registry::new(RegistryConfig::default())
}
