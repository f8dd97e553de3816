//! Traces: which spans there are is said with the crate `tracing`; here they are hung into traces and exported.
//!
//! A span of ours belongs to a trace when it was [`join`]ed to one, or its parent was. Everything is a no-op unless an
//! endpoint was named in the environment, see [`settings`]; contexts are passed on all the same.
//!
//! Written for the purpose rather than taken from the crates `opentelemetry*`: a job's span begins in one process and
//! may end in another, and what is dropped has to be counted where an operator sees it.

mod export;
mod layer;
mod otlp;
pub mod settings;

use std::sync::OnceLock;
use std::time::SystemTime;

use prometheus::core::Collector;
use tracing::Span;

pub use self::export::Exporter;
pub use self::layer::TraceLayer;
pub use self::otlp::{FinishedSpan, Kind};
use crate::domain::trace::{SpanId, TraceContext, TraceId, TraceOrigin};

/// The exporter of this process, if it has one.
static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// The field that a span declares in order to say, when it is joined, which trace it is of.
pub const TRACE_ID: &str = "trace_id";
/// The field that a span declares in order to say what it failed of; that makes it a failed span.
pub const ERROR: &str = "error";

/// Has finished spans of this process exported from now on.
pub fn begin(exporter: Exporter) {
    // The first is the one that counts, as with everything that is the process's own.
    let _ = EXPORTER.set(exporter);
}

/// Whether spans of this process go anywhere.
#[must_use]
pub fn is_exporting() -> bool {
    EXPORTER.get().is_some()
}

/// Exports a span that was not one of the crate `tracing`, if its trace is recorded. Never waits.
pub fn export(span: FinishedSpan) {
    if let Some(exporter) = EXPORTER.get().filter(|_| span.sampled) {
        exporter.take(span);
    }
}

/// Waits until what was exported so far has left, or the limit of an ending process has passed.
pub async fn flush() {
    if let Some(exporter) = EXPORTER.get() {
        exporter.flush().await;
    }
}

/// What is counted of exported spans: nothing, unless they are exported.
#[must_use]
pub fn metrics() -> Vec<Box<dyn Collector>> {
    EXPORTER.get().map(Exporter::metrics).unwrap_or_default()
}

/// The top of a new trace, if this process exports: a trace that nobody sees is none.
#[must_use]
pub fn new_trace() -> Option<TraceOrigin> {
    is_exporting().then(|| TraceOrigin::root(random_trace()))
}

/// Reads the value of a header `traceparent`; what is none is passed over, as the standard demands.
#[must_use]
pub fn read(header: &str) -> Option<TraceOrigin> {
    header.parse::<TraceContext>().ok().map(TraceOrigin::from)
}

/// Hangs a span there, and has it say so in its field [`TRACE_ID`].
pub fn join(span: &Span, origin: Option<TraceOrigin>, kind: Kind) {
    if let Some(origin) = origin {
        span.record(TRACE_ID, tracing::field::display(origin.trace_id));
        layer::join(span, origin, kind);
    }
}

/// The context for what the span causes elsewhere: the span's own, or else what it was joined to.
#[must_use]
pub fn context(span: &Span, origin: Option<TraceOrigin>) -> Option<TraceContext> {
    layer::context(span).or_else(|| origin?.parent())
}

/// Says what a span failed of.
pub fn fail(span: &Span, error: &dyn std::fmt::Display) {
    span.record(ERROR, tracing::field::display(error));
}

fn random_trace() -> TraceId {
    loop {
        if let Some(id) = TraceId::new(rand::random()) {
            return id;
        }
    }
}

fn random_span() -> SpanId {
    loop {
        if let Some(id) = SpanId::new(rand::random()) {
            return id;
        }
    }
}

/// Nanoseconds since the Unix epoch.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
