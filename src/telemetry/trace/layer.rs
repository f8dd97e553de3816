//! Turns spans of the crate `tracing` into spans of a trace.

use std::time::SystemTime;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::otlp::{FinishedSpan, Kind};
use super::{ERROR, TRACE_ID, export, random_span};
use crate::domain::trace::{SpanId, TraceContext, TraceOrigin};

/// Follows spans, and exports those that belong to a trace when they close.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

/// What is known of a span that has not closed.
struct Open {
    start: SystemTime,
    /// Its id, and where it hangs; `None` while it belongs to no trace.
    place: Option<(SpanId, TraceOrigin)>,
    kind: Kind,
    fields: Fields,
}

impl Open {
    fn context(&self) -> Option<TraceContext> {
        let (span_id, origin) = self.place?;
        Some(TraceContext {
            trace_id: origin.trace_id,
            span_id,
            sampled: origin.sampled,
        })
    }
}

/// What a span was said to be.
#[derive(Default)]
struct Fields {
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            TRACE_ID => {}
            ERROR => {
                self.error = Some(match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                });
            }
            name => {
                self.attributes.retain(|(known, _)| *known != name);
                self.attributes.push((name, value));
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::from(value));
    }
}

impl<S> Layer<S> for TraceLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let above = span
            .parent()
            .and_then(|parent| parent.extensions().get::<Open>()?.context());
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(Open {
            start: SystemTime::now(),
            place: above.map(|above| (random_span(), above.into())),
            kind: Kind::Internal,
            fields,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(&mut open.fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let open = span.extensions_mut().remove::<Open>();
        let Some((open, (span_id, origin))) = open.and_then(|open| {
            let place = open.place?;
            Some((open, place))
        }) else {
            return;
        };
        export(FinishedSpan {
            trace_id: origin.trace_id,
            span_id,
            parent_id: origin.parent_id,
            sampled: origin.sampled,
            name: span.name(),
            kind: open.kind,
            start: open.start,
            end: SystemTime::now(),
            attributes: open.fields.attributes,
            error: open.fields.error,
        });
    }
}

/// Does something with what the layer knows of a span; `None` without the layer.
fn with_open<T>(span: &Span, work: impl FnOnce(&mut Open) -> T) -> Option<T> {
    let mut done = None;
    span.with_subscriber(|(id, dispatch)| {
        if let Some(registry) = dispatch.downcast_ref::<Registry>()
            && let Some(known) = registry.span(id)
            && let Some(open) = known.extensions_mut().get_mut::<Open>()
        {
            done = Some(work(open));
        }
    });
    done
}

/// Hangs a span there.
pub(super) fn join(span: &Span, origin: TraceOrigin, kind: Kind) {
    with_open(span, |open| {
        open.place = Some((random_span(), origin));
        open.kind = kind;
    });
}

/// What children of the span elsewhere are told.
pub(super) fn context(span: &Span) -> Option<TraceContext> {
    with_open(span, |open| open.context()).flatten()
}
