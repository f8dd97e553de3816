//! The roles: how they start, what they serve, how they end.

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::dispatcher::LIMIT;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::prewarm;
use crate::support::process::free_port;
use crate::support::wait::eventually;

#[tokio::test]
async fn a_worker_without_containerd_ends_with_three_and_says_what_to_do() {
    let output = prewarm([
        "worker",
        "--node",
        "n",
        "--containerd-address",
        "/nowhere/containerd.sock",
        "--metrics-listen",
        "off",
    ])
    .env("NATS_URL", "nats://127.0.0.1:1")
    .run()
    .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stderr.contains("/nowhere/containerd.sock")
            && output.stderr.contains("--containerd-address"),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_taken_port_for_metrics_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = prewarm(["dispatcher", "--metrics-listen", &address])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains(&address) && output.stderr.contains("--metrics-listen"),
        "{output:?}"
    );
}

pub(crate) async fn get(port: u16, path: &str) -> Result<String, String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(|error| error.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .await
        .map_err(|error| error.to_string())?;
    Ok(text)
}

async fn answers(port: u16, path: &str, wanted: &str) {
    eventually(&format!("{path} to say {wanted:?}"), LIMIT, async || {
        let text = get(port, path).await?;
        if text.contains(wanted) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

#[tokio::test]
async fn a_role_waits_for_its_broker_and_is_ready_when_it_is_there() {
    let mut nats = NatsServer::start(NatsVersion::V2_15).await;
    nats.kill();
    let port = free_port();
    let mut dispatcher = prewarm([
        "dispatcher",
        "--metrics-listen",
        &format!("127.0.0.1:{port}"),
        "--log-format",
        "json",
    ])
    .env("PREWARM_NATS_URL", nats.url())
    .spawn("the dispatcher");
    answers(port, "/healthz", "200 OK").await;
    answers(port, "/readyz", "the broker is not connected").await;
    dispatcher
        .logs("no connection with the broker yet", LIMIT)
        .await;
    nats.restart().await;
    answers(port, "/readyz", "200 OK").await;
    answers(port, "/metrics", "process_resident_memory_bytes").await;
    dispatcher.logs("leading", LIMIT).await;
    for line in dispatcher.log().lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(
        dispatcher.terminate().await.success(),
        "{}",
        dispatcher.log()
    );
}

#[tokio::test]
async fn a_role_that_waits_for_its_broker_ends_when_told_to() {
    let mut worker = prewarm([
        "worker",
        "--node",
        "n",
        "--runtime",
        "simulated",
        "--metrics-listen",
        "off",
    ])
    .env("PREWARM_NATS_URL", "nats://127.0.0.1:1")
    .spawn("the worker");
    worker
        .logs("no connection with the broker yet", LIMIT)
        .await;
    worker.signal(Signal::INT);
    let end = worker.end(LIMIT).await;
    assert_eq!(end.code, 0, "{end:?}");
}

#[tokio::test]
async fn the_service_answers_get() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let mut dispatcher = prewarm(["dispatcher", "--metrics-listen", "off"])
        .env("PREWARM_NATS_URL", nats.url())
        .spawn("the dispatcher");
    dispatcher.logs("leading", LIMIT).await;
    let client = nats.client().await;
    eventually("an answer of the service", LIMIT, async || {
        let answer = client
            .request("prewarm.api.list", "".into())
            .await
            .map_err(|error| error.to_string())?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
        if answer["jobs"].is_array() {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
}
