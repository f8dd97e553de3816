//! Trace contexts as the W3C defines them: which trace a piece of work belongs to, and under which span.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::text_form;

/// The name of the header that carries a [`TraceContext`] on NATS messages and HTTP requests (W3C Trace Context,
/// section 3.2).
pub const TRACEPARENT: &str = "traceparent";

/// The flag for "the caller may have recorded this" (W3C Trace Context, section 3.2.2.5.1).
const SAMPLED: u8 = 1;

/// A text that is no trace context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no trace context: expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct TraceError(String);

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $bytes:literal, $title:literal, $description:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type([u8; $bytes]);

        impl $type {
            /// The id of these bytes; `None` for zeros, which name nothing.
            #[must_use]
            pub fn new(bytes: [u8; $bytes]) -> Option<Self> {
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// The id that these words always give.
            fn derived(words: &str) -> Self {
                let mut bytes = [0; $bytes];
                bytes.copy_from_slice(&Sha256::digest(words)[..$bytes]);
                Self::new(bytes).unwrap_or(Self([1; $bytes]))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = TraceError;

            fn from_str(text: &str) -> Result<Self, TraceError> {
                let bytes = hex(text).and_then(Self::new);
                bytes.ok_or_else(|| TraceError(text.to_owned()))
            }
        }

        text_form!($type, $title, $description, $pattern);
    };
}

id!(
    /// Names a trace.
    TraceId,
    16,
    "TraceId",
    "Names a trace (W3C Trace Context), in hex",
    r"^[0-9a-f]{32}$"
);
id!(
    /// Names a span within a trace.
    SpanId,
    8,
    "SpanId",
    "Names a span within a trace (W3C Trace Context), in hex",
    r"^[0-9a-f]{16}$"
);

/// Lower-case hex digits, exactly as many as the bytes take.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A span that others can be children of: the value of the header `traceparent`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Whether the trace is recorded; if not, nobody exports spans of it.
    pub sampled: bool,
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span, flags) = (self.trace_id, self.span_id, u8::from(self.sampled));
        write!(f, "00-{trace}-{span}-{flags:02x}")
    }
}

impl FromStr for TraceContext {
    type Err = TraceError;

    /// Later versions may have more at the end, and are read by what they begin with (section 3.2.4 there).
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let read = || {
            let mut parts = text.splitn(5, '-');
            let mut part = || parts.next();
            let [version] = hex(part()?)?;
            let (trace, span) = (part()?.parse().ok()?, part()?.parse().ok()?);
            let [flags] = hex(part()?)?;
            let more = part().is_some();
            (version != 0xff && !(version == 0 && more)).then_some(Self {
                trace_id: trace,
                span_id: span,
                sampled: flags & SAMPLED != 0,
            })
        };
        read().ok_or_else(|| TraceError(text.to_owned()))
    }
}

text_form!(
    TraceContext,
    "TraceContext",
    "A span that others can be children of, as the header `traceparent` of W3C Trace Context has it",
    r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
);

/// Where spans are to hang: a trace, and the span above them unless they are at the top.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Debug,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct TraceOrigin {
    /// The trace.
    pub trace_id: TraceId,
    /// The span above; absent at the top of a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<SpanId>,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl From<TraceContext> for TraceOrigin {
    fn from(context: TraceContext) -> Self {
        Self {
            trace_id: context.trace_id,
            parent_id: Some(context.span_id),
            sampled: context.sampled,
        }
    }
}

impl TraceOrigin {
    /// The top of a trace that is recorded.
    #[must_use]
    pub fn root(trace_id: TraceId) -> Self {
        Self {
            trace_id,
            parent_id: None,
            sampled: true,
        }
    }

    /// The span above, if there is one.
    #[must_use]
    pub fn parent(&self) -> Option<TraceContext> {
        Some(TraceContext {
            trace_id: self.trace_id,
            span_id: self.parent_id?,
            sampled: self.sampled,
        })
    }

    /// The top of another trace, the same for the same words, recorded if this one is.
    #[must_use]
    pub fn another(&self, words: &str) -> Self {
        Self {
            trace_id: TraceId::derived(&format!("{}/{words}", self.trace_id)),
            parent_id: None,
            sampled: self.sampled,
        }
    }

    /// A span that hangs here, the same for the same words: whoever tells of it, and whenever, means one span.
    #[must_use]
    pub fn span(&self, words: &str) -> TraceContext {
        TraceContext {
            trace_id: self.trace_id,
            span_id: SpanId::derived(&format!("{}/{words}", self.trace_id)),
            sampled: self.sampled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), EXAMPLE);
        let unsampled = EXAMPLE.replace("-01", "-00");
        let context: TraceContext = unsampled.parse().unwrap();
        assert!(!context.sampled);
        assert_eq!(context.to_string(), unsampled);
    }

    #[test]
    fn a_later_version_is_read_by_what_it_begins_with() {
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-comes-later";
        assert_eq!(later.parse(), EXAMPLE.parse::<TraceContext>());
        assert_eq!(
            EXAMPLE.replacen("00", "cc", 1).parse(),
            EXAMPLE.parse::<TraceContext>()
        );
    }

    #[test]
    fn what_the_standard_forbids_is_no_context() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é",
        ] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_words_give_the_same_span() {
        let origin = TraceOrigin::from(EXAMPLE.parse::<TraceContext>().unwrap());
        assert_eq!(origin.span("a"), origin.span("a"));
        assert_ne!(origin.span("a").span_id, origin.span("b").span_id);
        assert_eq!(origin.span("a").trace_id, origin.trace_id);
        let another = origin.another("round 2");
        assert_ne!(another.trace_id, origin.trace_id);
        assert_eq!((another.parent_id, another.sampled), (None, true));
    }
}
