//! Which snapshotters containerd's CRI plugin starts containers from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// What the directory of a snapshotter is called (`plugins.SnapshotPlugin`).
const DIRECTORY_PREFIX: &str = "io.containerd.snapshotter.v1.";

/// A snapshotter that containers are started from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::image) struct Unpacks {
    /// Its name.
    pub(in crate::image) snapshotter: String,
    /// The runtime class that a `PullImage` has to name for it; `None` is the default.
    pub(in crate::image) handler: Option<String>,
}

/// What matters of the plugin's configuration, which `Status` gives as JSON.
#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    containerd: Containerd,
}

#[derive(Deserialize, Default)]
struct Containerd {
    /// Up to 1.7; later it is in the configuration of another plugin, which no call gives.
    #[serde(default)]
    snapshotter: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

#[derive(Deserialize, Default)]
struct Runtime {
    #[serde(default)]
    snapshotter: String,
}

/// Reads them out of the plugin's configuration and the directories that it measures; each once.
pub(super) fn of(config: &str, image_dirs: &[PathBuf]) -> Vec<Unpacks> {
    let Config { containerd } = serde_json::from_str(config).unwrap_or_default();
    let default = Some(containerd.snapshotter)
        .filter(|name| !name.is_empty())
        .map(|snapshotter| Unpacks {
            snapshotter,
            handler: None,
        });
    let of_classes = containerd
        .runtimes
        .into_iter()
        .filter(|(_, runtime)| !runtime.snapshotter.is_empty())
        .map(|(name, runtime)| Unpacks {
            snapshotter: runtime.snapshotter,
            handler: Some(name),
        });
    // What no class says is the default's.
    let of_dirs = image_dirs.iter().filter_map(|dir| {
        let name = dir.file_name()?.to_str()?.strip_prefix(DIRECTORY_PREFIX)?;
        Some(Unpacks {
            snapshotter: name.to_owned(),
            handler: None,
        })
    });
    let mut found: Vec<Unpacks> = Vec::new();
    for unpacks in default.into_iter().chain(of_classes).chain(of_dirs) {
        if !found
            .iter()
            .any(|known| known.snapshotter == unpacks.snapshotter)
        {
            found.push(unpacks);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacks(snapshotter: &str, handler: Option<&str>) -> Unpacks {
        Unpacks {
            snapshotter: snapshotter.to_owned(),
            handler: handler.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn the_default_and_those_of_runtime_classes_are_each_there_once() {
        let dirs = |names: &[&str]| -> Vec<PathBuf> {
            names
                .iter()
                .map(|name| PathBuf::from(format!("/var/lib/containerd/{DIRECTORY_PREFIX}{name}")))
                .collect()
        };
        let v1 = r#"{"containerd": {"snapshotter": "overlayfs", "runtimes":
            {"kata": {"snapshotter": "devmapper"}, "runc": {"snapshotter": "", "type": "x"}}}}"#;
        assert_eq!(
            of(v1, &dirs(&["overlayfs"])),
            [
                unpacks("overlayfs", None),
                unpacks("devmapper", Some("kata"))
            ]
        );
        let v2 = r#"{"containerd": {"runtimes": {"kata": {"snapshotter": "devmapper"}}}}"#;
        assert_eq!(
            of(v2, &dirs(&["devmapper", "overlayfs"])),
            [
                unpacks("devmapper", Some("kata")),
                unpacks("overlayfs", None)
            ]
        );
        assert_eq!(of("", &[PathBuf::from("/var/lib/containers/storage")]), []);
    }
}
