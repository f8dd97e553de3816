//! The whole of it, as a user runs it: the real program, real brokers, real containerds, a real registry.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod cell;
mod crashes;
mod failures;
mod health;
mod monitored;
mod pinned;
mod planted;
mod pod;
mod polite;
mod progress;
mod pushed;
mod restored;
mod rights;
mod sandbox;
mod talkative;
mod traced;
mod unit;
mod units;
mod warm;
