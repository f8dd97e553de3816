//! A node: a containerd, and prewarm's runtime in front of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, Image, ListContentRequest, ListImagesRequest, ListRequest,
    ListStatusesRequest, content_client::ContentClient, images_client::ImagesClient,
};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use prewarm::domain::failure::Failure;
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::progress::PullProgress;
use prewarm::image::containerd::{Containerd, ContainerdConfig, PullLimits};
use prewarm::image::registry::{Registry, RegistryConfig};
use prewarm::image::size::DiskReserve;
use prewarm::image::{PullReport, PullRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::support;
use support::containerd::{ContainerdVersion, NAMESPACE};
use support::images::generated;

/// How long containerd may take to let go of what nobody holds.
pub const COLLECTION_LIMIT: Duration = Duration::from_secs(20);

/// A node with one containerd.
pub struct Node {
    pub daemon: support::containerd::Containerd,
    pub runtime: Containerd,
}

impl Node {
    pub async fn start(version: ContainerdVersion) -> Self {
        let daemon = support::containerd::Containerd::start(version).await;
        let runtime = Containerd::connect(settings(&daemon)).unwrap();
        Self { daemon, runtime }
    }

    /// Another prewarm on the same containerd, as after a restart.
    pub fn another_runtime(&self) -> Containerd {
        Containerd::connect(settings(&self.daemon)).unwrap()
    }

    pub async fn pull(&self, request: &PullRequest) -> Result<PullReport, Failure> {
        pull(&self.runtime, request).await
    }

    pub async fn images(&self) -> Vec<Image> {
        let request = with_namespace!(ListImagesRequest { filters: vec![] }, NAMESPACE);
        let mut client = ImagesClient::new(self.daemon.channel().await);
        client.list(request).await.unwrap().into_inner().images
    }

    pub async fn image(&self, name: &str) -> Option<Image> {
        self.images()
            .await
            .into_iter()
            .find(|image| image.name == name)
    }

    /// The ids of all leases.
    pub async fn leases(&self) -> Vec<String> {
        let request = with_namespace!(ListRequest { filters: vec![] }, NAMESPACE);
        let mut client = LeasesClient::new(self.daemon.channel().await);
        let leases = client.list(request).await.unwrap().into_inner().leases;
        leases.into_iter().map(|lease| lease.id).collect()
    }

    /// Has containerd collect what nothing holds: the end of a lease is the only way to ask for it.
    pub async fn collect(&self) {
        let mut client = LeasesClient::new(self.daemon.channel().await);
        let id = "collect".to_owned();
        let create = CreateRequest {
            id: id.clone(),
            ..CreateRequest::default()
        };
        client
            .create(with_namespace!(create, NAMESPACE))
            .await
            .unwrap();
        let delete = DeleteRequest { id, sync: true };
        client
            .delete(with_namespace!(delete, NAMESPACE))
            .await
            .unwrap();
    }

    /// Digests in the content store, with their labels.
    pub async fn content(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let request = with_namespace!(ListContentRequest { filters: vec![] }, NAMESPACE);
        let mut client = ContentClient::new(self.daemon.channel().await);
        let mut pages = client.list(request).await.unwrap().into_inner();
        let mut found = BTreeMap::new();
        while let Some(page) = pages.message().await.unwrap() {
            found.extend(
                page.info
                    .into_iter()
                    .map(|info| (info.digest, info.labels.into_iter().collect())),
            );
        }
        found
    }

    /// References under which something was written and not committed, with the bytes there are.
    pub async fn ingests(&self) -> Vec<(String, i64)> {
        let request = with_namespace!(ListStatusesRequest { filters: vec![] }, NAMESPACE);
        let mut client = ContentClient::new(self.daemon.channel().await);
        let statuses = client
            .list_statuses(request)
            .await
            .unwrap()
            .into_inner()
            .statuses;
        statuses
            .into_iter()
            .map(|status| (status.r#ref, status.offset))
            .collect()
    }

    /// Names of snapshots, by whether they are committed.
    pub async fn snapshots(&self, kind: Kind) -> Vec<String> {
        self.snapshots_of("overlayfs", kind).await
    }

    /// As [`snapshots`](Self::snapshots), of any snapshotter.
    pub async fn snapshots_of(&self, snapshotter: &str, kind: Kind) -> Vec<String> {
        let request = ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: vec![],
        };
        let mut client = SnapshotsClient::new(self.daemon.channel().await);
        let mut pages = client
            .list(with_namespace!(request, NAMESPACE))
            .await
            .unwrap()
            .into_inner();
        let mut found = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            let of_kind = page
                .info
                .into_iter()
                .filter(|info| info.kind == kind as i32);
            found.extend(of_kind.map(|info| info.name));
        }
        found
    }

    /// Everything a pull may leave behind: none of it is there.
    pub async fn is_clean(&self) -> Result<(), String> {
        let left = (
            self.leases().await,
            self.ingests().await,
            self.snapshots(Kind::Active).await,
        );
        match left {
            (leases, ingests, active)
                if leases.is_empty() && ingests.is_empty() && active.is_empty() =>
            {
                Ok(())
            }
            left => Err(format!("leases, ingests, active snapshots: {left:?}")),
        }
    }
}

pub fn settings(daemon: &support::containerd::Containerd) -> ContainerdConfig {
    settings_at(daemon.socket(), daemon.certs_dir())
}

pub fn settings_at(socket: PathBuf, certs_dir: PathBuf) -> ContainerdConfig {
    ContainerdConfig {
        address: socket,
        namespace: NAMESPACE.to_owned(),
        snapshotter: "overlayfs".to_owned(),
        min_free_disk: DiskReserve::Percent(0),
        registry: Registry::new(RegistryConfig {
            hosts_dirs: vec![certs_dir],
            ..RegistryConfig::default()
        }),
        limits: PullLimits::default(),
    }
}

pub fn request(image: &str) -> PullRequest {
    PullRequest {
        image: image.parse().unwrap(),
        digest: None,
        policy: ImagePullPolicy::IfNotPresent,
        platform: None,
        pull_secrets: Vec::new(),
        pin: None,
        unpack: true,
        labels: BTreeMap::new(),
    }
}

/// An image under `app:1`, which means another one by now.
pub async fn moved_tag(registry: &support::registry::Registry) -> support::images::Pushed {
    let first = generated(1, 1, 10_000).build();
    let first = registry.push("app", "1", &first).await;
    let second = generated(2, 1, 10_000).build();
    registry.push("app", "1", &second).await;
    first
}

pub async fn pull(runtime: &Containerd, request: &PullRequest) -> Result<PullReport, Failure> {
    let (progress, _) = watch::channel(PullProgress::default());
    runtime
        .pull(request, &progress, &CancellationToken::new())
        .await
}

/// Runs a test on every generation, one after the other: each has a daemon of its own.
pub async fn on_all<F: Future<Output = ()>>(test: impl Fn(ContainerdVersion) -> F) {
    for version in ContainerdVersion::ALL {
        println!("on {version:?}");
        test(version).await;
    }
}
