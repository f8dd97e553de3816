//! The units that are shipped for hosts without Kubernetes work with no more rights than they give.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use prewarm::domain::status::Outcome;
use serde_json::json;

use super::cell::{Cell, LIMIT};
use super::sandbox::{assert_confined, assert_unpacked, child_of, demanding};
use super::unit::Unit;
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_unit_lets_it_unpack_by_itself() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = demanding().build();
    let pushed = cell.registry.push("team/app", "1", &image).await;
    let containerd = Containerd::start(ContainerdVersion::V2_1).await;
    containerd.allow_registry(&cell.registry.addr());

    let dir = parts::temp_dir();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let settings = json!({
        "nats-url": cell.nats.url(), "node": "node", "metrics-listen": "off", "min-free-disk": "0",
        "containerd-address": containerd.socket(), "registry-config-dir": containerd.certs_dir(), "state-dir": state,
    });
    let run = containerd.socket().parent().unwrap().to_owned();
    let writable = [run, containerd.root(), state.clone()];
    let unit = Unit::read("prewarm-worker.service", dir.path());
    let mut worker = unit
        .start(
            ("worker.yaml", &settings.to_string()),
            &writable,
            &[containerd.certs_dir()],
        )
        .spawn("the worker as its unit starts it");
    cell.present("node").await;
    assert_confined(child_of(child_of(worker.pid()).await).await);

    cell.publish("base", json!({"images": [pushed.by_tag]}))
        .await;
    let record = cell.ended("base").await;
    let outcome = record.status.outcome;
    assert_eq!(
        outcome,
        Some(Outcome::Succeeded),
        "{record:?}\n{}",
        worker.log()
    );
    worker.logs("\"engine\":\"native\"", LIMIT).await;
    assert!(state.join("results").is_dir(), "{}", worker.log());
    assert_unpacked(&containerd);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_units_of_nobody_let_them_do_their_work() {
    let nats = NatsServer::start(NatsVersion::V2_15).await;
    let dir = parts::temp_dir();
    let settings =
        json!({"nats-url": nats.url(), "metrics-listen": "off", "listen": "127.0.0.1:0"});
    let mut dispatcher = {
        let own = dir.path().join("dispatcher");
        let settings = json!({"nats-url": nats.url(), "metrics-listen": "off"});
        Unit::read("prewarm-dispatcher.service", &own)
            .start(("dispatcher.yaml", &settings.to_string()), &[], &[])
            .spawn("the dispatcher as its unit starts it")
    };
    dispatcher.logs("leading", LIMIT).await;
    let own = dir.path().join("webhook");
    let files = own.join("settings");
    fs::create_dir_all(&files).unwrap();
    let secret = files.join("harbor");
    fs::write(&secret, "0123456789abcdef").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o444)).unwrap();
    let sources = json!({"sources": {"harbor": {
        "secret-file": "/tmp/settings/harbor", "registries": ["harbor.example.com"],
    }}});
    fs::write(files.join("sources.yaml"), sources.to_string()).unwrap();
    let mut receiver = Unit::read("prewarm-webhook.service", &own)
        .start(("webhook.yaml", &settings.to_string()), &[], &[])
        .spawn("the receiver as its unit starts it");
    receiver.logs("webhooks are taken", LIMIT).await;
}
