//! What happened, line by line.

use std::fmt::Write as _;

/// Writes down what happened, or does not for speed.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Option<String>,
}

impl Trace {
    pub fn recorded() -> Self {
        Self {
            lines: Some(String::new()),
        }
    }

    /// Adds a line, made only if it is wanted.
    pub fn line(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            let _ = writeln!(lines, "{:>8}.{:03} {}", now / 1_000, now % 1_000, line());
        }
    }

    pub fn text(&self) -> &str {
        self.lines.as_deref().unwrap_or_default()
    }
}
