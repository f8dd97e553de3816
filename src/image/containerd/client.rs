//! The connection to containerd: namespace and lease of every request, and what its refusals mean.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{Plugin, PluginsRequest};
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint};
use containerd_client::tonic::{Code, Request, Response, Status};
use k8s_cri::v1::image_service_client::ImageServiceClient;

use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Platform;
use crate::image::cri::Cri;

/// Longest time for a call that only changes or reads a record.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time to connect to the socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message from containerd: its own limit (`defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE_BYTES: usize = 16 << 20;

const SNAPSHOTTER_PLUGIN: &str = "io.containerd.snapshotter.v1";
const CONTENT_PLUGIN: &str = "io.containerd.content.v1";

/// A channel to containerd, with what goes along with every request.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    address: Arc<Path>,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// A snapshotter as containerd describes it.
pub(super) struct Snapshotter {
    /// The directory it keeps snapshots in.
    pub(super) root: Option<PathBuf>,
    /// What it unpacks for.
    pub(super) platform: Platform,
}

impl Client {
    pub(super) fn new(address: &Path, namespace: &str) -> Result<Self, Failure> {
        let unusable = |what: &str| {
            Failure::new(
                FailureKind::RuntimeUnavailable,
                format!("{what} cannot be used"),
            )
        };
        let shown = address.display();
        let channel = Endpoint::from_shared(format!("unix://{shown}"))
            .map_err(|_| unusable(&format!("containerd-address {shown}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        let namespace_value = namespace
            .parse()
            .map_err(|_| unusable(&format!("containerd-namespace {namespace:?}")))?;
        Ok(Self {
            channel,
            address: address.into(),
            namespace: namespace_value,
            lease: None,
        })
    }

    /// The same, with what it makes held by a lease.
    pub(super) fn with_lease(&self, id: MetadataValue<Ascii>) -> Self {
        Self {
            lease: Some(id),
            ..self.clone()
        }
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    pub(super) fn address(&self) -> &Path {
        &self.address
    }

    pub(super) fn namespace(&self) -> &str {
        // It was made from a text.
        self.namespace.to_str().unwrap_or_default()
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(super) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(super) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    pub(super) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// The CRI services of the same socket.
    pub(super) fn cri(&self) -> Cri {
        Cri::new(self.channel.clone(), self.address.clone())
    }

    pub(super) fn is_in_namespace(&self, name: &str) -> bool {
        self.namespace == name
    }

    /// Waits for the answer to a call that only changes or reads a record.
    pub(super) async fn call<T>(
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "no answer within {CALL_TIMEOUT:?}"
            ))),
        }
    }

    /// The failure that a refusal means; `what` says what was being done.
    pub(super) fn failure(&self, what: impl fmt::Display, status: &Status) -> Failure {
        let words = status.message();
        let address = self.address.display();
        if is_disk_full(status) {
            return Failure::new(
                FailureKind::InsufficientDisk,
                format!(
                    "{what}: no space left on containerd's disk; free some, or let kubelet collect images earlier"
                ),
            );
        }
        let message = match status.code() {
            Code::Unavailable if !is_locked(status) => {
                let problem = match std::fs::symlink_metadata(&self.address) {
                    Err(error) => error.to_string(),
                    Ok(_) => innermost(status),
                };
                format!(
                    "containerd does not answer at {address} ({problem}); is it running, is containerd-address right, and may this process use the socket?"
                )
            }
            Code::Unimplemented => {
                format!("{what}: containerd at {address} does not offer this call: {words}")
            }
            code => format!("{what}: containerd refused ({code:?}): {words}"),
        };
        Failure::new(FailureKind::RuntimeUnavailable, message)
    }

    /// containerd's version; `None` when something else listens, which may offer CRI.
    pub(super) async fn version(&self) -> Result<Option<String>, Failure> {
        let mut client = VersionClient::new(self.channel.clone());
        match Self::call(client.version(self.request(()))).await {
            Ok(answer) => Ok(Some(answer.version.trim_start_matches('v').to_owned())),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(self.failure("asking for the version", &status)),
        }
    }

    async fn plugins(&self, kind: &str) -> Result<Vec<Plugin>, Failure> {
        let mut client = IntrospectionClient::new(self.channel.clone());
        let filters = vec![format!("type=={kind}")];
        let answer = Self::call(client.plugins(self.request(PluginsRequest { filters })))
            .await
            .map_err(|status| self.failure("asking for plugins", &status))?;
        Ok(answer.plugins)
    }

    /// The names of the snapshotters that are loaded.
    pub(super) async fn snapshotters(&self) -> Result<Vec<String>, Failure> {
        let plugins = self.plugins(SNAPSHOTTER_PLUGIN).await?;
        let loaded = plugins
            .into_iter()
            .filter(|plugin| plugin.init_err.is_none());
        Ok(loaded.map(|plugin| plugin.id).collect())
    }

    /// Describes a snapshotter, which has to be loaded.
    pub(super) async fn snapshotter(&self, name: &str) -> Result<Snapshotter, Failure> {
        let plugins = self.plugins(SNAPSHOTTER_PLUGIN).await?;
        let is_loaded = |plugin: &&Plugin| plugin.init_err.is_none();
        let Some(plugin) = plugins
            .iter()
            .filter(is_loaded)
            .find(|plugin| plugin.id == name)
        else {
            let loaded: Vec<_> = plugins
                .iter()
                .filter(is_loaded)
                .map(|plugin| plugin.id.as_str())
                .collect();
            return Err(Failure::new(
                FailureKind::RuntimeUnavailable,
                format!(
                    "containerd at {} has no snapshotter {name:?}; it has: {}",
                    self.address.display(),
                    loaded.join(", ")
                ),
            ));
        };
        let platform = plugin
            .platforms
            .first()
            .map_or_else(Platform::host, |platform| Platform {
                os: platform.os.as_str().into(),
                architecture: platform.architecture.as_str().into(),
                variant: Some(platform.variant.as_str())
                    .filter(|variant| !variant.is_empty())
                    .map(Into::into),
            });
        Ok(Snapshotter {
            root: root_of(plugin.exports.clone()),
            platform,
        })
    }

    /// The directory of the content store.
    pub(super) async fn content_root(&self) -> Result<Option<PathBuf>, Failure> {
        let plugins = self.plugins(CONTENT_PLUGIN).await?;
        Ok(plugins
            .into_iter()
            .find_map(|plugin| root_of(plugin.exports)))
    }
}

fn root_of(mut exports: HashMap<String, String>) -> Option<PathBuf> {
    exports.remove("root").map(PathBuf::from)
}

/// containerd passes the errno's text through, with whatever code is at hand.
fn is_disk_full(status: &Status) -> bool {
    status.message().contains("no space left on device")
}

/// Whether a content reference is in the hands of another writer.
pub(super) fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

fn innermost(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::addr_eq(cause, status) {
        return status.message().to_owned();
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusals_have_kinds() {
        let client = Client::new(Path::new("/nowhere/containerd.sock"), "k8s.io").unwrap();
        let kind = |status: Status| client.failure("x", &status).kind;
        assert_eq!(
            kind(Status::unknown("write /a/b: no space left on device")),
            FailureKind::InsufficientDisk
        );
        assert_eq!(
            kind(Status::unavailable("connection refused")),
            FailureKind::RuntimeUnavailable
        );
        assert_eq!(kind(Status::unknown("?")), FailureKind::RuntimeUnavailable);
        assert!(is_locked(&Status::unavailable(
            "ref x locked for 2s: unavailable"
        )));
    }

    #[tokio::test]
    async fn an_absent_socket_is_named_with_what_to_do() {
        let client = Client::new(Path::new("/nowhere/containerd.sock"), "k8s.io").unwrap();
        let failure = client.version().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::RuntimeUnavailable);
        for words in [
            "/nowhere/containerd.sock",
            "No such file",
            "containerd-address",
        ] {
            assert!(failure.message.contains(words), "{failure}");
        }
    }
}
