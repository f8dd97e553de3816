//! The roles against real nats-servers, the oldest and the newest supported; the other side is played by the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod api;
mod cell;
mod dispatcher;
