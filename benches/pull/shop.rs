//! A registry in memory, as fast as it goes or limited as many are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use bytes::Bytes;
use prewarm::domain::image::Digest;
use tokio::net::TcpListener;

use super::support::images::Image;

/// The limited registry: bytes in a second for each connection, and time to the first.
const RATE: f64 = 50e6;
const LATENCY: Duration = Duration::from_millis(10);
/// What the registry sends at a time.
const PIECE: usize = 256 << 10;

/// A registry that serves a few images from memory.
struct Shop {
    blobs: HashMap<String, (String, Bytes)>,
    limited: bool,
}

pub(super) async fn serve(images: &[(&'static str, Image)], limited: bool) -> String {
    let mut blobs = HashMap::new();
    for (name, image) in images {
        for blob in image.blobs.iter().chain([&image.target]) {
            let value = (blob.media_type.clone(), blob.bytes.clone());
            blobs.insert(blob.digest.clone(), value);
        }
        let target = &image.target;
        let value = (target.media_type.clone(), target.bytes.clone());
        blobs.insert(format!("{name}:1"), value);
    }
    let app = Router::new()
        .route("/v2/", axum::routing::get(async || ""))
        .route("/v2/{name}/{kind}/{reference}", axum::routing::get(answer))
        .with_state(Arc::new(Shop { blobs, limited }));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn answer(
    State(shop): State<Arc<Shop>>,
    UrlPath((name, _, reference)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let tagged = format!("{name}:{reference}");
    let found = shop
        .blobs
        .get(&reference)
        .or_else(|| shop.blobs.get(&tagged));
    let Some((media_type, bytes)) = found else {
        let missing = Response::builder().status(StatusCode::NOT_FOUND);
        return missing.body(Body::empty()).unwrap();
    };
    let total = bytes.len();
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, media_type)
        .header(header::ACCEPT_RANGES, "bytes")
        .header("docker-content-digest", digest_of(bytes, &reference));
    let range = headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok()?.strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'));
    let part = match range {
        None => bytes.clone(),
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(total, |end: usize| (end + 1).min(total));
            let range = format!("bytes {start}-{}/{total}", end - 1);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, range);
            bytes.slice(start..end)
        }
    };
    let limited = shop.limited;
    let length = part.len();
    let begun = Instant::now() + LATENCY;
    let pieces = futures::stream::unfold(0, move |at| {
        let piece = part.slice(at.min(length)..(at + PIECE).min(length));
        async move {
            if piece.is_empty() {
                return None;
            }
            if limited {
                let due = begun + Duration::from_secs_f64(at as f64 / RATE);
                tokio::time::sleep_until(due.into()).await;
            }
            let next = at + piece.len();
            Some((Ok::<_, std::convert::Infallible>(piece), next))
        }
    });
    response
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(pieces))
        .unwrap()
}

/// A blob is asked for by its digest, a manifest perhaps by its tag.
fn digest_of(bytes: &Bytes, reference: &str) -> String {
    match reference.starts_with("sha256:") {
        true => reference.to_owned(),
        false => Digest::of(bytes).to_string(),
    }
}
