//! What the program says of itself: logs, metrics, health, traces.

pub mod health;
mod lines;
pub mod listen;
pub mod process;
pub mod serve;
pub mod trace;

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

use self::lines::JsonLines;
use self::trace::TraceLayer;

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A text that is not a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither text nor json")]
pub struct LogFormatError(String);

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogFormatError(other.to_owned())),
        }
    }
}

/// Starts logging to standard error, which is where everything goes that is not data; with `traces`, spans of ours are
/// followed for whoever exports them, whatever is logged.
pub fn log_to_stderr(filter: EnvFilter, format: LogFormat, traces: bool) {
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("prewarm"));
    let traces = traces.then(|| TraceLayer.with_filter(ours));
    let lines = tracing_subscriber::fmt::layer::<Registry>()
        .with_writer(std::io::stderr)
        .with_ansi(colour_is_welcome(&std::io::stderr()))
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => {
            let lines = lines.fmt_fields(JsonFields::new()).event_format(JsonLines);
            lines.with_filter(filter).boxed()
        }
    };
    // Fails only when logging was started before, which then goes on.
    let _ = Registry::default().with(lines).with(traces).try_init();
}

/// Whether a person sees this output and did not ask for plain text (no-color.org).
#[must_use]
pub fn colour_is_welcome(output: &impl std::io::IsTerminal) -> bool {
    output.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether a person reads the log.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
