//! Push rules as a user meets them: applied, shown, tried, deleted.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::dispatcher::Dispatcher;
use crate::support::prewarm::prewarm;

const RULE: &str = "apiVersion: prewarm.dev/v1
kind: PushRule
metadata: {name: apps}
spec:
  registry: registry.example.com
  repository: [team/**, '!team/secret']
  tag: 'v*'
  job:
    labels: {app: '{{repository}}'}
    spec: {parallelism: 5}
";
const PUSH: &str =
    r#"{"registry": "registry.example.com", "repository": "team/app", "tag": "v1.4"}"#;

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_rule_is_applied_shown_and_deleted() {
    let dispatcher = Dispatcher::start().await;
    let apply = dispatcher
        .prewarm(&["apply", "-f", "-"])
        .stdin(RULE)
        .run()
        .await;
    assert_eq!(
        (apply.code, apply.stdout.as_str()),
        (0, "rule/apps applied\n"),
        "{apply:?}"
    );
    let get = dispatcher.prewarm(&["get", "rules"]).run().await;
    assert!(
        get.stdout.contains("apps") && get.stdout.contains("team/**,!team/secret"),
        "{get:?}"
    );
    let get = dispatcher
        .prewarm(&["get", "rule", "apps", "-o", "json"])
        .run()
        .await;
    let shown: Value = serde_json::from_str(&get.stdout).unwrap();
    assert_eq!(shown["spec"]["job"]["spec"]["parallelism"], 5);
    // What is shown can be applied again.
    let again = dispatcher
        .prewarm(&["apply", "-f", "-"])
        .stdin(get.stdout)
        .run()
        .await;
    assert_eq!(again.code, 0, "{again:?}");
    let describe = dispatcher
        .prewarm(&["describe", "rule", "apps"])
        .run()
        .await;
    assert!(
        describe.stdout.contains("registry.example.com"),
        "{describe:?}"
    );
    let tried = dispatcher
        .prewarm(&["rules", "test", "-"])
        .stdin(PUSH)
        .run()
        .await;
    assert!(
        tried.code == 0 && tried.stdout.contains("apps-team-app-"),
        "{tried:?}"
    );
    let delete = dispatcher.prewarm(&["rules", "delete", "apps"]).run().await;
    assert_eq!(
        (delete.code, delete.stdout.as_str()),
        (0, "rule/apps deleted\n"),
        "{delete:?}"
    );
    let again = dispatcher.prewarm(&["rules", "delete", "apps"]).run().await;
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("there is no rule apps"), "{again:?}");
    let get = dispatcher.prewarm(&["get", "rule", "apps"]).run().await;
    assert_eq!(get.code, 2, "{get:?}");
}

#[tokio::test]
async fn everything_wrong_with_rules_and_jobs_is_said_before_anything_is_sent() {
    let text = "apiVersion: prewarm.dev/v1
kind: PushRule
metadata: {name: apps}
spec: {repository: '{', colour: red, job: {spec: {parallelism: ten, images: ['{{tga}}']}}}
---
apiVersion: prewarm.dev/v1
kind: PrewarmJob
metadata: {name: base}
spec: {}
";
    // No broker is there: nothing is sent.
    let apply = prewarm(["apply", "-f", "-"]).stdin(text).run().await;
    assert_eq!(apply.code, 2);
    for place in [
        "doc 1: spec.registry: is missing",
        "doc 1: spec.repository",
        "doc 1: spec.colour",
        "doc 1: spec.job.spec.images[0]: {{tga}} means nothing here",
        "doc 2: spec.images",
    ] {
        assert!(apply.stderr.contains(place), "{place}: {}", apply.stderr);
    }
}

#[tokio::test]
async fn a_payload_is_tried_without_a_broker() {
    let folder = tempfile::tempdir().unwrap();
    let rule = file(&folder, "rule.yaml", RULE);
    let payload = json!({
        "type": "PUSH_ARTIFACT", "occur_at": 1,
        "event_data": {
            "resources": [{"digest": format!("sha256:{}", "7".repeat(64)), "tag": "v2", "resource_url": "registry.example.com/team/app:v2"}],
            "repository": {"repo_full_name": "team/app"},
        },
    });
    let payload = file(&folder, "payload.json", &payload.to_string());
    let test = prewarm(["rules", "test", "--source", "harbor", "-o", "json", "-f"])
        .arg(&rule)
        .arg(&payload)
        .run()
        .await;
    assert_eq!(test.code, 0, "{test:?}");
    let told: Value = serde_json::from_str(&test.stdout).unwrap();
    let job = &told["pushes"][0]["jobs"][0];
    assert_eq!(job["rule"], "apps");
    let image = format!("registry.example.com/team/app@sha256:{}", "7".repeat(64));
    let images = json!([image, "registry.example.com/team/app:v2"]);
    assert_eq!(job["manifest"]["spec"]["images"], images);
    assert_eq!(job["manifest"]["metadata"]["labels"]["app"], "team-app");

    let other = file(&folder, "other.json", &PUSH.replace("v1.4", "latest"));
    let test = prewarm(["rules", "test", "-f"])
        .arg(&rule)
        .arg(&other)
        .run()
        .await;
    assert!(
        test.code == 0 && test.stdout.contains("no rule"),
        "{test:?}"
    );
    let test = prewarm(["rules", "test", "--source", "nobody", "-f"])
        .arg(&rule)
        .arg(&other)
        .run()
        .await;
    assert!(
        test.code == 2 && test.stderr.contains("known: distribution"),
        "{test:?}"
    );
    let test = prewarm(["rules", "test", "-f"])
        .arg(&rule)
        .arg(&payload)
        .run()
        .await;
    assert!(
        test.code == 2 && test.stderr.contains("--source"),
        "{test:?}"
    );
}

/// By digest alone it may be of an index's child: it counts where the receiver is told so.
#[tokio::test]
async fn a_push_by_digest_counts_as_the_receiver_would_count_it() {
    let folder = tempfile::tempdir().unwrap();
    let child = json!({
        "type": "PUSH_ARTIFACT", "occur_at": 1,
        "event_data": {
            "resources": [{"digest": format!("sha256:{}", "7".repeat(64)), "tag": "", "resource_url": "registry.example.com/team/app"}],
            "repository": {"repo_full_name": "team/app"},
        },
    });
    let any = RULE.replace("tag: 'v*'", "");
    let any = file(&folder, "any.yaml", &any);
    let child = file(&folder, "child.json", &child.to_string());
    for digest_only in [false, true] {
        let source = ["--source", "harbor", "--digest-only"];
        let source = &source[..2 + usize::from(digest_only)];
        let words = [&["rules", "test", "-o", "json"], source, &["-f"]].concat();
        let test = prewarm(words).arg(&any).arg(&child).run().await;
        let told: Value = serde_json::from_str(&test.stdout).unwrap();
        let (pushes, ignored) = (&told["pushes"], told["ignored"].to_string());
        assert_eq!(
            pushes.as_array().unwrap().len(),
            usize::from(digest_only),
            "{told}"
        );
        assert_eq!(ignored.contains("digest-only"), !digest_only, "{told}");
    }
}
