//! The shell: connections, requests, and the word to the broker.
//!
//! A request holds one of a bounded number of places from its first byte to its answer. All of its pushes are
//! published at once and their acknowledgements awaited together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::header::NATS_MESSAGE_ID;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::try_join_all;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admit::{Admitted, admit, message_id};
use super::auth::{self, Shown};
use super::keys::KeyRing;
use super::metrics::{Metrics, NO_SOURCE};
use super::settings::SourceSettings;
use super::source::{self, Source};
use super::tls::Certificate;
use crate::bus::Bus;
use crate::wire::push::Push;

/// Where webhooks are posted; the source follows.
const PATH: &str = "/webhooks/";
/// Most connections at once; one more waits until one ends.
const MAX_CONNECTIONS: usize = 1_024;
/// How long a handshake, and the head of a request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may go on after the role was told to end.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// When a sender that was turned away is asked to try again, in seconds.
const RETRY_AFTER: &str = "1";
/// Most bytes of a body that are read when they are not kept.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;
/// Most pushes one request may hold.
const MAX_PUSHES: usize = 1_000;

/// What the receiver is told.
pub struct ServerSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its certificate and key in PEM; without them it speaks plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Who may tell.
    pub sources: BTreeMap<Source, SourceSettings>,
    /// Largest body in bytes.
    pub max_body: usize,
    /// How long a body may take to come.
    pub request_timeout: Duration,
    /// How long the broker may take to have the pushes of a request.
    pub publish_timeout: Duration,
    /// Most requests at once; one more is turned away.
    pub max_in_flight: usize,
}

/// Why the receiver cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The certificate cannot be used.
    #[error("cannot use the certificate: {0}; check --tls-cert and --tls-key")]
    Certificate(String),
}

/// A receiver that has its port.
pub struct Server {
    listener: TcpListener,
    certificate: Option<Certificate>,
    shared: Arc<Shared>,
}

struct Shared {
    sources: BTreeMap<Source, (SourceSettings, KeyRing)>,
    bus: Arc<OnceLock<Bus>>,
    metrics: Metrics,
    places: Semaphore,
    max_body: usize,
    request_timeout: Duration,
    publish_timeout: Duration,
}

