//! The roles against real nats-servers, the oldest and the newest supported; the other side is played by the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(clippy::print_stdout, reason = "for the reader of what was measured")]

#[path = "../support/mod.rs"]
mod support;

/// Runs a test on every supported generation of nats-server.
macro_rules! on_every_generation {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use crate::support::nats::NatsVersion;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nats_2_10() {
                super::$test(NatsVersion::V2_10).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nats_2_15() {
                super::$test(NatsVersion::V2_15).await;
            }
        }
    )+};
}

mod api;
mod cell;
mod dispatcher;
mod limits;
mod permissions;
mod pull;
mod pushes;
mod read;
mod worker;
mod worker_cell;
