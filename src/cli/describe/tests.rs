use std::time::Duration;

use serde_json::{Value, json};

use super::facts::RunFacts;
use super::node::NodePulls;
use super::{job, node};
use crate::domain::time::Timestamp;
use crate::wire::event::{Event, TaskEvent};
use crate::wire::record::{JobRecord, NodeRecord};
use crate::wire::worker::ProgressMessage;

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn at(seconds: u64) -> Timestamp {
    START.after(Duration::from_secs(seconds))
}

fn record(spec: Value, status: Value) -> JobRecord {
    serde_json::from_value(json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
        "metadata": {"name": "base", "uid": "u", "generation": 2, "createdAt": START, "requestSequence": 1},
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn node_record(name: &str, presence: &str) -> NodeRecord {
    serde_json::from_value(json!({
        "name": name, "labels": {"pool": "gpu"}, "platform": "linux/amd64", "runtime": "containerd 1.7.24",
        "capacity": 3, "diskTotalBytes": 10_737_418_240_u64, "diskFreeBytes": 1_073_741_824, "version": "0.1.0",
        "instance": "i", "presence": presence, "since": START,
    }))
    .unwrap()
}

fn event(node: &str, state: &str, more: Value) -> TaskEvent {
    let mut event = json!({"job": "base", "uid": "u", "generation": 2, "round": 1, "node": node,
        "image": "example.com/app:1", "state": state, "attempt": 1});
    if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
        event.extend(more);
    }
    serde_json::from_value(event).unwrap()
}

fn failure(kind: &str, message: &str) -> Value {
    json!({"failure": {"kind": kind, "message": message}})
}

fn running() -> JobRecord {
    let digest = format!("sha256:{}", "a".repeat(64));
    record(
        json!({"images": ["example.com/app:1"], "selector": {"matchLabels": {"pool": "gpu"},
            "matchExpressions": [{"key": "arch", "operator": "NotIn", "values": ["arm64"]}, {"key": "spot", "operator": "DoesNotExist"}]},
            "parallelism": "25%", "completionPolicy": {"activeDeadlineSeconds": 1800, "ttlSecondsAfterFinished": 300}, "pin": true}),
        json!({"phase": "Running", "round": 1, "startedAt": at(1), "images": [{"image": "example.com/app:1", "digest": digest}],
            "counts": {"desired": 6, "pending": 1, "active": 1, "succeeded": 2, "failed": 2, "cancelled": 0},
            "nodes": {"desired": 6, "succeeded": 2, "failed": 2}, "bytesRegistry": 2048,
            "failures": [{"kind": "ImageNotFound", "pulls": 2, "nodes": ["n3", "n4"], "message": "x"},
                         {"kind": "NodeAbsent", "pulls": 1, "nodes": ["n9"], "message": "gone for 120s"}]}),
    )
}

#[test]
fn a_running_job_is_told_whole() {
    let mut facts = RunFacts::default();
    let result = |seconds: u64| {
        json!({"result": {"digest": format!("sha256:{}", "a".repeat(64)), "alreadyPresent": false, "bytesRegistry": 1024,
            "bytesElsewhere": 0, "bytesPresent": 0, "resolveMillis": 0, "downloadMillis": seconds * 1000, "unpackMillis": 0}})
    };
    facts.add(&event("n1", "succeeded", result(10)));
    facts.add(&event("n2", "succeeded", result(20)));
    facts.add(&event(
        "n4",
        "failed",
        failure("ImageNotFound", "no such tag"),
    ));
    facts.add(&event("n3", "retrying", failure("RateLimited", "429")));
    facts.add(&event(
        "n3",
        "failed",
        failure("ImageNotFound", "no such tag"),
    ));
    let mut waiting = failure("RateLimited", "429");
    waiting["nextAttemptAt"] = json!(at(70));
    facts.add(&event("n5", "retrying", waiting));
    let nodes = [node_record("n5", "Present"), node_record("n6", "Absent")];
    let digest = "a".repeat(64);
    assert_eq!(
        job::text(&running(), &nodes, &facts, at(61)),
        format!(
            "Name:         base
Phase:        Running
Created:      2026-09-21T14:13:20.000Z (61s ago)
Run:          generation 2, round 1
Started:      2026-09-21T14:13:21.000Z, running for 1m0s
Images:       example.com/app:1 = sha256:{digest}
Nodes:        pool=gpu, arch notin (arm64), !spot
Parallelism:  25% at once, priority 0
Pulls:        IfNotPresent, 600s an attempt, 3 retries
Completion:   ends when every node had its turn, at the latest after 30m0s, deleted after another 5m0s
Also:         pinned
Progress:     6 pulls: 2 succeeded, 2 failed, 1 active, 1 pending
              6 nodes: 2 with every image, 2 with a failure
Bytes:        2.0 KiB from registries, 0 B from elsewhere
Waits for:    1 absent node, each counted as failed once it is gone for 120s: n6
              another attempt of 1 pull after RateLimited (attempt 1: 429) on n5, the next in 9s
Failures:
  ImageNotFound: 2 pulls
    no such tag
      on n3, n4
  NodeAbsent: 1 pull on n9: gone for 120s
Retries:      2 after RateLimited
Slowest nodes:
  n2   20s   1.0 KiB
  n1   10s   1.0 KiB
"
        )
    );
}

fn waits(spec: Value, status: Value, nodes: &[NodeRecord]) -> String {
    let text = job::text(&record(spec, status), nodes, &RunFacts::default(), at(1));
    text.lines()
        .skip_while(|line| !line.starts_with("Waits for:"))
        .take(1)
        .collect()
}

#[test]
fn it_says_what_it_waits_for() {
    let status = |phase: &str| {
        json!({"phase": phase, "round": 1, "paused": phase == "Paused",
        "counts": {"desired": 0, "pending": 0, "active": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
        "nodes": {"desired": 0, "succeeded": 0, "failed": 0}})
    };
    let nodes = [node_record("n1", "Present")];
    let images = json!({"images": ["a"]});
    assert_eq!(
        waits(images.clone(), status("Paused"), &nodes),
        "Waits for:    `prewarm resume base`: it is paused"
    );
    assert_eq!(
        waits(
            json!({"images": ["a"], "parallelism": 0}),
            status("Running"),
            &nodes
        ),
        "Waits for:    a parallelism above 0"
    );
    let selector = json!({"images": ["a"], "selector": {"matchLabels": {"pool": "cpu"}}});
    assert_eq!(
        waits(selector, status("Running"), &nodes),
        "Waits for:    a node that matches: 1 known node, 0 match pool=cpu"
    );
    assert_eq!(
        waits(images.clone(), status("Idle"), &nodes),
        "Waits for:    the next round, or a node that joins"
    );
    assert_eq!(waits(images, status("Completed"), &[]), "");
}

fn held(name: &str, presence: &str) -> NodeRecord {
    let mut record = node_record(name, presence);
    record.facts.waiting = Some("cordoned in Kubernetes".to_owned());
    record
}

#[test]
fn it_says_which_nodes_take_no_new_pulls_and_why() {
    let nodes = [
        held("n1", "Present"),
        held("n2", "Present"),
        held("n3", "Absent"),
        node_record("n4", "Present"),
    ];
    let status = |pending: u32| {
        json!({"phase": "Running", "round": 1,
        "counts": {"desired": 4, "pending": pending, "active": 4 - pending, "succeeded": 0, "failed": 0, "cancelled": 0},
        "nodes": {"desired": 4, "succeeded": 0, "failed": 0}})
    };
    let text = |pending| {
        let record = record(json!({"images": ["a"]}), status(pending));
        job::text(&record, &nodes, &RunFacts::default(), at(1))
    };
    let line = "2 nodes to take pulls again, cordoned in Kubernetes: n1, n2\n";
    assert!(text(3).contains(line), "{}", text(3));
    assert!(!text(0).contains("cordoned"), "{}", text(0));
    let node = node::text(&nodes[0], &NodePulls::default(), at(60));
    assert!(
        node.contains("Waits:        nothing new is released to it: cordoned in Kubernetes\n"),
        "{node}"
    );
}

#[test]
fn failures_are_told_from_the_record_when_the_events_are_gone() {
    let text = job::text(&running(), &[], &RunFacts::default(), at(1));
    assert!(text.contains("Failures:\n  ImageNotFound: 2 pulls on n3, n4: x\n  NodeAbsent: 1 pull on n9: gone for 120s\n"), "{text}");
}

fn failures_of(status_failures: Value, facts: &RunFacts) -> String {
    let mut record = running();
    record.status.failures = serde_json::from_value(status_failures).unwrap();
    let text = job::text(&record, &[], facts, at(1));
    let lines = text
        .lines()
        .skip_while(|line| *line != "Failures:")
        .skip(1)
        .take_while(|line| line.starts_with(' '));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn pulls_that_were_never_released_are_told_beside_those_that_ran_into_the_deadline() {
    let mut facts = RunFacts::default();
    let stopped = failure("DeadlineExceeded", "stopped: the job's deadline has passed");
    facts.add(&event("n1", "failed", stopped));
    let group = json!([{"kind": "DeadlineExceeded", "pulls": 4, "nodes": ["n1", "n2", "n3"], "message": "not started"}]);
    assert_eq!(
        failures_of(group, &facts),
        "  DeadlineExceeded: 4 pulls
    stopped: the job's deadline has passed
      on n1
    by the job's record, 3 pulls more: not started
      on n2, n3"
    );
}

#[test]
fn only_the_first_end_of_a_pull_counts() {
    let mut facts = RunFacts::default();
    let bad = || failure("DigestMismatch", "other bytes");
    // Told again after a lost ack.
    facts.add(&event("n1", "failed", bad()));
    facts.add(&event("n1", "failed", bad()));
    // Late words of a pull that succeeded.
    facts.add(&event("n2", "succeeded", json!({})));
    facts.add(&event("n2", "failed", bad()));
    facts.add(&event("n2", "retrying", bad()));
    // Another image of the same node is another pull.
    let mut other = bad();
    other["image"] = json!("example.com/other:1");
    facts.add(&event("n1", "failed", other));
    assert_eq!(
        failures_of(json!([]), &facts),
        "  DigestMismatch: 2 pulls\n    other bytes\n      on n1"
    );
    assert!(facts.retries.is_empty() && facts.retrying.is_empty());
}

#[test]
fn a_node_is_told_with_its_newest_pulls_first() {
    let mut pulls = NodePulls::default();
    let mut add = |job: &str, seconds: u64, state: &str, more: Value| {
        let mut data = event("n1", state, more);
        data.job = job.parse().unwrap();
        pulls.add(&Event::new(
            "task.x",
            String::new(),
            String::new(),
            String::new(),
            at(seconds),
            data,
        ));
    };
    add("old", 1, "succeeded", json!({}));
    add("new", 50, "started", json!({}));
    add("new", 55, "failed", failure("Timeout", "too slow"));
    assert_eq!(
        node::text(&node_record("n1", "Present"), &pulls, at(60)),
        "Name:         n1
Labels:       pool=gpu
Status:       present for 60s
Runtime:      containerd 1.7.24, linux/amd64
Capacity:     3 pulls at once
Disk:         1.0 GiB of 10.0 GiB free when it joined
Worker:       prewarm 0.1.0
Pulls:
  5s ago    failed      new   example.com/app:1   Timeout: too slow
  59s ago   succeeded   old   example.com/app:1
"
    );
}

#[test]
fn pulls_that_go_on_are_listed_with_rate_and_time_left_the_longest_first() {
    let mut going = super::going::GoingOn::default();
    let say = |node: &str, more: Value| -> ProgressMessage {
        let mut message = json!({"job": "base", "uid": "u", "generation": 2, "round": 1, "node": node,
            "image": "example.com/app:1", "attempt": 1, "phase": "Downloading", "bytesDone": 10 << 20, "bytesTotal": 40 << 20});
        if let (Some(message), Value::Object(more)) = (message.as_object_mut(), more) {
            message.extend(more);
        }
        serde_json::from_value(message).unwrap()
    };
    going.add(say(
        "n1",
        json!({"bytesPerSecond": 10 << 20, "secondsLeft": 3}),
    ));
    going.add(say(
        "n2",
        json!({"bytesPerSecond": 1 << 20, "secondsLeft": 30}),
    ));
    going.add(say("n3", json!({"phase": "Committing"})));
    going.add(say("n4", json!({"waitingAfter": "RateLimited"})));
    assert_eq!(
        going.text(),
        "Pulls going on:
  n2   example.com/app:1   10.0 MiB of 40.0 MiB, 1.0 MiB/s, about 30s left
  n1   example.com/app:1   10.0 MiB of 40.0 MiB, 10.0 MiB/s, about 3s left
  n3   example.com/app:1   committing
"
    );
    for node in 10..25 {
        going.add(say(&format!("m{node}"), json!({})));
    }
    assert!(
        going.text().ends_with("  and 8 more pulls\n"),
        "{}",
        going.text()
    );
}
