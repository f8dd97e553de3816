//! Data goes to standard output, everything else to standard error.

use std::io::{self, Write as _};

use serde::Serialize;

use super::exit::{Exit, Failure};

/// How data looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum DataFormat {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Writes text to standard output as it is.
///
/// # Errors
/// Nobody reads any more, which ends the command without a word, or the output cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            // `prewarm events | head` has what it wanted.
            io::ErrorKind::BrokenPipe => Failure::told(Exit::Done),
            _ => Failure::input(format!("cannot write to standard output: {error}")),
        })
}

/// Says something to the person, on standard error.
pub fn tell(text: &str) {
    // Nobody is left to be told that this failed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// One value as a document.
///
/// # Errors
/// It has no form in that format, which only a defect can cause.
pub fn document(format: DataFormat, value: &impl Serialize) -> Result<String, Failure> {
    let defect = |error: String| Failure::input(format!("cannot be written: {error}"));
    match format {
        DataFormat::Json => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|error| defect(error.to_string())),
        DataFormat::Yaml => {
            serde_saphyr::to_string(value).map_err(|error| defect(error.to_string()))
        }
    }
}

/// One of many values: a line of JSON, or a YAML document with its separator.
///
/// # Errors
/// As [`document`].
pub fn item(format: DataFormat, value: &impl Serialize) -> Result<String, Failure> {
    match format {
        DataFormat::Json => serde_json::to_string(value)
            .map(|text| text + "\n")
            .map_err(|error| Failure::input(format!("cannot be written: {error}"))),
        DataFormat::Yaml => document(format, value).map(|text| format!("---\n{text}")),
    }
}
