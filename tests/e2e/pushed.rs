//! A push to the registry warms the fleet, with no other hand in it: the registry tells the receiver, the receiver the
//! broker, the dispatcher's rule makes the job, the worker pulls.

use super::cell::{Cell, LIMIT};
use crate::support::containerd::ContainerdVersion;
use crate::support::images::generated;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::prewarm;
use crate::support::process::free_port;
use crate::support::registry::Registry;
use crate::support::wait::eventually;

const SECRET: &str = "a-secret-of-the-test";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_pushed_is_warm_on_the_nodes_of_its_rule() {
    let port = free_port();
    let notifications = format!(
        "notifications:\n  endpoints:\n    - name: prewarm\n      url: http://127.0.0.1:{port}/webhooks/distribution\n      headers: {{Authorization: [Bearer {SECRET}]}}\n      timeout: 5s\n      threshold: 2\n      backoff: 200ms\n"
    );
    let (nats, registry) = tokio::join!(
        NatsServer::start(NatsVersion::V2_15),
        Registry::start_with(&notifications)
    );
    let cell = Cell::start_with(nats, registry).await;
    let address = cell.registry.addr();
    let folder = tempfile::tempdir().unwrap();
    let (sources, rule) = (
        folder.path().join("sources.yaml"),
        folder.path().join("rule.yaml"),
    );
    let text = format!(
        "sources: {{distribution: {{secret-env: HOOK_SECRET, registries: ['{address}']}}}}"
    );
    std::fs::write(&sources, text).unwrap();
    let mut receiver = prewarm(["webhook", "--metrics-listen", "off", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--webhook-config")
        .arg(&sources)
        .env("HOOK_SECRET", SECRET)
        .env("PREWARM_NATS_URL", cell.nats.url())
        .spawn("the receiver");
    receiver.logs("the broker is connected", LIMIT).await;
    let text = format!(
        "apiVersion: prewarm.dev/v1\nkind: PushRule\nmetadata: {{name: team}}\nspec:\n  registry: '{address}'\n  repository: team/*\n  job: {{spec: {{selector: {{matchLabels: {{pool: test}}}}}}}}\n"
    );
    std::fs::write(&rule, text).unwrap();
    let applied = cell.run(&["apply", "-f", rule.to_str().unwrap()]).await;
    assert_eq!(
        (applied.code, applied.stdout.as_str()),
        (0, "rule/team applied\n"),
        "{applied:?}"
    );
    let node = cell.node("node", ContainerdVersion::V2_1, &address).await;

    let image = generated(7, 3, 200_000).build();
    let other = cell.registry.push("other/app", "1", &image).await;
    let pushed = cell.registry.push("team/app", "1.4", &image).await;
    let cri = node.containerd.cri().await;
    for name in [&pushed.by_digest, &pushed.by_tag] {
        eventually(&format!("{name} to be warm"), LIMIT, async || {
            match cri.image_status(name).await {
                Ok(Some(_)) => Ok(()),
                found => Err(format!(
                    "{found:?}; receiver:\n{}\ndispatcher:\n{}\nworker:\n{}",
                    receiver.log(),
                    cell.dispatcher.log(),
                    node.worker.log()
                )),
            }
        })
        .await;
    }
    assert!(
        cri.image_status(&other.by_tag).await.unwrap().is_none(),
        "no rule is about it"
    );
    let jobs = cell.run(&["get", "jobs", "-o", "json"]).await;
    let jobs: serde_json::Value = serde_json::from_str(&jobs.stdout).unwrap();
    let jobs = jobs["items"].as_array().unwrap();
    assert_eq!(jobs.len(), 1, "{jobs:#?}");
    assert_eq!(jobs[0]["metadata"]["labels"]["prewarm.dev/rule"], "team");
    assert_eq!(
        jobs[0]["metadata"]["labels"]["prewarm.dev/source"],
        "distribution"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_ci_tells_by_its_tag_alone_is_warm_by_its_digest() {
    let cell = Cell::start(NatsVersion::V2_10).await;
    let address = cell.registry.addr();
    let rule = format!(
        "apiVersion: prewarm.dev/v1\nkind: PushRule\nmetadata: {{name: ci}}\nspec: {{registry: '{address}', repository: '**'}}\n"
    );
    let applied = cell.prewarm(&["apply", "-f", "-"]).stdin(rule).run().await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let node = cell.node("node", ContainerdVersion::V1_7, &address).await;
    let image = generated(9, 2, 100_000).build();
    let pushed = cell.registry.push("team/app", "2", &image).await;
    let push = serde_json::json!({"registry": address, "repository": "team/app", "tag": "2"});
    let client = cell.nats.client().await;
    client
        .publish("prewarm.push", push.to_string().into())
        .await
        .unwrap();
    client.flush().await.unwrap();
    let cri = node.containerd.cri().await;
    eventually(
        "the image to be warm by its digest",
        LIMIT,
        async || match cri.image_status(&pushed.by_digest).await {
            Ok(Some(_)) => Ok(()),
            found => Err(format!("{found:?}; dispatcher:\n{}", cell.dispatcher.log())),
        },
    )
    .await;
}
