//! The command line: parse, build, do, and say how it went.

pub mod apply;
pub mod args;
pub mod describe;
pub mod events;
pub mod exit;
pub mod get;
pub mod journal;
pub mod output;
pub mod request;
pub mod run;
pub mod submit;
pub mod summary;
pub mod text;
pub mod verbs;
pub mod watch;

use crate::domain::time::Timestamp;

/// The time of day.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}
