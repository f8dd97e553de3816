//! A worker is ready while it has a container runtime.

use super::cell::{Cell, LIMIT, worker_call};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::http;
use crate::support::nats::NatsVersion;
use crate::support::process::free_port;
use crate::support::wait::eventually;

/// Waits until `/readyz` of the process at this port answers this, with this in its body.
async fn answers(port: u16, status: u16, wanted: &str) {
    let what = format!("/readyz to answer {status} with {wanted:?}");
    eventually(&what, LIMIT, async || {
        let url = format!("http://127.0.0.1:{port}/readyz");
        let answer = http()
            .get(url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let found = answer.status().as_u16();
        let body = answer.text().await.map_err(|error| error.to_string())?;
        if found == status && body.contains(wanted) {
            Ok(())
        } else {
            Err(format!("{found}: {body}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_while_its_containerd_answers() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let mut containerd = Containerd::start(ContainerdVersion::V1_7).await;
    let port = free_port();
    let mut worker = worker_call(&cell.nats, "node", &containerd)
        .arg("--metrics-listen")
        .arg(format!("127.0.0.1:{port}"))
        .spawn("the worker");
    answers(port, 200, "ready").await;
    containerd.kill();
    answers(port, 503, "runtime: ").await;
    containerd.restart().await;
    answers(port, 200, "ready").await;
    assert!(worker.terminate().await.success(), "{}", worker.log());
}
