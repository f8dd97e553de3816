//! The simulation's model of JetStream is what it says: the same scenarios on it and on real nats-servers.
//!
//! A scenario is written once, as operations and what they must show, and knows nothing of the back end it runs on
//! ([`session`]). The model has virtual time; the servers get short waits, and the scenarios await facts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(unreachable_pub, reason = "modules of one test crate")]

#[allow(dead_code, reason = "the simulation uses the rest of it")]
#[path = "../simulation/broker/mod.rs"]
mod broker;
mod model;
mod real;
mod scenarios;
mod session;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::Mutex;
use tokio::task::LocalSet;

use crate::model::Model;
use crate::real::Real;
use crate::scenarios::{SCENARIOS, Scenario, WITH_RESTART};
use crate::session::{BackEnd, Session};
use crate::support::nats::{NatsServer, NatsVersion};

/// Runs scenarios side by side, and names those that fail.
async fn all(scenarios: &[(&'static str, Scenario)], back_end: impl Fn(&'static str) -> BackEnd) {
    let runs = scenarios.iter().map(|(name, scenario)| {
        let session = Session::new(back_end(name));
        let run = tokio::task::spawn_local(scenario(session));
        async move { run.await.is_err().then_some(*name) }
    });
    let failed: Vec<&str> = join_all(runs).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "it is otherwise: {failed:#?}");
}

/// Runs a test on this thread: what waits for facts cannot go to another.
async fn here(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

async fn on_a_server(version: NatsVersion) {
    let server = NatsServer::start(version).await;
    let client = server.client().await;
    let server = Arc::new(Mutex::new(server));
    let real = |name| BackEnd::Real(Box::new(Real::new(name, client.clone(), server.clone())));
    all(&SCENARIOS, real).await;
    for scenario in WITH_RESTART {
        all(&[scenario], real).await;
    }
}

#[tokio::test]
async fn the_model() {
    let model = |_| BackEnd::Model(Model::new());
    here(async {
        all(&SCENARIOS, model).await;
        all(&WITH_RESTART, model).await;
    })
    .await;
}

#[tokio::test]
async fn nats_2_10() {
    here(on_a_server(NatsVersion::V2_10)).await;
}

#[tokio::test]
async fn nats_2_15() {
    here(on_a_server(NatsVersion::V2_15)).await;
}
