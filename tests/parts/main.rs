//! The test support itself, on every generation of every server: when these fail, do not look at prewarm first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod containerd;
mod nats;
mod processes;
mod registry;
