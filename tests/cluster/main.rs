//! Three brokers, several dispatchers and a simulated fleet, each a process of its own, of which some end: nothing is lost
//! and nothing is done twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for the reader of a failed test, and what was measured"
)]

#[path = "../support/mod.rs"]
mod support;

mod fleet;
mod line;
mod quorum;
mod reconnects;
mod restarts;
mod server_loss;
mod takeover;
