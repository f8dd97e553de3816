//! Pulls stand back for the rest of the worker.

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::{Cell, LIMIT};
use crate::support::containerd::ContainerdVersion;
use crate::support::gate::Gate;
use crate::support::images::generated;
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

/// The names and nicenesses of a process's threads (proc_pid_stat(5)).
fn threads(pid: u32) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = tasks.filter_map(|task| {
        // A thread may end meanwhile.
        std::fs::read_to_string(task.unwrap().path().join("stat")).ok()
    });
    let read = |stat: String| {
        let (_, named) = stat.split_once('(').unwrap();
        let (name, rest) = named.rsplit_once(") ").unwrap();
        // Its state is the third field, its niceness the 19th.
        let nice = rest.split(' ').nth(16).unwrap();
        (name.to_owned(), nice.parse().unwrap())
    };
    stats.map(read).collect()
}

/// Waits until the threads of pulls, and no others, have the niceness that is the default.
async fn only_pulls_stand_back(pid: u32) {
    // What whoever runs the tests has set.
    let usual = threads(std::process::id())[0].1;
    eventually(
        "pulls, and nothing else, to stand back",
        LIMIT,
        async || {
            let threads = threads(pid);
            let (pulling, others): (Vec<_>, Vec<_>) =
                threads.iter().partition(|(name, _)| name == "prewarm-pull");
            let stands_back = pulling.iter().all(|(_, nice)| *nice == usual.max(10));
            let is_usual = others.iter().all(|(_, nice)| *nice == usual);
            // Two that wait for work at the least, and three that inflate, hash and unpack a layer; the worker's own.
            let are_there = pulling.len() >= 5 && others.len() >= 2;
            (stands_back && is_usual && are_there)
                .then_some(())
                .ok_or(threads)
        },
    )
    .await;
}

/// The soft limit on open files is the hard one (proc_pid_limits(5)).
fn may_open_as_many_as_there_can_be(pid: u32) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let mut lines = limits.lines();
    let files = lines.find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = files.unwrap().split_ascii_whitespace().skip(3).collect();
    assert_eq!(numbers[0], numbers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_threads_of_pulls_are_nice() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = generated(31, 1, 2_000_000).build();
    cell.registry.push("team/app", "1", &image).await;
    let gate = Gate::closed_after(image.size() / 2, &cell.registry.addr()).await;
    let node = cell
        .node("node", ContainerdVersion::V2_1, &gate.addr())
        .await;
    let reference = format!("{}/team/app:1", gate.addr());
    cell.publish("base", json!({"images": [reference]})).await;
    // In the middle of the pull.
    gate.holds(LIMIT).await;
    only_pulls_stand_back(node.worker.pid()).await;
    may_open_as_many_as_there_can_be(node.worker.pid());
    gate.open();
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}"
    );
}
