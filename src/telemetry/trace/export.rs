//! Sends finished spans to a collector. Whoever ends a span never waits: what the collector does not take in time is
//! dropped, and counted.

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, Opts};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::otlp::{FinishedSpan, request};
use super::settings::TraceSettings;

/// Spans that wait to be sent; more are dropped.
const QUEUE: usize = 8_192;
/// Most spans of one request.
const BATCH: usize = 512;
/// How long a span waits for others that go with it.
const GATHER: Duration = Duration::from_secs(1);
/// Pauses before a batch that the collector could not take is sent again; after the last it is dropped.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// How long the end of the process waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Why spans cannot be exported at all.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The authorities to trust cannot be read.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {0}")]
    Certificate(String),
    /// There can be no client.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

enum Message {
    Span(Box<FinishedSpan>),
    /// Send what you have, and say so.
    Flush(oneshot::Sender<()>),
}

/// Takes finished spans. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    queue: mpsc::Sender<Message>,
    counted: Arc<Counted>,
}

struct Counted {
    spans: IntCounterVec,
    exported: IntCounter,
    dropped: IntCounter,
}

impl Counted {
    fn new() -> Result<Self, prometheus::Error> {
        let about = "Finished spans of traces by what became of them: exported, or dropped because the collector did not take them in time";
        let spans =
            IntCounterVec::new(Opts::new("prewarm_trace_spans_total", about), &["outcome"])?;
        Ok(Self {
            exported: spans.with_label_values(&["exported"]),
            dropped: spans.with_label_values(&["dropped"]),
            spans,
        })
    }
}

impl Exporter {
    /// Starts to export in the background; needs a runtime.
    ///
    /// # Errors
    /// The settings name a certificate that cannot be used.
    pub fn start(settings: TraceSettings) -> Result<Self, ExporterError> {
        let client = client(&settings)?;
        let counted = Counted::new().map_err(|error| ExporterError::Tls(error.to_string()))?;
        let counted = Arc::new(counted);
        let (queue, waiting) = mpsc::channel(QUEUE);
        let sender = Sender {
            client,
            settings,
            waiting,
            counted: Arc::clone(&counted),
            failing: false,
        };
        tokio::spawn(sender.run());
        Ok(Self { queue, counted })
    }

    pub(super) fn take(&self, span: FinishedSpan) {
        if self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.counted.dropped.inc();
        }
    }

    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // An exporter that is gone has nothing left.
                let _ = flushed.await;
            }
        };
        if timeout(LAST_SPANS, flush).await.is_err() {
            tracing::warn!("the last spans were not exported: the collector takes too long");
        }
    }

    pub(super) fn metrics(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.counted.spans.clone())]
    }
}

fn client(settings: &TraceSettings) -> Result<Client, ExporterError> {
    let failed = |error: &dyn std::fmt::Display| ExporterError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &settings.certificate {
        let unusable = |error: &dyn std::fmt::Display| {
            ExporterError::Certificate(format!("{}: {error}", path.display()))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))? {
            let added = roots.add(certificate.map_err(|e| unusable(&e))?);
            added.map_err(|e| unusable(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .default_headers(settings.headers.clone())
        .user_agent(concat!("prewarm/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(settings.timeout)
        .build()
        .map_err(|error| failed(&error))
}

/// Why a batch was not taken, and whether it may be later.
struct Refused {
    reason: String,
    passes: bool,
}

struct Sender {
    client: Client,
    settings: TraceSettings,
    waiting: mpsc::Receiver<Message>,
    counted: Arc<Counted>,
    /// Whether the last batch was dropped: the log says it once, and again when one was taken.
    failing: bool,
}

impl Sender {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let (batch, flushed) = self.gather(first).await;
            let is_last = flushed.is_some();
            if !batch.is_empty() {
                self.send(batch, is_last).await;
            }
            if let Some(flushed) = flushed {
                // Who asked may not wait any more.
                let _ = flushed.send(());
            }
        }
    }

    /// What comes within [`GATHER`], or until somebody cannot wait.
    async fn gather(&mut self, first: Message) -> (Vec<FinishedSpan>, Option<oneshot::Sender<()>>) {
        let (mut batch, until) = (Vec::new(), Instant::now() + GATHER);
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Span(span) => batch.push(*span),
                Message::Flush(done) => return (batch, Some(done)),
            }
            if batch.len() >= BATCH {
                break;
            }
            next = timeout_at(until, self.waiting.recv()).await.ok().flatten();
        }
        (batch, None)
    }

    /// Sends a batch, again if that may help, or drops it. The last one is not waited for.
    async fn send(&mut self, batch: Vec<FinishedSpan>, is_last: bool) {
        let spans = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let body = request(&self.settings.resource, &batch).to_string();
        drop(batch);
        let mut pauses = PAUSES.into_iter().filter(|_| !is_last);
        let refused = loop {
            match self.post(body.clone()).await {
                Ok(()) => {
                    self.counted.exported.inc_by(spans);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("spans are exported again");
                    }
                    return;
                }
                Err(refused) if !refused.passes => break refused,
                Err(refused) => match pauses.next() {
                    Some(pause) => sleep(pause).await,
                    None => break refused,
                },
            }
        };
        self.counted.dropped.inc_by(spans);
        if !std::mem::replace(&mut self.failing, true) {
            let place = self.settings.place();
            tracing::warn!(
                place,
                reason = refused.reason,
                "spans are dropped: the collector does not take them"
            );
        }
    }

    async fn post(&self, body: String) -> Result<(), Refused> {
        let json = HeaderValue::from_static("application/json");
        let posted = self
            .client
            .post(self.settings.endpoint.clone())
            .header(CONTENT_TYPE, json)
            .body(body);
        match posted.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(Refused {
                reason: format!("it answered {}", answer.status()),
                passes: passes(answer.status()),
            }),
            // The URL may hold a secret.
            Err(error) => Err(Refused {
                reason: causes(&error.without_url()),
                passes: true,
            }),
        }
    }
}

/// What a collector says when it is only busy (OTLP, "Retryable Response Codes").
fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
