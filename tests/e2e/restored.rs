//! RUNBOOK.md, "Backup and restore", as it is written there.

use std::path::Path;
use std::process::Command;

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::{Cell, LIMIT, dispatcher};
use crate::support::nats::NatsVersion;
use crate::support::parts;
use crate::support::prewarm::prewarm;
use crate::support::wait::eventually;

/// Images of the job, one of which is pulled at a time.
const IMAGES: u64 = 20;

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let status = command.arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{command:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_from_a_store_that_was_put_back() {
    let mut cell = Cell::start(NatsVersion::V2_15).await;
    let _worker = prewarm([
        "worker",
        "--metrics-listen",
        "off",
        "--runtime",
        "simulated",
    ])
    .env("PREWARM_NATS_URL", cell.nats.url())
    .env("PREWARM_NODE", "node")
    .env("PREWARM_SIMULATED_LATENCY", "200ms")
    .spawn("the worker");
    cell.present("node").await;
    let images: Vec<String> = (0..IMAGES)
        .map(|number| format!("registry.example.com/app:{number}"))
        .collect();
    cell.publish("base", json!({"images": images, "parallelism": 1}))
        .await;
    eventually("a few pulls to be done", LIMIT, async || {
        let record = cell.record("base").await?;
        if record.status.counts.succeeded >= 3 {
            Ok(())
        } else {
            Err(format!("{:?}", record.status))
        }
    })
    .await;

    // The backup, in the middle of the job. What follows it is what will be lost.
    let dir = parts::temp_dir();
    let backup = dir.path().join("backup");
    cell.nats.stop().await;
    copy(&cell.nats.store(), &backup);
    cell.nats.restart().await;
    assert_eq!(
        cell.ended("base").await.status.outcome,
        Some(Outcome::Succeeded)
    );
    cell.publish("later", json!({"images": ["registry.example.com/later:1"]}))
        .await;
    cell.ended("later").await;

    // The loss, and the restore.
    cell.dispatcher.terminate().await;
    cell.nats.stop().await;
    std::fs::remove_dir_all(cell.nats.store()).unwrap();
    copy(&backup, &cell.nats.store());
    cell.nats.restart().await;
    cell.dispatcher = dispatcher(&cell.nats);
    cell.dispatcher.logs("leading", LIMIT).await;

    // The job is where it was, and ends once more, by the worker that ran on.
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
    assert_eq!(u64::from(record.status.counts.succeeded), IMAGES);
    cell.record("later")
        .await
        .expect_err("a job that came after the backup");
    cell.publish("new", json!({"images": ["registry.example.com/new:1"]}))
        .await;
    assert_eq!(
        cell.ended("new").await.status.outcome,
        Some(Outcome::Succeeded)
    );
}
