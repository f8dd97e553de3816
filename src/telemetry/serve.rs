//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Says whether a role can do its work now, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

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

#[derive(Clone)]
struct Told {
    registry: Registry,
    ready: Readiness,
}

/// Serves until `shutdown`, in the background; returns the address it got.
///
/// # Errors
/// The address is taken or not ours.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    ready: Readiness,
    shutdown: CancellationToken,
) -> Result<SocketAddr, ServeError> {
    let refused = |source| ServeError { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(readyz))
        .with_state(Told { registry, ready });
    tokio::spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    tracing::info!(address = %bound, "metrics and health are served");
    Ok(bound)
}

async fn metrics(State(told): State<Told>) -> Response {
    match TextEncoder::new().encode_to_string(&told.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(told): State<Told>) -> Response {
    match (told.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[tokio::test]
    async fn a_role_is_ready_when_it_says_so() {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        let ready: Readiness = Arc::new(move || {
            if seen.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("no broker".to_owned())
            }
        });
        let registry = crate::telemetry::process::registry().unwrap();
        let shutdown = CancellationToken::new();
        let address = serve(
            "127.0.0.1:0".parse().unwrap(),
            registry,
            ready,
            shutdown.clone(),
        )
        .await
        .unwrap();
        let not_ready = get(address, "/readyz").await;
        assert!(
            not_ready.starts_with("HTTP/1.1 503") && not_ready.ends_with("no broker\n"),
            "{not_ready}"
        );
        flag.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/healthz").await.ends_with("ok\n"));
        assert!(
            get(address, "/metrics")
                .await
                .contains("process_resident_memory_bytes")
        );
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let registry = Registry::new();
        let error = serve(
            address,
            registry,
            Arc::new(|| Ok(())),
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
