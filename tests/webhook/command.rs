//! `prewarm webhook` as it is started and looked after.

use super::receiver::{LIMIT, SECRET, send};
use crate::support::images::http;
use crate::support::prewarm::prewarm;
use crate::support::process::free_port;
use crate::support::wait::eventually;

#[tokio::test]
async fn every_problem_of_the_settings_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("webhooks.yaml");
    std::fs::write(
        &file,
        "sources: {harbor: {}, nowhere: {}, generic: {secret-env: SHORT, registries: [a.io]}}",
    )
    .unwrap();
    let output = prewarm([
        "webhook",
        "--listen",
        "8080",
        "--tls-cert",
        "a.pem",
        "--max-body",
        "1",
        "--publish-timeout",
        "2m",
    ])
    .arg("--webhook-config")
    .arg(&file)
    .env("SHORT", "short")
    .run()
    .await;
    assert_eq!(output.code, 2, "{output:?}");
    for problem in [
        "--listen: \"8080\" is not an address",
        "--tls-cert: needs --tls-key",
        "--max-body: ",
        "--publish-timeout: ",
        "sources.harbor.secret-file: ",
        "sources.harbor.registries: ",
        "sources.nowhere: ",
        "sources.generic.secret: the secret is shorter than 16",
    ] {
        assert!(
            output.stderr.contains(problem),
            "{problem}: {}",
            output.stderr
        );
    }
    let output = prewarm(["webhook"]).run().await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("--webhook-config: has to be set"),
        "{output:?}"
    );
}

#[test]
fn the_readmes_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().to_str().unwrap();
    for name in ["harbor", "nexus"] {
        std::fs::write(folder.path().join(name), SECRET).unwrap();
    }
    let readme = include_str!("../../README.md");
    let blocks = readme.split("```yaml\n").skip(1);
    let text = blocks.map(|block| block.split("```").next().unwrap());
    let text = text
        .into_iter()
        .find(|block| block.contains("sources:"))
        .unwrap();
    let file = folder.path().join("webhooks.yaml");
    std::fs::write(&file, text.replace("/etc/prewarm", secrets)).unwrap();
    assert_eq!(prewarm::webhook::settings::read(&file).unwrap().len(), 3);
}

#[tokio::test]
async fn it_answers_before_its_broker_is_there_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("webhooks.yaml");
    std::fs::write(
        &file,
        "sources: {harbor: {secret-env: HOOK_SECRET, registries: [r.example.com]}}",
    )
    .unwrap();
    let (port, metrics) = (free_port(), free_port());
    let mut receiver = prewarm([
        "webhook",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--metrics-listen",
        &format!("127.0.0.1:{metrics}"),
    ])
    .arg("--webhook-config")
    .arg(&file)
    .env("HOOK_SECRET", SECRET)
    .env("PREWARM_NATS_URL", "nats://127.0.0.1:1")
    .spawn("the receiver");
    receiver.logs("webhooks are taken", LIMIT).await;
    let base = format!("http://127.0.0.1:{port}/webhooks");
    let push = super::events::payload(
        prewarm::webhook::source::Source::Harbor,
        &super::events::tagged("1", 1),
    )
    .to_string();
    let proof = [("authorization", SECRET.to_owned())];
    assert_eq!(
        send(&format!("{base}/harbor"), push.as_bytes(), &proof)
            .await
            .0,
        503
    );
    assert_eq!(
        send(&format!("{base}/quay"), push.as_bytes(), &proof)
            .await
            .0,
        404
    );
    let told = |path: &'static str| async move {
        let answer = http()
            .get(format!("http://127.0.0.1:{metrics}{path}"))
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(told("/readyz").await.0, 503);
    assert_eq!(told("/healthz").await.0, 200);
    eventually("the requests to be counted", LIMIT, async || {
        let text = told("/metrics").await.1;
        let counted = text.contains(r#"requests_total{outcome="unavailable",source="harbor"} 1"#)
            && text.contains(r#"requests_total{outcome="unknown",source="none"} 1"#);
        if counted { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(receiver.terminate().await.success(), "{}", receiver.log());
    assert!(!receiver.log().contains(SECRET));
}
