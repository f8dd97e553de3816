//! The real docker-registry tells the real program of pushes.

use prewarm::bus::Bus;
use prewarm::bus::topology::{TopologySettings, ensure};
use prewarm::wire::subject::Subjects;
use serde_json::{Value, json};

use super::receiver::{LIMIT, SECRET};
use crate::support::images::{Format, Image, generated};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Role, prewarm};
use crate::support::process::free_port;
use crate::support::registry::Registry;
use crate::support::wait::eventually;

struct Set {
    nats: NatsServer,
    registry: Registry,
    receiver: Role,
    _folder: tempfile::TempDir,
}

impl Set {
    async fn start() -> Self {
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let bus = Bus::new(nats.client().await, Subjects::default());
        ensure(&bus, TopologySettings::default()).await.unwrap();
        let port = free_port();
        let registry = Registry::start_with(&format!(
            "notifications:\n  endpoints:\n    - name: prewarm\n      url: http://127.0.0.1:{port}/webhooks/distribution\n      headers: {{Authorization: [Bearer {SECRET}]}}\n      timeout: 5s\n      threshold: 2\n      backoff: 200ms\n"
        ))
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("webhooks.yaml");
        let address = registry.addr();
        std::fs::write(
            &file,
            format!(
                "sources: {{distribution: {{secret-env: HOOK_SECRET, registries: ['{address}']}}}}"
            ),
        )
        .unwrap();
        let mut receiver = prewarm([
            "webhook",
            "--metrics-listen",
            "off",
            "--publish-timeout",
            "500ms",
        ])
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--webhook-config")
        .arg(&file)
        .env("HOOK_SECRET", SECRET)
        .env("PREWARM_NATS_URL", nats.url())
        .spawn("the receiver");
        receiver.logs("the broker is connected", LIMIT).await;
        Self {
            nats,
            registry,
            receiver,
            _folder: folder,
        }
    }

    /// The pushes the broker has once it has any.
    async fn pushes(&self) -> Vec<Value> {
        let bus = Bus::new(self.nats.client().await, Subjects::default());
        eventually("a push on the broker", LIMIT, async || {
            let mut stream = bus
                .jetstream
                .get_stream(bus.subjects.jobs_stream())
                .await
                .unwrap();
            let last = stream.info().await.unwrap().state.last_sequence;
            let mut pushes: Vec<Value> = Vec::new();
            for sequence in 1..=last {
                let message = stream.get_raw_message(sequence).await.unwrap();
                pushes.push(serde_json::from_slice(&message.payload).unwrap());
            }
            if pushes.is_empty() {
                Err(self.receiver.log())
            } else {
                Ok(pushes)
            }
        })
        .await
    }
}

fn index() -> Image {
    let images = ["linux/amd64", "linux/arm64"].map(|platform| {
        let mut recipe = generated(7, 1, 10_000);
        recipe.platform = platform.to_owned();
        recipe.build()
    });
    Image::index(Format::Oci, &images)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pushed_image_and_a_pushed_index_are_one_push_each() {
    let mut set = Set::start().await;
    let pushed = set.registry.push("team/multi", "1.4", &index()).await;
    let single = generated(8, 2, 10_000).build();
    let single = set.registry.push("team/single", "2", &single).await;
    eventually("both pushes", LIMIT, async || {
        let pushes = set.pushes().await;
        if pushes.len() >= 2 {
            Ok(())
        } else {
            Err(pushes)
        }
    })
    .await;
    let wanted = |repository: &str, tag: &str, digest: &str| {
        json!([set.registry.addr(), repository, tag, digest, "distribution"])
    };
    let found: Vec<Value> = set
        .pushes()
        .await
        .iter()
        .map(|push| {
            json!([
                push["registry"],
                push["repository"],
                push["tag"],
                push["digest"],
                push["source"]
            ])
        })
        .collect();
    assert_eq!(
        found,
        [
            wanted("team/multi", "1.4", &pushed.digest),
            wanted("team/single", "2", &single.digest)
        ]
    );
    assert!(
        set.receiver.terminate().await.success(),
        "{}",
        set.receiver.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_while_the_broker_is_down_comes_with_the_registrys_own_retry() {
    let mut set = Set::start().await;
    set.nats.kill();
    let pushed = set
        .registry
        .push("team/app", "1.4", &generated(9, 1, 10_000).build())
        .await;
    set.receiver
        .logs("\"outcome\":\"unavailable\"", LIMIT)
        .await;
    set.nats.restart().await;
    let pushes = set.pushes().await;
    assert_eq!(pushes.len(), 1, "{pushes:?}");
    assert_eq!(pushes[0]["digest"], json!(pushed.digest));
}
