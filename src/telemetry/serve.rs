//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

use super::health::{Liveness, Readiness};
use super::listen::listen;

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {address}: {source}; choose another address with --metrics-listen, or `off`"
)]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: std::io::Error,
}

/// What is served.
#[derive(Clone)]
pub struct Served {
    /// The metrics.
    pub registry: Registry,
    /// What `/readyz` asks.
    pub ready: Readiness,
    /// What `/healthz` asks.
    pub live: Liveness,
}

/// Serves until `shutdown`, in the background; returns the address it got.
///
/// # Errors
/// The address is taken or not ours.
pub async fn serve(
    address: SocketAddr,
    served: Served,
    shutdown: CancellationToken,
) -> Result<SocketAddr, ServeError> {
    let refused = |source| ServeError { address, source };
    let listener = listen(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(served);
    tokio::spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    tracing::info!(address = %bound, "metrics and health are served");
    Ok(bound)
}

async fn metrics(State(served): State<Served>) -> Response {
    // So that `prewarm_ready` tells of now. What does not hold is in it, and no reason to serve nothing.
    let _ = served.ready.ask().await;
    match TextEncoder::new().encode_to_string(&served.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(served): State<Served>) -> Response {
    answer((served.live)(), "ok\n")
}

async fn readyz(State(served): State<Served>) -> Response {
    answer(served.ready.ask().await, "ready\n")
}

fn answer(found: Result<(), String>, well: &'static str) -> Response {
    match found {
        Ok(()) => well.into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::health::Condition;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    async fn get(address: SocketAddr, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn says(flag: &Arc<AtomicBool>, otherwise: &'static str) -> Result<(), String> {
        let holds = flag.load(Ordering::Relaxed);
        holds.then_some(()).ok_or_else(|| otherwise.to_owned())
    }

    fn served(ready: &Arc<AtomicBool>, live: &Arc<AtomicBool>) -> Served {
        let (ready, live) = (Arc::clone(ready), Arc::clone(live));
        let registry = crate::telemetry::process::registry().unwrap();
        let ask = move || std::future::ready(says(&ready, "no broker"));
        let conditions = vec![Condition::new("broker", ask)];
        Served {
            ready: Readiness::new(conditions, &registry).unwrap(),
            live: Arc::new(move || says(&live, "it stands")),
            registry,
        }
    }

    #[tokio::test]
    async fn a_role_is_ready_and_alive_when_it_says_so() {
        let (ready, live) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let shutdown = CancellationToken::new();
        let here = "127.0.0.1:0".parse().unwrap();
        let address = serve(here, served(&ready, &live), shutdown.clone());
        let address = address.await.unwrap();
        let not_ready = get(address, "/readyz").await;
        assert!(
            not_ready.starts_with("HTTP/1.1 503") && not_ready.ends_with("broker: no broker\n"),
            "{not_ready}"
        );
        let metrics = get(address, "/metrics").await;
        assert!(
            metrics.contains("process_resident_memory_bytes")
                && metrics.contains("prewarm_ready{condition=\"broker\"} 0"),
            "{metrics}"
        );
        assert!(get(address, "/healthz").await.ends_with("ok\n"));
        live.store(false, Ordering::Relaxed);
        let stands = get(address, "/healthz").await;
        assert!(
            stands.starts_with("HTTP/1.1 503") && stands.ends_with("it stands\n"),
            "{stands}"
        );
        shutdown.cancel();

        // Another, since an answer is good for a while.
        ready.store(true, Ordering::Relaxed);
        let shutdown = CancellationToken::new();
        let address = serve(here, served(&ready, &live), shutdown.clone());
        let now = get(address.await.unwrap(), "/readyz").await;
        assert!(now.starts_with("HTTP/1.1 200"), "{now}");
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve(
            address,
            served(&Arc::default(), &Arc::default()),
            CancellationToken::new(),
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--metrics-listen"),
            "{error}"
        );
    }
}
