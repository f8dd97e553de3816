//! The receiver of webhooks against real nats-servers and a real registry.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod command;
mod documented;
mod events;
mod limits;
mod oidc;
mod receiver;
mod registry;
mod sources;
mod tls;
