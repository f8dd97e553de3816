//! What the program says of itself: logs, metrics, health.

pub mod process;
pub mod serve;

use std::io::IsTerminal as _;

use crate::settings::telemetry::{LogFormat, TelemetrySettings};

/// Starts logging to standard error, which is where everything goes that is not data.
pub fn log_to_stderr(settings: &TelemetrySettings) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(settings.filter.clone())
        .with_writer(std::io::stderr)
        .with_ansi(colour_is_welcome(&std::io::stderr()))
        .with_target(false);
    // Fails only when logging was started before, which then goes on.
    let _ = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
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
