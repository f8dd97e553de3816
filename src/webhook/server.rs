//! The shell: connections, requests, and the word to the broker.
//!
//! A request holds one of a bounded number of places from the last byte of its body to its answer. All of its pushes
//! are published at once and their acknowledgements awaited together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::header::NATS_MESSAGE_ID;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
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
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::admit::{Admitted, admit, message_id};
use super::auth::{self, Shown};
use super::body::{Bodies, BodyError};
use super::connections::{Connection, Connections};
use super::keys::KeyRing;
use super::metrics::{Metrics, NO_SOURCE};
use super::settings::SourceSettings;
use super::source::{self, Source};
use super::tls::Certificate;
use super::warnings::Warnings;
use crate::bus::Bus;
use crate::domain::trace::{TRACEPARENT, TraceContext};
use crate::telemetry::listen::listen;
use crate::telemetry::trace::{self, Kind};
use crate::wire::push::Push;

/// Where webhooks are posted; the source follows.
const PATH: &str = "/webhooks/";
/// Most connections at once, unless the settings say; for one more, the one that is waited for longest goes.
pub const MAX_CONNECTIONS: usize = 1_024;
/// How long a handshake, and the head of a request, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may go on after the role was told to end.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// When a sender that was turned away is asked to try again, in seconds.
const RETRY_AFTER: &str = "1";
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
    /// Most requests at once whose bodies are there; one more is turned away.
    pub max_in_flight: usize,
    /// Most connections at once.
    pub max_connections: usize,
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
    connections: Arc<Connections>,
    bodies: Bodies,
    publish_timeout: Duration,
    began: Instant,
    warnings: Warnings,
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
        let listener = listen(settings.listen)
            .await
            .map_err(|error| ServerError::Listen(settings.listen, error))?;
        for source in settings.sources.keys() {
            metrics.begin(source.as_str());
        }
        let with_keys = |settings: SourceSettings| {
            let keys = KeyRing::new(settings.keys.clone());
            (settings.source, (settings, keys))
        };
        let shared = Arc::new(Shared {
            sources: settings.sources.into_values().map(with_keys).collect(),
            bus,
            metrics,
            places: Semaphore::new(settings.max_in_flight),
            connections: Connections::new(settings.max_connections),
            bodies: Bodies::new(settings.max_body, settings.request_timeout),
            publish_timeout: settings.publish_timeout,
            began: Instant::now(),
            warnings: Warnings::default(),
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
        let tracker = TaskTracker::new();
        loop {
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
            let entered = tokio::select! {
                entered = self.shared.connections.enter() => entered,
                () = shutdown.cancelled() => break,
            };
            let Some(place) = entered.map(Arc::new) else {
                break;
            };
            let tls = self.certificate.as_ref().map(Certificate::current);
            let (shared, shutdown) = (Arc::clone(&self.shared), shutdown.clone());
            tracker.spawn(async move {
                tokio::select! {
                    () = connection(stream, tls, shared, Arc::clone(&place), shutdown) => {}
                    () = place.closed() => tracing::debug!("a connection made room for another"),
                }
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
    place: Arc<Connection>,
    shutdown: CancellationToken,
) {
    // An answer is one small write, which waiting for more would only delay.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return serve(stream, shared, place, shutdown).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    match tokio::time::timeout(HEAD_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => serve(stream, shared, place, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve<S>(
    stream: S,
    shared: Arc<Shared>,
    place: Arc<Connection>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, place) = (Arc::clone(&shared), Arc::clone(&place));
        async move {
            let answer = answer(&shared, &place, request).await;
            place.mark_waiting();
            Ok::<_, std::convert::Infallible>(answer)
        }
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

async fn answer(
    shared: &Shared,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Body> {
    let (source, answer) = handle(shared, connection, request).await;
    let label = source.map_or(NO_SOURCE, Source::as_str);
    let requests = shared
        .metrics
        .requests
        .with_label_values(&[label, answer.outcome]);
    requests.inc();
    if !matches!(answer.outcome, "published" | "nothing")
        && let Some(left_out) = shared.warnings.admit(shared.began.elapsed())
    {
        let (outcome, body) = (answer.outcome, &answer.body);
        tracing::warn!(source = label, outcome, %body, left_out, "a webhook was not taken");
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

async fn handle(
    shared: &Shared,
    connection: &Connection,
    request: Request<Incoming>,
) -> (Option<Source>, Answer) {
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
    let body = match shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return (source, without_body(&error)),
    };
    connection.mark_busy();
    let authorization = head.headers.get(header::AUTHORIZATION);
    let keys = match keys.of(authorization.map(HeaderValue::as_bytes)).await {
        Ok(keys) => keys,
        Err(error) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return (source, Answer::failed(status, "unavailable", error));
        }
    };
    let Ok(_place) = shared.places.try_acquire() else {
        let say = "too many requests at once; try again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return (source, Answer::failed(status, "busy", say));
    };
    let shown = Shown {
        path: secret,
        headers: &head.headers,
        body: &body.bytes,
        now: now(),
    };
    if let Err(error) = auth::check(&settings.proof, shown, &keys) {
        let answer = Answer::failed(StatusCode::UNAUTHORIZED, "unproven", error);
        return (source, answer);
    }
    let reading = match source::read(settings.source, &head.headers, &body.bytes) {
        Ok(reading) => reading,
        Err(error) => {
            let answer = Answer::failed(StatusCode::BAD_REQUEST, "malformed", error);
            return (source, answer);
        }
    };
    let admitted = admit(settings, reading);
    let (span, traceparent) = span(settings.source, &head.headers);
    let answer = publish(shared, settings, admitted, traceparent);
    (source, answer.instrument(span).await)
}

/// A request that was proven, in the trace that it says it belongs to; and what its pushes say.
fn span(source: Source, headers: &axum::http::HeaderMap) -> (Span, Option<TraceContext>) {
    let span = tracing::error_span!(
        "webhook",
        source = source.as_str(),
        trace_id = Empty,
        pushes = Empty,
        error = Empty
    );
    let said = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    let origin = said.and_then(trace::read).or_else(trace::new_trace);
    trace::join(&span, origin, Kind::Server);
    let traceparent = trace::context(&span, origin);
    (span, traceparent)
}

fn without_body(error: &BodyError) -> Answer {
    let (status, outcome) = match error {
        BodyError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        BodyError::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "too-slow"),
        BodyError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        BodyError::CutOff(_) => (StatusCode::BAD_REQUEST, "cut-off"),
    };
    Answer::failed(status, outcome, error)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

async fn publish(
    shared: &Shared,
    settings: &SourceSettings,
    admitted: Admitted,
    traceparent: Option<TraceContext>,
) -> Answer {
    let label = settings.source.as_str();
    let count = |outcome: &str, number: usize| {
        let counter = shared.metrics.pushes.with_label_values(&[label, outcome]);
        counter.inc_by(u64::try_from(number).unwrap_or(u64::MAX));
    };
    for refused in &admitted.refused {
        if let Some(left_out) = shared.warnings.admit(shared.began.elapsed()) {
            tracing::warn!(source = label, refused, left_out, "a push was refused");
        }
    }
    let number = admitted.pushes.len();
    if number > MAX_PUSHES {
        let say = format!("{number} pushes in one request are more than {MAX_PUSHES}");
        return Answer::failed(StatusCode::PAYLOAD_TOO_LARGE, "too-large", say);
    }
    if number > 0 {
        let began = tokio::time::Instant::now();
        Span::current().record("pushes", number);
        let storing = store(shared, &admitted.pushes, traceparent);
        let stored = tokio::time::timeout(shared.publish_timeout, storing);
        let stored = stored.await.unwrap_or_else(|_| {
            let limit = shared.publish_timeout;
            Err(format!(
                "the broker did not answer within {limit:?} (--publish-timeout)"
            ))
        });
        if let Err(error) = stored {
            trace::fail(&Span::current(), &error);
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
async fn store(
    shared: &Shared,
    pushes: &[Push],
    traceparent: Option<TraceContext>,
) -> Result<(), String> {
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
        if let Some(traceparent) = traceparent {
            headers.insert(TRACEPARENT, traceparent.to_string());
        }
        let sent = bus.store(bus.subjects.push(), headers, body.into()).await;
        let acknowledged = sent.map_err(|error| error.to_string())?.await;
        acknowledged.map(drop).map_err(|error| error.to_string())
    });
    let all = try_join_all(stored).await;
    all.map(drop)
        .map_err(|error| format!("the broker does not have the push: {error}"))
}
