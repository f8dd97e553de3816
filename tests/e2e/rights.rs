//! A worker's pod has no capability too many: without each of them layers are left to containerd, and the reason is said.

use std::fs;
use std::path::PathBuf;

use futures::future::join_all;
use serde_json::{Value, json};

use super::pod::{self, Image};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::nats::{NatsServer, NatsVersion};

/// What `prewarm check` says in the worker's pod, with another set of capabilities.
async fn checked(
    shipped: &Image,
    containerd: &Containerd,
    env: &[(&str, &str)],
    capabilities: Vec<Value>,
) -> String {
    let mut pod = pod::template("base", "DaemonSet", "prewarm-worker");
    let main = &mut pod["containers"][0];
    main["args"] = json!(["check"]);
    main["securityContext"]["capabilities"]["add"] = json!(capabilities);
    let volume = |name: &str| -> (PathBuf, Option<PathBuf>) {
        match name {
            "run-containerd" => (containerd.socket().parent().unwrap().to_owned(), None),
            "containerd" => (containerd.root(), Some(containerd.root())),
            "certs" => (containerd.certs_dir(), None),
            _ => {
                let folder = containerd.scratch().join(name);
                fs::create_dir_all(&folder).unwrap();
                (folder, None)
            }
        }
    };
    let call = shipped.pod(&pod, env, volume, &[]);
    let output = call.run().await;
    format!("{}\n{}", output.stdout, output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_one_of_its_capabilities_the_worker_says_which_and_unpacks_nothing_itself() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    let shipped = Image::build();
    let url = nats.url();
    let env = [("PREWARM_NODE", "node"), ("PREWARM_NATS_URL", url.as_str())];
    let pod = pod::template("base", "DaemonSet", "prewarm-worker");
    let all = pod["containers"][0]["securityContext"]["capabilities"]["add"].clone();
    let all = all.as_array().unwrap();
    let with_all = checked(&shipped, &containerd, &env, all.clone()).await;
    assert!(
        with_all.contains("native: layers are unpacked while they come"),
        "{with_all}"
    );

    let without = all.iter().map(async |dropped| {
        let others = all.iter().filter(|name| *name != dropped).cloned();
        let said = checked(&shipped, &containerd, &env, others.collect()).await;
        (dropped.as_str().unwrap(), said)
    });
    for (dropped, said) in join_all(without).await {
        assert!(!said.contains("native: "), "{dropped}: {said}");
        // Words are wrapped to the terminal's width.
        let words: Vec<&str> = said.split_whitespace().collect();
        assert!(
            words
                .join(" ")
                .contains(&format!("which takes CAP_{dropped}")),
            "{dropped}: {said}"
        );
    }
}
