//! A runtime through CRI alone, as kubelet uses it: `PullImage`, and what it says of itself.
//!
//! CRI has no progress, no pins, no labels, no choice of platform and no content without unpacking.
//! Where a runtime offers more, more is used: see `containerd`.

mod failure;
mod needs;
mod pull;
mod snapshotters;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Response, Status};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, PodSandboxConfig,
    PullImageRequest, StatusRequest, VersionRequest,
};

pub(super) use self::pull::{Node, pull};
pub(super) use self::snapshotters::Unpacks;
use super::disk::space;
use super::registry::{Credential, Login};
use crate::domain::failure::{Failure, FailureKind};

/// Longest time for a call that only asks.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// On a sandbox: the runtime class that an image is pulled for (`pkg/cri/annotations` of containerd 1.7).
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";

/// The CRI services behind a socket.
#[derive(Clone)]
pub(super) struct Cri {
    channel: Channel,
    address: Arc<Path>,
}

impl fmt::Debug for Cri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cri")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What a runtime calls itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    /// Such as `cri-o`.
    pub(super) name: String,
    /// Without a `v` before it.
    pub(super) version: String,
}

impl Cri {
    pub(super) const fn new(channel: Channel, address: Arc<Path>) -> Self {
        Self { channel, address }
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    pub(super) async fn version(&self) -> Result<Version, Failure> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        let answer = call(self.runtime().version(request)).await;
        let answer = answer.map_err(|status| self.failure("asking for the version", &status))?;
        Ok(Version {
            name: answer.runtime_name,
            version: answer.runtime_version.trim_start_matches('v').to_owned(),
        })
    }

    /// The snapshotters that containers are started from, each with the runtime class to name for it.
    /// Only containerd has some; of another runtime the answer is empty.
    pub(super) async fn unpacks(&self) -> Result<Vec<Unpacks>, Failure> {
        let status = call(self.runtime().status(StatusRequest { verbose: true })).await;
        let status = status.map_err(|status| self.failure("asking for the status", &status))?;
        let config = status.info.get("config").map_or("", String::as_str);
        Ok(snapshotters::of(config, &self.image_dirs().await?))
    }

    /// The directories that images are unpacked in.
    pub(super) async fn image_dirs(&self) -> Result<Vec<PathBuf>, Failure> {
        let answer = call(self.images().image_fs_info(ImageFsInfoRequest {})).await;
        let answer = answer.map_err(|status| self.failure("asking for the disk", &status))?;
        let dirs = answer.image_filesystems.into_iter();
        Ok(dirs
            .filter_map(|usage| usage.fs_id.map(|id| PathBuf::from(id.mountpoint)))
            .collect())
    }

    /// The first of them that can be seen from here.
    pub(super) async fn image_dir(&self) -> Result<Option<PathBuf>, Failure> {
        let dirs = self.image_dirs().await?;
        Ok(dirs.into_iter().find(|dir| space(dir).is_some()))
    }

    /// The image of a name, by what CRI knows of it.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, Failure> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: name.to_owned(),
                ..ImageSpec::default()
            }),
            verbose: false,
        };
        match call(self.images().image_status(request)).await {
            Ok(answer) => Ok(answer.image),
            Err(status) => Err(self.failure(format_args!("looking for image {name}"), &status)),
        }
    }

    /// Has the runtime pull an image, with each login in turn until one is not refused; none is the last
    /// resort. `handler` names the runtime class whose snapshotter it is unpacked for.
    ///
    /// Dropping the future ends the runtime's pull: its context is that of the call.
    pub(super) async fn pull_image(
        &self,
        name: &str,
        logins: Vec<Login>,
        handler: Option<&str>,
    ) -> Result<(), Failure> {
        let mut refused = None;
        for auth in logins
            .into_iter()
            .map(|login| Some(auth(login)))
            .chain([None])
        {
            let request = PullImageRequest {
                image: Some(ImageSpec {
                    image: name.to_owned(),
                    runtime_handler: handler.unwrap_or_default().to_owned(),
                    ..ImageSpec::default()
                }),
                auth,
                sandbox_config: handler.map(|handler| PodSandboxConfig {
                    annotations: [(RUNTIME_HANDLER.to_owned(), handler.to_owned())].into(),
                    ..PodSandboxConfig::default()
                }),
            };
            // As long as it takes: the attempt as a whole has a limit.
            let Err(status) = self.images().pull_image(request).await else {
                return Ok(());
            };
            let failure = failure::of_pull(name, &self.address, &status);
            if failure.kind != FailureKind::Unauthorized {
                return Err(failure);
            }
            // What was said of a credential helps more than what is said without one.
            refused.get_or_insert(failure);
        }
        Err(refused.unwrap_or_else(|| {
            Failure::new(FailureKind::Internal, format!("{name}: nobody was asked"))
        }))
    }

    /// The failure that a refused question means.
    fn failure(&self, what: impl fmt::Display, status: &Status) -> Failure {
        let (address, words) = (self.address.display(), status.message());
        let message = match status.code() {
            Code::Unimplemented => format!(
                "{what}: what listens at {address} offers neither containerd's services nor CRI; is containerd-address right?"
            ),
            code => format!("{what}: the runtime at {address} refused by CRI ({code:?}): {words}"),
        };
        Failure::new(FailureKind::RuntimeUnavailable, message)
    }
}

async fn call<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {CALL_TIMEOUT:?}"
        ))),
    }
}

/// The server's address keeps containerd from showing the credential to mirrors.
fn auth(login: Login) -> AuthConfig {
    let server_address = format!("https://{}", login.server);
    let auth = AuthConfig {
        server_address,
        ..AuthConfig::default()
    };
    match login.credential {
        Credential::Password { user, password } => AuthConfig {
            username: user,
            password,
            ..auth
        },
        Credential::Identity(identity_token) => AuthConfig {
            identity_token,
            ..auth
        },
        Credential::Registry(registry_token) => AuthConfig {
            registry_token,
            ..auth
        },
    }
}
