//! The command line as a user meets it: the real program against real brokers, with this test as the dispatcher where
//! its answers matter.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod dispatcher;
mod fleet;
mod health;
mod input;
mod kubernetes;
mod login;
mod pipelines;
mod planted;
mod python;
mod read;
mod readme;
mod roles;
mod rules;
mod secured;
mod simulate;
mod submit;
mod up;
