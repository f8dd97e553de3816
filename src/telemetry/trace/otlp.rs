//! Spans as OTLP has them: `ExportTraceServiceRequest` in its JSON form (OTLP 1.x, "JSON Protobuf Encoding").

use std::time::SystemTime;

use serde_json::{Value, json};

use super::nanos;
use crate::domain::trace::{SpanId, TraceId};

/// What a span is to others (`SpanKind` of trace.proto).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A part of something.
    Internal,
    /// The answer to somebody's request.
    Server,
    /// It leaves something for others to do.
    Producer,
    /// It does what somebody left.
    Consumer,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Server => 2,
            Self::Producer => 4,
            Self::Consumer => 5,
        }
    }
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The span above; `None` at the top.
    pub parent_id: Option<SpanId>,
    /// Whether it is exported at all.
    pub sampled: bool,
    /// What it is, one of few words.
    pub name: &'static str,
    /// What it is to others.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// More about it: texts, numbers and booleans.
    pub attributes: Vec<(&'static str, Value)>,
    /// What it failed of.
    pub error: Option<String>,
}

/// Our names of attributes, as semantic conventions want them: in a namespace.
fn attribute(name: &str, value: &Value) -> Value {
    json!({ "key": format!("prewarm.{name}"), "value": any_value(value) })
}

/// A value as `AnyValue`; 64-bit numbers are texts there.
fn any_value(value: &Value) -> Value {
    match value {
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    }
}

fn span(span: &FinishedSpan) -> Value {
    let attributes: Vec<Value> = span
        .attributes
        .iter()
        .map(|(name, value)| attribute(name, value))
        .collect();
    let mut encoded = json!({
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": span.kind.number(),
        "startTimeUnixNano": nanos(span.start).to_string(),
        "endTimeUnixNano": nanos(span.end).to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = span.parent_id {
        encoded["parentSpanId"] = json!(parent);
    }
    if let Some(error) = &span.error {
        encoded["status"] = json!({ "code": 2, "message": error });
    }
    encoded
}

/// The body that exports these spans of a process described by `resource`.
pub(super) fn request(resource: &[(String, String)], spans: &[FinishedSpan]) -> Value {
    let resource: Vec<Value> = resource
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } }))
        .collect();
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_span_is_encoded_as_the_protocol_says() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_790_000_000_000_000_001);
        let finished = FinishedSpan {
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap(),
            span_id: "00f067aa0ba902b7".parse().unwrap(),
            parent_id: Some("00f067aa0ba902b8".parse().unwrap()),
            sampled: true,
            name: "pull",
            kind: Kind::Consumer,
            start,
            end: start + Duration::from_millis(1),
            attributes: vec![
                ("image", json!("a")),
                ("attempt", json!(2)),
                ("present", json!(true)),
                ("share", json!(0.5)),
            ],
            error: Some("no".to_owned()),
        };
        let resource = [("service.name".to_owned(), "prewarm".to_owned())];
        let encoded = request(&resource, &[finished]);
        let resource_spans = &encoded["resourceSpans"][0];
        assert_eq!(
            resource_spans["resource"]["attributes"][0],
            json!({"key": "service.name", "value": {"stringValue": "prewarm"}})
        );
        assert_eq!(
            resource_spans["scopeSpans"][0]["spans"][0],
            json!({
                "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                "spanId": "00f067aa0ba902b7",
                "parentSpanId": "00f067aa0ba902b8",
                "name": "pull",
                "kind": 5,
                "startTimeUnixNano": "1790000000000000001",
                "endTimeUnixNano": "1790000000001000001",
                "attributes": [
                    {"key": "prewarm.image", "value": {"stringValue": "a"}},
                    {"key": "prewarm.attempt", "value": {"intValue": "2"}},
                    {"key": "prewarm.present", "value": {"boolValue": true}},
                    {"key": "prewarm.share", "value": {"doubleValue": 0.5}},
                ],
                "status": {"code": 2, "message": "no"},
            })
        );
    }
}
