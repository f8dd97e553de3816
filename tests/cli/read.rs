//! What `get`, `describe`, `events` and `watch` show of records and events.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::dispatcher::{Dispatcher, LIMIT, job, node};
use crate::support::wait::eventually;

#[tokio::test]
async fn jobs_and_nodes_are_tables() {
    let dispatcher = Dispatcher::start().await;
    dispatcher
        .put_job(&job("base.image", "Running", 4, 1))
        .await;
    dispatcher.put_job(&job("app", "Idle", 10, 0)).await;
    dispatcher
        .put_node(&node("node-1.example.com", "Present"))
        .await;
    let jobs = dispatcher.prewarm(&["get", "jobs"]).run().await;
    let lines: Vec<Vec<&str>> = jobs
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        ["NAME", "PHASE", "PULLS", "FAILED", "NODES", "AGE"]
    );
    assert_eq!(lines[1][..5], ["app", "Idle", "10/10", "0", "10/10"]);
    assert_eq!(
        lines[2][..5],
        ["base.image", "Running", "4/10", "1", "4/10"]
    );
    let nodes = dispatcher
        .prewarm(&["get", "node", "node-1.example.com", "-o", "wide"])
        .run()
        .await;
    assert!(
        nodes.stdout.contains(
            "containerd 1.7.24   linux/amd64   3          1.0 GiB     0.1.0     pool=gpu"
        ),
        "{nodes:?}"
    );
}

#[tokio::test]
async fn data_is_what_the_bucket_holds() {
    let dispatcher = Dispatcher::start().await;
    let none: Value = serde_json::from_str(
        &dispatcher
            .prewarm(&["get", "jobs", "-o", "json"])
            .run()
            .await
            .stdout,
    )
    .unwrap();
    assert_eq!(none["items"], json!([]));
    let record = job("base", "Running", 4, 1);
    dispatcher.put_job(&record).await;
    let one = dispatcher
        .prewarm(&["get", "job", "base", "-o", "json"])
        .run()
        .await;
    let one: Value = serde_json::from_str(&one.stdout).unwrap();
    assert_eq!(one["status"]["counts"], record["status"]["counts"]);
    let list = dispatcher
        .prewarm(&["get", "jobs", "-o", "json"])
        .run()
        .await;
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]), (&json!("List"), &one));
    let yaml = dispatcher
        .prewarm(&["get", "job", "base", "-o", "yaml"])
        .run()
        .await;
    let again = prewarm::wire::manifest::parse(yaml.stdout.as_bytes())
        .expect("what get prints can be applied");
    assert_eq!(again.name.as_str(), "base");
    dispatcher.forget_job("base").await;
    let gone = dispatcher.prewarm(&["get", "job", "base"]).run().await;
    assert_eq!(
        (gone.code, gone.stderr.as_str()),
        (2, "error: there is no job base\n")
    );
}

#[tokio::test]
async fn every_change_is_watched() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.put_job(&job("base", "Running", 0, 0)).await;
    let mut watch = dispatcher
        .prewarm(&["get", "jobs", "--watch"])
        .spawn("get --watch");
    watch.logs("0/10", LIMIT).await;
    dispatcher.put_job(&job("base", "Completed", 10, 0)).await;
    watch.logs("10/10", LIMIT).await;
    dispatcher.forget_job("base").await;
    watch.logs("job base is gone", LIMIT).await;
}

#[tokio::test]
async fn a_job_is_described_from_its_record_its_events_and_the_nodes() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.put_job(&job("base", "Running", 4, 2)).await;
    dispatcher.put_node(&node("node-1", "Present")).await;
    dispatcher.put_node(&node("node-2", "Absent")).await;
    let failure = json!({"failure": {"kind": "ImageNotFound", "message": "no such tag"}});
    dispatcher
        .tell_task("base", "node-3", "failed", failure.clone())
        .await;
    dispatcher
        .tell_task("base", "node-4", "failed", failure)
        .await;
    dispatcher
        .tell_task(
            "base",
            "node-5",
            "failed",
            json!({"round": 7, "failure": {"kind": "Timeout", "message": "of another round"}}),
        )
        .await;
    let described = dispatcher.prewarm(&["describe", "job", "base"]).run().await;
    for part in [
        "Name:         base\n",
        "Nodes:        pool=gpu\n",
        "Progress:     10 pulls: 4 succeeded, 2 failed, 4 pending\n",
        "Waits for:    1 absent node, each counted as failed once it is gone for 120s: node-2\n",
        "  ImageNotFound: 2 pulls\n    no such tag\n      on node-3, node-4\n",
    ] {
        assert!(
            described.stdout.contains(part),
            "{part:?} is missing in\n{}",
            described.stdout
        );
    }
    assert!(
        !described.stdout.contains("another round"),
        "{}",
        described.stdout
    );
    let node = dispatcher
        .prewarm(&["describe", "node", "node-2"])
        .run()
        .await;
    assert!(node.stdout.contains("Status:       absent for"), "{node:?}");
    for args in [["describe", "job", "other"], ["describe", "node", "other"]] {
        let output = dispatcher.prewarm(&args).run().await;
        assert_eq!(
            (output.code, output.stderr),
            (2, format!("error: there is no {} other\n", args[1]))
        );
    }
}

