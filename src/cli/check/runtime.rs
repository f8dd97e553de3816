//! containerd: does it answer, has it the snapshotter, does its CRI plugin see images, may we write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{Plugin, PluginsRequest};
use containerd_client::tonic::transport::Channel;
use k8s_cri::v1::ListImagesRequest;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use rustix::fs::{Access, access};

use super::{Finding, Report, Verdict};
use crate::cli::exit::Failure;
use crate::cli::settings::worker::ContainerdSettings;
use crate::cli::text;
use crate::image::Engine;
use crate::image::containerd::Containerd;

/// How long each answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const SNAPSHOTTERS: &str = "io.containerd.snapshotter.v1";
/// The namespace of the CRI plugin.
const CRI_NAMESPACE: &str = "k8s.io";

/// Looks at containerd.
pub(super) async fn look(
    settings: &ContainerdSettings,
    runtime: &Containerd,
    report: Report<'_>,
) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Good;
    let mut tell = |finding: Finding| {
        worst = worst.max(finding.verdict);
        report(&finding)
    };
    let address = settings.address.display();
    let channel = match connect(&settings.address).await {
        Ok(channel) => channel,
        Err(reason) => {
            let found = format!("{address}: {reason}");
            tell(Finding::bad(
                "containerd",
                found,
                advice_for_socket(&settings.address),
            ))?;
            return Ok(worst);
        }
    };
    match answer(VersionClient::new(channel.clone()).version(())).await {
        Ok(version) => tell(Finding::good(
            "containerd",
            format!("{address} is containerd {}", version.version),
        ))?,
        // Something else that kubelet can use will do.
        Err(reason) => match runtime.probe().await {
            Ok(info) => {
                let found = format!("{address} is {} {}", info.name, info.version);
                tell(Finding::good("containerd", found))?;
                tell(cri(channel, CRI_NAMESPACE).await)?;
                tell(engine(runtime).await)?;
                return Ok(worst);
            }
            Err(_) => {
                tell(Finding::bad(
                    "containerd",
                    format!("{address}: {reason}"),
                    "is this the socket of containerd, or of another runtime with CRI?",
                ))?;
                return Ok(worst);
            }
        },
    }
    let request = PluginsRequest {
        filters: vec![format!("type=={SNAPSHOTTERS}")],
    };
    match answer(IntrospectionClient::new(channel.clone()).plugins(request)).await {
        Ok(plugins) => {
            for finding in snapshotter(&settings.snapshotter, &plugins.plugins) {
                tell(finding)?;
            }
        }
        Err(reason) => tell(Finding::bad("snapshotter", reason, ""))?,
    }
    for other in runtime.other_snapshotters().await.unwrap_or_default() {
        let found =
            format!("{other}: images are unpacked for it as well, containers are started from it");
        tell(Finding::good("snapshotter", found))?;
    }
    tell(cri(channel, &settings.namespace).await)?;
    tell(engine(runtime).await)?;
    Ok(worst)
}

/// Who brings images here, and why if it is not the fastest.
async fn engine(runtime: &Containerd) -> Finding {
    match runtime.engine().await {
        Ok((Engine::Native, _)) => {
            Finding::good("engine", "native: layers are unpacked while they come")
        }
        Ok((engine, reason)) => Finding::warning(
            "engine",
            format!("{engine}: {reason}"),
            match engine {
                Engine::Cri => {
                    "pulls work, without progress, pins, and `unpack: false` where CRI is all there is"
                }
                _ => "pulls work, at containerd's own pace",
            },
        ),
        Err(failure) => Finding::bad("engine", failure.message, ""),
    }
}

async fn connect(address: &Path) -> Result<Channel, String> {
    match tokio::time::timeout(ANSWER_LIMIT, containerd_client::connect(address)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(bottom(&error)),
        Err(_) => Err(format!("no answer within {}", text::duration(ANSWER_LIMIT))),
    }
}

/// tonic says "transport error"; what it was about is further down.
fn bottom(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn advice_for_socket(address: &Path) -> &'static str {
    if address.exists() {
        "this user may not open it, or nothing listens there: try as root, and look at containerd's log"
    } else {
        "there is no such socket: start containerd, or say where it is with --containerd-address; to leave it out: --runtime simulated"
    }
}

async fn answer<T>(
    call: impl Future<
        Output = Result<containerd_client::tonic::Response<T>, containerd_client::tonic::Status>,
    >,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_LIMIT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {}", text::duration(ANSWER_LIMIT))),
    }
}

/// Whether it is loaded, and whether we may write where it keeps its snapshots.
fn snapshotter(name: &str, plugins: &[Plugin]) -> Vec<Finding> {
    let loaded: Vec<&Plugin> = plugins
        .iter()
        .filter(|plugin| plugin.init_err.is_none())
        .collect();
    let Some(plugin) = loaded.iter().find(|plugin| plugin.id == name) else {
        let names: Vec<&str> = loaded.iter().map(|plugin| plugin.id.as_str()).collect();
        return vec![Finding::bad(
            "snapshotter",
            format!("{name} is not loaded"),
            format!("choose one with --snapshotter: {}", names.join(", ")),
        )];
    };
    let mut findings = vec![Finding::good("snapshotter", name)];
    if let Some(root) = plugin.exports.get("root").map(PathBuf::from) {
        findings.push(match access(&root, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Finding::good("permissions", format!("{} may be written", root.display())),
            Err(error) => Finding::warning(
                "permissions",
                format!("{}: {error}", root.display()),
                "pulls that unpack beside containerd need it: run the worker as root, with containerd's directory mounted",
            ),
        });
    }
    findings
}

/// What kubelet sees.
async fn cri(channel: Channel, namespace: &str) -> Finding {
    let mut client = ImageServiceClient::new(channel);
    match answer(client.list_images(ListImagesRequest { filter: None })).await {
        Ok(list) if namespace == CRI_NAMESPACE => Finding::good(
            "cri",
            format!(
                "kubelet would see {}",
                text::count(list.images.len(), "image")
            ),
        ),
        Ok(_) => Finding::warning(
            "cri",
            format!("images go to the namespace {namespace}, where kubelet does not look"),
            format!("for Kubernetes, leave --containerd-namespace at {CRI_NAMESPACE}"),
        ),
        Err(reason) => Finding::warning(
            "cri",
            format!("containerd's CRI plugin does not answer: {reason}"),
            "fine without Kubernetes; else take \"cri\" out of disabled_plugins in containerd's config.toml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(id: &str, root: &str) -> Plugin {
        Plugin {
            id: id.to_owned(),
            exports: std::collections::HashMap::from([("root".to_owned(), root.to_owned())]),
            ..Plugin::default()
        }
    }

    #[test]
    fn a_snapshotter_that_is_not_loaded_is_named_with_those_that_are() {
        let findings = snapshotter("stargz", &[plugin("overlayfs", "/"), plugin("native", "/")]);
        assert_eq!(findings[0].verdict, Verdict::Bad);
        assert!(
            findings[0].advice.ends_with("overlayfs, native"),
            "{findings:?}"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_only_a_warning() {
        let findings = snapshotter("overlayfs", &[plugin("overlayfs", "/proc/nothing-is-here")]);
        let verdicts: Vec<Verdict> = findings.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Good, Verdict::Warning]);
    }
}
