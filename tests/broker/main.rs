//! The broker that is shipped, on real servers: how it starts and goes, what probes make of it, who may reach it and how.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod lame_duck;
mod manifests;
mod probes;
mod servers;
mod tls;
