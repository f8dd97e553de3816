//! How a command ends: documented exit codes, and errors with what to do about them.

use std::fmt;
use std::process::ExitCode;

use crate::bus::connect::ConnectFailure;
use crate::cli::settings::BadSettings;

/// What an exit code means. Scripts rely on the numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// 0: done.
    Done = 0,
    /// 1: the job failed, partly failed, or was cancelled.
    JobFailed = 1,
    /// 2: bad input: arguments, settings, a manifest, a job that is not there.
    BadInput = 2,
    /// 3: the broker or the runtime cannot be reached, or is not set up.
    Unreachable = 3,
    /// 4: `--timeout` passed.
    TimedOut = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a person reads who ends a second signal sooner than we would: 128 and SIGINT's number, as shells say it.
pub const INTERRUPTED: i32 = 130;

/// Why a command did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong, and where; empty when it has been told already.
    pub message: String,
    /// What to do about it; empty when the message says so.
    pub advice: String,
}

impl Failure {
    /// Bad input.
    #[must_use]
    pub fn input(message: impl Into<String>) -> Self {
        Self::of(Exit::BadInput, message)
    }

    /// Something that has to be there does not answer.
    #[must_use]
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::of(Exit::Unreachable, message)
    }

    /// `--timeout` passed.
    #[must_use]
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::of(Exit::TimedOut, message)
    }

    /// An end that has been told already.
    #[must_use]
    pub fn told(exit: Exit) -> Self {
        Self::of(exit, "")
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    fn of(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            advice: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.message.lines();
        if let Some(first) = lines.next() {
            write!(f, "error: {first}")?;
        }
        for line in lines {
            write!(f, "\n       {line}")?;
        }
        if !self.advice.is_empty() {
            write!(f, "\n help: {}", self.advice)?;
        }
        Ok(())
    }
}

impl From<BadSettings> for Failure {
    fn from(bad: BadSettings) -> Self {
        Self::input(bad.to_string())
    }
}

impl From<ConnectFailure> for Failure {
    fn from(failure: ConnectFailure) -> Self {
        let exit = match failure {
            ConnectFailure::Unreachable { .. }
            | ConnectFailure::Refused { .. }
            | ConnectFailure::Expired { .. }
            | ConnectFailure::Tls { .. } => Exit::Unreachable,
            ConnectFailure::File { .. } => Exit::BadInput,
            ConnectFailure::Stopped { .. } => return Self::told(Exit::Done),
        };
        let message = match std::error::Error::source(&failure) {
            Some(source) => format!("{failure}: {source}"),
            None => failure.to_string(),
        };
        Self::of(exit, message).advise(failure.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_contracts() {
        let exits = [
            Exit::Done,
            Exit::JobFailed,
            Exit::BadInput,
            Exit::Unreachable,
            Exit::TimedOut,
        ];
        assert_eq!(exits.map(|exit| exit as u8), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn an_error_says_everything_in_order() {
        let failure = Failure::input("one\ntwo").advise("do this");
        assert_eq!(
            failure.to_string(),
            "error: one\n       two\n help: do this"
        );
        assert_eq!(Failure::told(Exit::JobFailed).to_string(), "");
    }
}
