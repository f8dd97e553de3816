//! `check`: each line, and what to do about it.

use super::dispatcher::Dispatcher;
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::cri_only::CriOnly;
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::prewarm;
use crate::support::shipped;

#[tokio::test]
async fn an_absent_broker_fails_with_what_to_do() {
    let output = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output
            .stdout
            .starts_with("FAIL  broker        cannot reach the broker at nats://127.0.0.1:1"),
        "{output:?}"
    );
    assert!(output.stdout.contains("prewarm up"), "{output:?}");
}

#[tokio::test]
async fn a_broker_that_nobody_set_up_fails_with_what_to_do() {
    let nats = NatsServer::start(NatsVersion::V2_10).await;
    let output = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", nats.url())
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    for part in [
        "ok    broker        nats://127.0.0.1:",
        "is nats-server 2.10.",
        "ok    jetstream     0 streams",
        "FAIL  streams",
        "PREWARM_JOBS",
        "prewarm dispatcher",
    ] {
        assert!(
            output.stdout.contains(part),
            "{part:?} is missing in\n{}",
            output.stdout
        );
    }
}

#[tokio::test]
async fn a_broker_without_a_dispatcher_fails_with_what_to_do() {
    let dispatcher = Dispatcher::start().await;
    let output = dispatcher
        .prewarm(&["check", "--runtime", "simulated"])
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stdout.contains("ok    streams       all 7"),
        "{output:?}"
    );
    assert!(
        output
            .stdout
            .contains("FAIL  dispatcher    none has renewed its lease for 3s"),
        "{output:?}"
    );
}

const TWO_ACCOUNTS: &str = r#"accounts {
  CORE: { jetstream: enabled, users: [{user: core, password: c}] }
  NODES: { users: [{user: node, password: n}] }
}
"#;

#[tokio::test]
async fn it_says_which_account_it_sees() {
    let nats = NatsServer::start_with(NatsVersion::V2_15, TWO_ACCOUNTS).await;
    let as_user = |user: &str| format!("nats://{user}@127.0.0.1:{}", nats.port());
    let core = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", as_user("core:c"))
        .run()
        .await;
    assert!(
        core.stdout
            .contains("ok    accounts      this is account CORE, which may use JetStream"),
        "{core:?}"
    );
    let node = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", as_user("node:n"))
        .run()
        .await;
    assert!(
        node.stdout.contains(
            "ok    accounts      this is account NODES, without JetStream, as a worker's should be"
        ),
        "{node:?}"
    );
    assert_eq!(node.code, 0, "{node:?}");
    let wrong = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", as_user("node:wrong"))
        .run()
        .await;
    assert_eq!(wrong.code, 3, "{wrong:?}");
    assert!(
        wrong.stdout.contains("refused the login") && !wrong.stdout.contains("wrong"),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn a_workers_user_sees_little_and_is_told_that_this_is_right() {
    let nats = NatsServer::start_with(NatsVersion::V2_15, &shipped::accounts()).await;
    let url = format!("nats://node-1:node@127.0.0.1:{}", nats.port());
    let output = prewarm(["check", "--runtime", "simulated"])
        .env("NATS_URL", url)
        .run()
        .await;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output
            .stdout
            .contains("warn  jetstream     it does not answer"),
        "{output:?}"
    );
    assert!(
        output.stdout.contains("right for a worker's user"),
        "{output:?}"
    );
}

#[tokio::test]
async fn an_absent_containerd_fails_with_what_to_do() {
    let output = prewarm(["check", "--containerd-address", "/nowhere/containerd.sock"])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output
            .stdout
            .contains("FAIL  containerd    /nowhere/containerd.sock: No such file or directory"),
        "{output:?}"
    );
    assert!(output.stdout.contains("--containerd-address"), "{output:?}");
}

#[tokio::test]
async fn containerd_is_looked_at_as_kubelet_would() {
    let containerd = Containerd::start(ContainerdVersion::V1_7).await;
    let output = prewarm(["check", "--containerd-address"])
        .arg(containerd.socket())
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    for part in [
        "ok    containerd    ",
        "is containerd 1.7.",
        "ok    snapshotter   overlayfs",
        "ok    permissions   ",
        "ok    cri           kubelet would see 0 images",
        "ok    engine        native",
    ] {
        assert!(
            output.stdout.contains(part),
            "{part:?} is missing in\n{}",
            output.stdout
        );
    }
    let odd = prewarm(["check", "--snapshotter", "stargz", "--containerd-address"])
        .arg(containerd.socket())
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    assert!(
        odd.stdout
            .contains("FAIL  snapshotter   stargz is not loaded")
            && odd.stdout.contains("overlayfs"),
        "{odd:?}"
    );
}

#[tokio::test]
async fn the_engine_is_told_with_what_keeps_a_faster_one_from_work() {
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    let socket = containerd.scratch().join("cri.sock");
    let front = CriOnly::before(containerd.channel().await, &socket);
    for (socket, snapshotter, lines) in [
        (
            containerd.socket(),
            "native",
            [
                "ok    snapshotter   native",
                "warn  engine        containerd: ",
            ],
        ),
        (
            front.socket(),
            "overlayfs",
            ["cri.sock is containerd 2.1", "warn  engine        cri: "],
        ),
    ] {
        let output = prewarm([
            "check",
            "--snapshotter",
            snapshotter,
            "--containerd-address",
        ])
        .arg(socket)
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
        for line in lines {
            assert!(
                output.stdout.contains(line),
                "{line:?} is missing in\n{}",
                output.stdout
            );
        }
    }
}

#[tokio::test]
async fn a_registry_is_asked_for_an_image() {
    let registry = crate::support::registry::Registry::start().await;
    let image = format!("{}/team/nothing:1", registry.addr());
    let output = prewarm(["check", "--runtime", "simulated", "--image", &image])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .run()
        .await;
    assert!(
        output.stdout.contains("FAIL  registry") && output.stdout.contains("ImageNotFound"),
        "{output:?}"
    );
    let bad = prewarm(["check", "--image", "A b"]).run().await;
    assert_eq!(bad.code, 2, "{bad:?}");
}
