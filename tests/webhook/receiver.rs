//! A receiver in this process, with a nats-server of its own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prewarm::bus::Bus;
use prewarm::bus::topology::{TopologySettings, ensure};
use prewarm::webhook::metrics::Metrics;
use prewarm::webhook::server::{Server, ServerSettings};
use prewarm::webhook::settings;
use prewarm::webhook::source::Source;
use prewarm::wire::subject::Subjects;
use ring::hmac;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::images::http;
use crate::support::nats::{NatsServer, NatsVersion};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const SECRET: &str = "a-secret-of-32-characters-or-more";

pub(crate) struct Receiver {
    pub(crate) nats: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) base: String,
    pub(crate) metrics: prometheus::Registry,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A file of all sources, with `more` for each.
pub(crate) fn config(folder: &std::path::Path, more: &str) -> String {
    let secret = folder.join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let mut text = "sources:\n".to_owned();
    for source in Source::ALL {
        let proof = if source == Source::Gar {
            "proof: header, "
        } else {
            ""
        };
        let hosts = if source == Source::Nexus {
            "hosts: {docker-hosted: 'r.example.com'}, "
        } else {
            ""
        };
        let name = source.as_str();
        text += &format!(
            "  {name}: {{{proof}{hosts}{more}secret-file: {}, registries: ['*.example.com', r.example.com, docker.io, 'ghcr.io', quay.io, '*.aliyuncs.com', '*.amazonaws.com', '*.pkg.dev', '127.0.0.1:5000']}}\n",
            secret.display()
        );
    }
    text
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}, "").await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ServerSettings), more: &str) -> Self {
        let nats = NatsServer::start(NatsVersion::V2_15).await;
        let bus = Bus::new(nats.client().await, Subjects::default());
        ensure(&bus, TopologySettings::default()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (base, shutdown, metrics) = serve(&bus, folder.path(), change, more).await;
        Self {
            nats,
            bus,
            base,
            metrics,
            folder,
            shutdown,
        }
    }

    /// Another receiver at the same broker; where it is.
    pub(crate) async fn another(&self, more: &str) -> String {
        serve(&self.bus, self.folder.path(), |_| {}, more).await.0
    }

    /// Every push the broker has.
    pub(crate) async fn pushes(&self) -> Vec<Value> {
        let jetstream = &self.bus.jetstream;
        let mut stream = jetstream
            .get_stream(self.bus.subjects.jobs_stream())
            .await
            .unwrap();
        let state = stream.info().await.unwrap().state.clone();
        let mut pushes = Vec::new();
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            assert_eq!(message.subject.as_str(), self.bus.subjects.push());
            pushes.push(serde_json::from_slice(&message.payload).unwrap());
        }
        pushes
    }

    pub(crate) async fn post(
        &self,
        source: Source,
        body: &[u8],
        headers: &[(&str, String)],
    ) -> (u16, Value) {
        post(&self.base, source, body, headers).await
    }
}

async fn serve(
    bus: &Bus,
    folder: &std::path::Path,
    change: impl FnOnce(&mut ServerSettings),
    more: &str,
) -> (String, CancellationToken, prometheus::Registry) {
    let file = folder.join("webhooks.yaml");
    std::fs::write(&file, config(folder, more)).unwrap();
    let mut settings = ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        sources: settings::read(&file).unwrap(),
        max_body: 8 << 20,
        request_timeout: Duration::from_secs(10),
        publish_timeout: LIMIT,
        max_in_flight: 256,
        max_connections: 1_024,
    };
    change(&mut settings);
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let holder = Arc::new(OnceLock::new());
    assert!(holder.set(bus.clone()).is_ok());
    let server = Server::bind(settings, holder, metrics).await.unwrap();
    let base = format!("http://{}", server.address().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(server.run(shutdown.clone()));
    (base, shutdown, registry)
}

/// Posts as the source does, with its proof.
pub(crate) async fn post(
    base: &str,
    source: Source,
    body: &[u8],
    headers: &[(&str, String)],
) -> (u16, Value) {
    let (path, proof) = prove(source, body, SECRET);
    let proof = proof.into_iter();
    let headers: Vec<(&str, String)> = headers.iter().cloned().chain(proof).collect();
    send(&format!("{base}{path}"), body, &headers).await
}

pub(crate) async fn send(url: &str, body: &[u8], headers: &[(&str, String)]) -> (u16, Value) {
    let mut request = http().post(url).body(body.to_vec());
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")),
    )
}

/// The path and the header with which a source proves this body.
pub(crate) fn prove(
    source: Source,
    body: &[u8],
    secret: &str,
) -> (String, Option<(&'static str, String)>) {
    let plain = format!("/webhooks/{}", source.as_str());
    let code = |algorithm| {
        let tag = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), body);
        tag.as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let sha256 = || code(hmac::HMAC_SHA256);
    match source {
        Source::Quay | Source::DockerHub | Source::Aliyun => (format!("{plain}/{secret}"), None),
        Source::GitHub => (
            plain,
            Some(("x-hub-signature-256", format!("sha256={}", sha256()))),
        ),
        Source::Generic => (plain, Some(("x-signature", format!("sha256={}", sha256())))),
        Source::Gitea => (plain, Some(("x-gitea-signature", sha256()))),
        Source::Nexus => {
            let code = code(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY);
            (plain, Some(("x-nexus-webhook-signature", code)))
        }
        Source::JFrog => (plain, Some(("x-jfrog-event-auth", secret.to_owned()))),
        Source::Harbor => (plain, Some(("authorization", secret.to_owned()))),
        _ => (plain, Some(("authorization", format!("Bearer {secret}")))),
    }
}