impl Server {
    /// Takes the port. `bus` may be set later; until then, requests are told to come again.
    ///
    /// # Errors
    /// The port or the certificate cannot be had.
    pub async fn bind(
        settings: ServerSettings,
        bus: Arc<OnceLock<Bus>>,
        metrics: Metrics,
    ) -> Result<Self, ServerError> {
        let certificate = settings
            .tls
            .map(|(chain, key)| Certificate::load(chain, key))
            .transpose()
            .map_err(ServerError::Certificate)?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| ServerError::Listen(settings.listen, error))?;
        let with_keys = |settings: SourceSettings| {
            let keys = KeyRing::new(settings.keys.clone());
            (settings.source, (settings, keys))
        };
        let shared = Arc::new(Shared {
            sources: settings.sources.into_values().map(with_keys).collect(),
            bus,
            metrics,
            places: Semaphore::new(settings.max_in_flight),
            max_body: settings.max_body,
            request_timeout: settings.request_timeout,
            publish_timeout: settings.publish_timeout,
        });
        Ok(Self {
            listener,
            certificate,
            shared,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and then lets requests come to their end.
    pub async fn run(self, shutdown: CancellationToken) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tracker = TaskTracker::new();
        loop {
            let Ok(place) = Arc::clone(&connections).acquire_owned().await else {
                break;
            };
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Most often there are too many open files; others of ours will be closed.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            let tls = self.certificate.as_ref().map(Certificate::current);
            let (shared, shutdown) = (Arc::clone(&self.shared), shutdown.clone());
            tracker.spawn(async move {
                connection(stream, tls, shared, shutdown).await;
                drop(place);
            });
        }
        tracker.close();
        if tokio::time::timeout(LAST_REQUESTS, tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!("requests were cut off at the end");
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    // An answer is one small write, which waiting for more would only delay.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return serve(stream, shared, shutdown).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    match tokio::time::timeout(HEAD_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => serve(stream, shared, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(answer(&shared, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What a request comes to.
struct Answer {
    status: StatusCode,
    /// In metrics.
    outcome: &'static str,
    body: Value,
}

impl Answer {
    fn failed(status: StatusCode, outcome: &'static str, error: impl std::fmt::Display) -> Self {
        Self {
            status,
            outcome,
            body: json!({ "error": error.to_string() }),
        }
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let (source, answer) = match shared.places.try_acquire() {
        Ok(_place) => handle(shared, request).await,
        Err(_) => {
            let say = "too many requests at once; try again";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            (None, Answer::failed(status, "busy", say))
        }
    };
    let label = source.map_or(NO_SOURCE, Source::as_str);
    let requests = shared
        .metrics
        .requests
        .with_label_values(&[label, answer.outcome]);
    requests.inc();
    if !matches!(answer.outcome, "published" | "nothing") {
        let (outcome, body) = (answer.outcome, &answer.body);
        tracing::warn!(source = label, outcome, %body, "a webhook was not taken");
    }
    let mut response = Response::new(Body::from(answer.body.to_string()));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

async fn handle(shared: &Shared, request: Request<Incoming>) -> (Option<Source>, Answer) {
    let (head, body) = request.into_parts();
    let named = head.uri.path().strip_prefix(PATH).unwrap_or_default();
    let (name, secret) = match named.split_once('/') {
        Some((name, secret)) => (name, Some(secret)),
        None => (named, None),
    };
    let known = name
        .parse::<Source>()
        .ok()
        .and_then(|source| shared.sources.get(&source));
    let Some((settings, keys)) = known else {
        let say = "there is no such source here; webhooks are posted to /webhooks/SOURCE, and a source has to be in the file of --webhook-config";
        return (None, Answer::failed(StatusCode::NOT_FOUND, "unknown", say));
    };
    let source = Some(settings.source);
    if head.method != Method::POST {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return (
            source,
            Answer::failed(status, "not-post", "webhooks are posted"),
        );
    }
    let body = match whole(shared, body).await {
        Ok(body) => body,
        Err(answer) => return (source, answer),
    };
    let authorization = head.headers.get(header::AUTHORIZATION);
    let keys = keys.of(authorization.map(HeaderValue::as_bytes)).await;
    let shown = Shown {
        path: secret,
        headers: &head.headers,
        body: &body,
        now: now(),
    };
    if let Err(error) = auth::check(&settings.proof, shown, &keys) {
        let answer = Answer::failed(StatusCode::UNAUTHORIZED, "unproven", error);
        return (source, answer);
    }
    let reading = match source::read(settings.source, &head.headers, &body) {
        Ok(reading) => reading,
        Err(error) => {
            let answer = Answer::failed(StatusCode::BAD_REQUEST, "malformed", error);
            return (source, answer);
        }
    };
    (
        source,
        publish(shared, settings, admit(settings, reading)).await,
    )
}

/// The body, within its limits.
async fn whole(shared: &Shared, body: Incoming) -> Result<Bytes, Answer> {
    let reading = read_body(body, shared.max_body);
    match tokio::time::timeout(shared.request_timeout, reading).await {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(Answer::failed(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!(
                "the body is larger than {} bytes (--max-body)",
                shared.max_body
            ),
        )),
        Ok(Err(error)) => Err(Answer::failed(StatusCode::BAD_REQUEST, "cut-off", error)),
        Err(_) => Err(Answer::failed(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            format!(
                "the body did not come within {:?} (--request-timeout)",
                shared.request_timeout
            ),
        )),
    }
}

/// The body, or nothing if it is larger than `most` bytes. What is too large is read to its end, within bounds
/// and without being kept: a sender that is cut off while it sends does not see the answer.
async fn read_body(body: Incoming, most: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut chunks = Body::new(body).into_data_stream();
    let (mut kept, mut length) = (BytesMut::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        length = length.saturating_add(chunk.len());
        if length <= most {
            kept.extend_from_slice(&chunk);
        } else if length > MAX_DISCARDED {
            break;
        }
    }
    Ok((length <= most).then(|| kept.freeze()))
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

async fn publish(shared: &Shared, settings: &SourceSettings, admitted: Admitted) -> Answer {
    let label = settings.source.as_str();
    let count = |outcome: &str, number: usize| {
        let counter = shared.metrics.pushes.with_label_values(&[label, outcome]);
        counter.inc_by(u64::try_from(number).unwrap_or(u64::MAX));
    };
    for refused in &admitted.refused {
        tracing::warn!(source = label, refused, "a push was refused");
    }
    let number = admitted.pushes.len();
    if number > MAX_PUSHES {
        let say = format!("{number} pushes in one request are more than {MAX_PUSHES}");
        return Answer::failed(StatusCode::PAYLOAD_TOO_LARGE, "too-large", say);
    }
    if number > 0 {
        let began = tokio::time::Instant::now();
        let stored = tokio::time::timeout(shared.publish_timeout, store(shared, &admitted.pushes));
        let stored = stored.await.unwrap_or_else(|_| {
            let limit = shared.publish_timeout;
            Err(format!(
                "the broker did not answer within {limit:?} (--publish-timeout)"
            ))
        });
        if let Err(error) = stored {
            return Answer::failed(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error);
        }
        let publish = shared.metrics.publish.with_label_values(&[label]);
        publish.observe(began.elapsed().as_secs_f64());
    }
    count("published", number);
    count("ignored", admitted.ignored.len());
    count("refused", admitted.refused.len());
    let (status, outcome) = if number > 0 {
        (StatusCode::ACCEPTED, "published")
    } else {
        (StatusCode::OK, "nothing")
    };
    let body =
        json!({ "published": number, "ignored": admitted.ignored, "refused": admitted.refused });
    Answer {
        status,
        outcome,
        body,
    }
}

/// Stores all pushes; returns when the broker has every one.
async fn store(shared: &Shared, pushes: &[Push]) -> Result<(), String> {
    let connected = |bus: &&Bus| bus.client.connection_state() == State::Connected;
    // What is published while there is no connection would be sent later, after we said that it was not.
    let Some(bus) = shared.bus.get().filter(connected) else {
        return Err("the broker is not connected".to_owned());
    };
    let stored = pushes.iter().map(|push| async move {
        let body = serde_json::to_vec(push).map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        if let Some(id) = message_id(push) {
            headers.insert(NATS_MESSAGE_ID, id.as_str());
        }
        let sent = bus.store(bus.subjects.push(), headers, body.into()).await;
        let acknowledged = sent.map_err(|error| error.to_string())?.await;
        acknowledged.map(drop).map_err(|error| error.to_string())
    });
    let all = try_join_all(stored).await;
    all.map(drop)
        .map_err(|error| format!("the broker does not have the push: {error}"))
}
