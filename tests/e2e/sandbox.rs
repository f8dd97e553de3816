//! The worker does its work with no more rights than it is shipped with.

use std::path::Path;

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::{Cell, LIMIT, worker_call};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{Entry, Layer, Recipe};
use crate::support::nats::NatsVersion;

/// What the DaemonSet adds after it dropped all, as setpriv(1) names it.
fn shipped_capabilities() -> Vec<String> {
    let daemon_set = include_str!("../../deploy/kubernetes/base/worker.yaml");
    let (_, added) = daemon_set.split_once("add: [").unwrap();
    let (added, _) = added.split_once(']').unwrap();
    added.split(", ").map(str::to_lowercase).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_the_shipped_capabilities_unpacks_by_itself() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    // Owners, a setuid program, what hides a file below and what hides a folder's content.
    let below = Layer::of(&[
        Entry::dir("a", 0o700).owned_by(1000, 1000),
        Entry::file("a/hidden", 0o600, "x").owned_by(1000, 1000),
        Entry::dir("b", 0o755),
        Entry::file("b/gone", 0o644, "x"),
        Entry::file("su", 0o4755, "x").owned_by(33, 33),
    ]);
    let above = Layer::of(&[
        Entry::dir("a", 0o700).owned_by(1000, 1000),
        Entry::opaque("a"),
        Entry::file("a/new", 0o400, "x").owned_by(1000, 1000),
        Entry::whiteout("b/gone"),
    ]);
    let image = Recipe::new(vec![below, above]).build();
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    containerd.allow_registry(&cell.registry.addr());
    let (root, socket) = (containerd.root(), containerd.socket());
    let folders: [&Path; 2] = [&root, socket.parent().unwrap()];
    let mut worker = worker_call(&cell.nats, "node", &containerd)
        .sandboxed(&shipped_capabilities(), &folders)
        .spawn("the worker in its sandbox");
    cell.present("node").await;

    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    // chown 0, dac_override 1, fowner 3, fsetid 4, sys_admin 21, mknod 27, setfcap 31 (linux/capability.h).
    for line in [
        "CapEff:\t000000008820001b",
        "CapBnd:\t000000008820001b",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", worker.pid())).unwrap();
    // The mount point is the fifth field, its options the sixth (proc_pid_mountinfo(5)); the last one of a place counts.
    let options = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(4);
        (fields.next() == Some("/")).then(|| fields.next().unwrap_or(""))
    });
    assert!(
        options.unwrap().split(',').any(|option| option == "ro"),
        "{mounts}"
    );
    cell.publish("base", json!({"images": [pushed.by_tag]}))
        .await;
    let record = cell.ended("base").await;
    assert_eq!(
        record.status.outcome,
        Some(Outcome::Succeeded),
        "{record:?}\n{}",
        worker.log()
    );
    // Had it not been allowed what it needs, it would have left the layers to containerd.
    worker.logs("\"engine\":\"native\"", LIMIT).await;
    let cri = containerd.cri().await;
    assert!(cri.image_status(&pushed.by_tag).await.unwrap().is_some());
}
