//! A client in another language that has read nothing but the schema.

use std::path::Path;

use super::dispatcher::LIMIT;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;
use crate::support::prewarm::prewarm;
use crate::support::wait::{eventually, within};

#[tokio::test]
async fn a_job_from_python_is_done_and_its_end_is_heard_there() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let call = |args: &[&str]| prewarm(args).env("NATS_URL", nats.url());
    let mut dispatcher = call(&["dispatcher", "--metrics-listen", "off"]).spawn("the dispatcher");
    let _worker = call(&[
        "worker",
        "--node",
        "n1",
        "--runtime",
        "simulated",
        "--simulated-latency",
        "50ms",
        "--metrics-listen",
        "off",
    ])
    .spawn("the worker");
    dispatcher.logs("leading", LIMIT).await;
    eventually("the node to be there", LIMIT, async || {
        let node = call(&["get", "node", "n1"]).run().await;
        node.stdout.contains("Present")
    })
    .await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = tokio::process::Command::new(parts::python());
    command
        .arg(root.join("tests/python/publish.py"))
        .arg(nats.url())
        .arg(root.join("schemas"))
        .kill_on_drop(true);
    let output = within(LIMIT, "the end of publish.py", command.output())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said.trim(), "from-python: Succeeded, 1 of 1", "{output:?}");
}