#[tokio::test]
async fn events_are_filtered_and_come_as_lines_or_data() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.tell("base", "accepted", json!({})).await;
    dispatcher
        .tell("base", "completed", json!({"outcome": "Succeeded"}))
        .await;
    dispatcher
        .tell("other", "completed", json!({"outcome": "Failed"}))
        .await;
    dispatcher
        .tell_task("base", "node-1", "succeeded", json!({}))
        .await;
    let all = dispatcher.prewarm(&["events"]).run().await;
    assert_eq!(all.stdout.lines().count(), 4, "{all:?}");
    assert!(
        all.stdout
            .starts_with("2026-09-21T14:13:20.000Z  job.accepted          base\n"),
        "{all:?}"
    );
    let some = dispatcher
        .prewarm(&[
            "events",
            "--job",
            "base",
            "--type",
            "completed,task",
            "-o",
            "json",
        ])
        .run()
        .await;
    let types: Vec<String> = some
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].to_string())
        .collect();
    assert_eq!(
        types,
        [
            "\"dev.prewarm.job.completed\"",
            "\"dev.prewarm.task.succeeded\""
        ]
    );
    let none = dispatcher
        .prewarm(&["events", "--since", "2126-01-01T00:00:00Z"])
        .run()
        .await;
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    let recent = dispatcher.prewarm(&["events", "--since", "1h"]).run().await;
    assert_eq!(recent.stdout, all.stdout);
    let unknown = dispatcher
        .prewarm(&["events", "--type", "done"])
        .run()
        .await;
    assert_eq!(unknown.code, 2, "{unknown:?}");
}

#[tokio::test]
async fn followed_events_come_as_they_happen() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.tell("old", "completed", json!({})).await;
    let mut follow = dispatcher
        .prewarm(&["events", "--follow", "--since", "1d"])
        .spawn("events --follow");
    follow.logs("old", LIMIT).await;
    dispatcher.tell("new", "completed", json!({})).await;
    follow.logs("new", LIMIT).await;
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_error() {
    let dispatcher = Dispatcher::start().await;
    for _ in 0..3 {
        dispatcher.tell("base", "accepted", json!({})).await;
    }
    let program = env!("CARGO_BIN_EXE_prewarm");
    let script = format!("{program} events --follow --since 1d | head -n 1");
    let mut pipe = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .env("NATS_URL", dispatcher.nats.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The follower finds out that nobody reads when it has something to say.
    eventually("the end of the pipe", LIMIT, async || {
        dispatcher.tell("base", "completed", json!({})).await;
        pipe.try_wait().unwrap()
    })
    .await;
    let output = pipe.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
}

#[tokio::test]
async fn a_watch_without_a_terminal_is_lines() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.put_job(&job("base", "Running", 0, 0)).await;
    let mut watch = dispatcher.prewarm(&["watch", "base"]).spawn("watch");
    watch
        .logs("base: 0/10 pulls", Duration::from_secs(30))
        .await;
    dispatcher
        .tell_task("base", "node-1", "succeeded", json!({}))
        .await;
    dispatcher
        .tell_task(
            "base",
            "node-2",
            "failed",
            json!({"failure": {"kind": "Timeout", "message": "too slow"}}),
        )
        .await;
    watch.logs("base: 1 pull succeeded on node-1", LIMIT).await;
    watch
        .logs("base: 1 pull failed on node-2: Timeout: too slow", LIMIT)
        .await;
    dispatcher
        .tell("base", "completed", json!({"outcome": "PartiallyFailed"}))
        .await;
    let end = watch.end(LIMIT).await;
    assert_eq!(end.code, 1, "{end:?}");
    assert!(
        end.stderr.contains("job/base completed: PartiallyFailed"),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_watch_of_a_job_that_has_ended_says_how() {
    let dispatcher = Dispatcher::start().await;
    let mut record = job("base", "Completed", 10, 0);
    record["status"]["outcome"] = json!("Succeeded");
    dispatcher.put_job(&record).await;
    let watch = dispatcher.prewarm(&["watch", "base"]).run().await;
    assert_eq!(
        (watch.code, watch.stdout.as_str()),
        (
            0,
            "job/base completed: Succeeded, 10 of 10 pulls on 10 nodes, 2.0 KiB\n  as it should be\n"
        )
    );
    let other = dispatcher.prewarm(&["watch", "other"]).run().await;
    assert_eq!(
        (other.code, other.stderr.as_str()),
        (2, "error: there is no job other\n")
    );
    dispatcher.put_job(&job("slow", "Running", 0, 0)).await;
    let slow = dispatcher
        .prewarm(&["watch", "slow", "--timeout", "200ms"])
        .run()
        .await;
    assert_eq!(slow.code, 4, "{slow:?}");
}
