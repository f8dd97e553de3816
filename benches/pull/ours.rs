//! A pull of this engine, in a process of its own: what a worker does, with the settings that it has by default.

use std::collections::BTreeMap;

use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::progress::PullProgress;
use prewarm::image::PullRequest;
use prewarm::image::containerd::{Containerd as Runtime, ContainerdConfig, PullLimits};
use prewarm::image::registry::{Registry, RegistryConfig};
use prewarm::image::size::DiskReserve;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::support::containerd::NAMESPACE;

/// A worker's niceness, unless its settings say.
const NICE: &str = "10";

/// One pull by this process, told by its arguments.
pub(super) async fn pull_here(args: &[String]) {
    let [socket, certs, image] = args else {
        panic!("SOCKET CERTS IMAGE");
    };
    let runtime = Runtime::connect(ContainerdConfig {
        address: socket.into(),
        namespace: NAMESPACE.to_owned(),
        snapshotter: "overlayfs".to_owned(),
        min_free_disk: DiskReserve::Percent(0),
        registry: Registry::new(RegistryConfig {
            hosts_dirs: vec![certs.into()],
            ..RegistryConfig::default()
        }),
        limits: PullLimits {
            nice: NICE.parse().unwrap(),
            ..PullLimits::default()
        },
    });
    let request = PullRequest {
        image: image.parse().unwrap(),
        digest: None,
        policy: ImagePullPolicy::IfNotPresent,
        platform: None,
        pull_secrets: Vec::new(),
        pin: None,
        unpack: true,
        labels: BTreeMap::new(),
    };
    let (progress, _) = watch::channel(PullProgress::default());
    let report = runtime
        .unwrap()
        .pull(&request, &progress, &CancellationToken::new())
        .await
        .unwrap();
    assert!(!report.already_present);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("{}", peak.unwrap_or_default());
}
