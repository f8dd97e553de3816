//! A collector of traces that speaks OTLP over HTTP, and says what it was sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;

use super::wait::eventually;

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `service.name` of who sent it.
    pub service: String,
    /// Its trace.
    pub trace_id: String,
    /// Its id.
    pub span_id: String,
    /// The span above.
    pub parent_id: Option<String>,
    /// What it is.
    pub name: String,
    /// Begin and end in nanoseconds.
    pub times: (u64, u64),
    /// What is said of it, without the namespace of the keys.
    pub attributes: BTreeMap<String, String>,
    /// What it failed of.
    pub error: Option<String>,
}

impl Seen {
    /// What is said of it under this key.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes
            .get(key)
            .unwrap_or_else(|| panic!("{key} is missing in {self:#?}"))
    }
}

/// A collector on a loopback port.
#[derive(Debug)]
pub struct Collector {
    address: String,
    received: Received,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Received {
    bodies: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    answer: StatusCode,
}

impl Collector {
    /// One that takes everything.
    pub async fn start() -> Self {
        Self::answering(StatusCode::OK).await
    }

    /// One that answers with this status.
    pub async fn answering(answer: StatusCode) -> Self {
        let received = Received {
            bodies: Arc::default(),
            answer,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(received.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("a server") });
        Self {
            address,
            received,
            task,
        }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    pub fn endpoint(&self) -> &str {
        &self.address
    }

    /// Everything that was sent, as it was.
    pub fn bodies(&self) -> Vec<(HeaderMap, Value)> {
        self.received.bodies.lock().unwrap().clone()
    }

    /// Every span that was sent.
    pub fn spans(&self) -> Vec<Seen> {
        self.bodies()
            .iter()
            .flat_map(|(_, body)| read(body))
            .collect()
    }

    /// Waits until there are as many spans with this name and these attributes, and returns them by their begin.
    pub async fn named(&self, name: &str, attributes: &[(&str, &str)], count: usize) -> Vec<Seen> {
        let what = format!("{count} spans {name} with {attributes:?}");
        let is_wanted = |span: &Seen| {
            let has = |(key, value): &(&str, &str)| {
                span.attributes
                    .get(*key)
                    .is_some_and(|found| found == value)
            };
            span.name == name && attributes.iter().all(has)
        };
        eventually(&what, Duration::from_secs(60), async || {
            let mut found: Vec<Seen> = self.spans().into_iter().filter(is_wanted).collect();
            found.sort_by_key(|span| span.times.0);
            if found.len() == count {
                Ok(found)
            } else {
                Err(format!("{:#?}", self.spans()))
            }
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    match serde_json::from_slice(&body) {
        Ok(body) => {
            received.bodies.lock().unwrap().push((headers, body));
            received.answer
        }
        Err(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    }
}

fn text(value: &Value) -> String {
    let values = value.as_object().into_iter().flatten();
    let value = values
        .map(|(_, value)| value)
        .next()
        .cloned()
        .unwrap_or_default();
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn attributes(list: &Value) -> BTreeMap<String, String> {
    let pairs = list.as_array().into_iter().flatten();
    let pair = |pair: &Value| {
        let key = pair["key"].as_str().unwrap();
        let key = key.strip_prefix("prewarm.").unwrap_or(key);
        (key.to_owned(), text(&pair["value"]))
    };
    pairs.map(pair).collect()
}

fn read(body: &Value) -> Vec<Seen> {
    let mut seen = Vec::new();
    for resource in body["resourceSpans"].as_array().into_iter().flatten() {
        let service = attributes(&resource["resource"]["attributes"])["service.name"].clone();
        for scope in resource["scopeSpans"].as_array().into_iter().flatten() {
            for span in scope["spans"].as_array().into_iter().flatten() {
                let said = |key: &str| span[key].as_str().map(str::to_owned);
                let time = |key: &str| said(key).unwrap().parse().unwrap();
                seen.push(Seen {
                    service: service.clone(),
                    trace_id: said("traceId").unwrap(),
                    span_id: said("spanId").unwrap(),
                    parent_id: said("parentSpanId"),
                    name: said("name").unwrap(),
                    times: (time("startTimeUnixNano"), time("endTimeUnixNano")),
                    attributes: attributes(&span["attributes"]),
                    error: span["status"]["message"].as_str().map(str::to_owned),
                });
            }
        }
    }
    seen
}
