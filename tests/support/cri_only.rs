//! A runtime of which only CRI is to be had: a socket before containerd that passes on what kubelet calls, and answers
//! everything else as a server that does not have it. What CRI-O looks like to a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use containerd_client::tonic::Status;
use containerd_client::tonic::body::Body;
use containerd_client::tonic::client::GrpcService;
use containerd_client::tonic::service::Routes;
use containerd_client::tonic::transport::{Channel, Server};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// The services that CRI consists of.
const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1.RuntimeService/"];

/// A socket that ends with its value.
#[derive(Debug)]
pub struct CriOnly {
    socket: PathBuf,
    pulls: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    channel: Channel,
    pulls: Arc<AtomicU64>,
}

impl CriOnly {
    /// A socket at `socket` that passes CRI on to the runtime behind `channel`.
    pub fn before(channel: Channel, socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket of one's own");
        let pulls = Arc::<AtomicU64>::default();
        let shared = Shared {
            channel,
            pulls: pulls.clone(),
        };
        let routes = Routes::from(Router::new().fallback(pass).with_state(shared));
        let connections = futures::stream::unfold(listener, async |listener| {
            let connection = listener.accept().await.map(|(stream, _)| stream);
            Some((connection, listener))
        });
        let serving = tokio::spawn(async move {
            let served = Server::builder().add_routes(routes);
            served
                .serve_with_incoming(connections)
                .await
                .expect("the proxy of CRI to serve");
        });
        Self {
            socket: socket.to_owned(),
            pulls,
            serving,
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// How often it was asked to pull.
    pub fn pulls(&self) -> u64 {
        self.pulls.load(Ordering::Relaxed)
    }
}

impl Drop for CriOnly {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(State(mut shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path();
    if !SERVICES.iter().any(|service| path.starts_with(service)) {
        let unknown = Status::unimplemented(format!("unknown service {path}"));
        return unknown.into_http::<axum::body::Body>();
    }
    if path.ends_with("/PullImage") {
        shared.pulls.fetch_add(1, Ordering::Relaxed);
    }
    let request = request.map(Body::new);
    let channel = &mut shared.channel;
    let ready = std::future::poll_fn(|context| GrpcService::<Body>::poll_ready(channel, context));
    if let Err(error) = ready.await {
        return Status::unavailable(error.to_string()).into_http::<axum::body::Body>();
    }
    match GrpcService::call(&mut shared.channel, request).await {
        Ok(response) => response.map(axum::body::Body::new),
        Err(error) => Status::unavailable(error.to_string()).into_http::<axum::body::Body>(),
    }
}
