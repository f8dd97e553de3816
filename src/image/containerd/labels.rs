//! The labels that containerd, its CRI plugin and its garbage collector go by.

use std::collections::HashMap;

use crate::domain::image::ImageRef;
use crate::image::registry::manifest::{
    DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, Index, Manifest, OCI_CONFIG, OCI_MANIFEST,
};

/// Labels of content, snapshots, images and leases.
pub(super) type Labels = HashMap<String, String>;

/// On a layer: the digest of its inflated form (`pkg/labels`).
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// On a snapshot being prepared: the name it is to have (`core/snapshots`).
pub(super) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// On a lease: when it ends by itself (`core/metadata/gc.go`).
pub(super) const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// On an image: CRI's own (`internal/cri/labels`).
pub(super) const CRI_IMAGE: (&str, &str) = ("io.cri-containerd.image", "managed");
/// On an image: kubelet's garbage collection leaves it alone (`internal/cri/labels`).
pub(super) const CRI_PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Beginning of the labels by which a manifest keeps its layers.
pub(super) const GC_LAYER_PREFIX: &str = "containerd.io/gc.ref.content.l.";
/// Longest label, key and value together (`pkg/labels/validate.go`).
const MAX_LABEL_BYTES: usize = 4096;

/// On a configuration: the snapshot that keeps the unpacked image.
pub(super) fn gc_snapshot(snapshotter: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}")
}

/// Where content came from, so that a push to the same registry may mount it: the host's name without
/// the port (`core/remotes/docker/handler.go`).
pub(super) fn distribution_source(image: &ImageRef) -> (String, String) {
    let registry = image.registry();
    let host = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    (
        format!("containerd.io/distribution.source.{host}"),
        image.repository().to_owned(),
    )
}

/// Adds a repository to those that content is known from; `None` when it is there already, or when
/// the label would be longer than containerd takes.
pub(super) fn merged_source(key: &str, present: Option<&str>, repository: &str) -> Option<String> {
    let mut repositories: Vec<&str> =
        present.map_or_else(Vec::new, |text| text.split(',').collect());
    if repositories.contains(&repository) {
        return None;
    }
    repositories.push(repository);
    repositories.sort_unstable();
    let value = repositories.join(",");
    (key.len() + value.len() <= MAX_LABEL_BYTES).then_some(value)
}

/// By which an index keeps its manifests, numbered as containerd does (`core/images/handlers.go`).
pub(super) fn gc_of_index(index: &Index) -> Labels {
    numbered(index.manifests.iter().map(|entry| {
        let prefix = match entry.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => "containerd.io/gc.ref.content.m.",
            _ => "containerd.io/gc.ref.content.",
        };
        (prefix, entry)
    }))
}

/// By which a manifest keeps its configuration and layers.
pub(super) fn gc_of_manifest(manifest: &Manifest) -> Labels {
    let config = match manifest.config.media_type.as_str() {
        OCI_CONFIG | DOCKER_CONFIG => "containerd.io/gc.ref.content.config",
        _ => "containerd.io/gc.ref.content.",
    };
    let layers = manifest.layers.iter().map(|layer| {
        let prefix = if is_layer(&layer.media_type) {
            GC_LAYER_PREFIX
        } else {
            "containerd.io/gc.ref.content."
        };
        (prefix, layer)
    });
    numbered(std::iter::once((config, &manifest.config)).chain(layers))
}

fn numbered<'a>(children: impl Iterator<Item = (&'static str, &'a Descriptor)>) -> Labels {
    let mut counts: HashMap<&str, u32> = HashMap::new();
    children
        .map(|(prefix, child)| {
            let count = counts.entry(prefix).or_default();
            let key = if prefix.ends_with('.') {
                format!("{prefix}{count}")
            } else {
                prefix.to_owned()
            };
            *count += 1;
            (key, child.digest.to_string())
        })
        .collect()
}

/// Whether a media type is that of a layer that can be unpacked, compressed or not.
pub(super) fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_merged_sorted_and_bounded() {
        assert_eq!(merged_source("k", None, "b").as_deref(), Some("b"));
        assert_eq!(merged_source("k", Some("b"), "a").as_deref(), Some("a,b"));
        assert_eq!(merged_source("k", Some("a,b"), "a"), None);
        assert_eq!(merged_source("k", Some(&"x".repeat(4095)), "a"), None);
    }

    #[test]
    fn children_are_numbered_by_kind() {
        let descriptor = |media_type: &str| -> Descriptor {
            serde_json::from_value(serde_json::json!({
                "mediaType": media_type,
                "digest": format!("sha256:{}", "0".repeat(64)),
                "size": 1,
            }))
            .unwrap()
        };
        let keys = |labels: Labels| {
            let mut keys: Vec<_> = labels
                .into_keys()
                .map(|key| key.replace("containerd.io/gc.ref.content.", ""))
                .collect();
            keys.sort();
            keys
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let image = Manifest {
            config: descriptor(OCI_CONFIG),
            layers: vec![descriptor(layer), descriptor(layer)],
        };
        assert_eq!(keys(gc_of_manifest(&image)), ["config", "l.0", "l.1"]);
        let artifact = Manifest {
            config: descriptor("application/vnd.oci.empty.v1+json"),
            layers: vec![descriptor("text/plain")],
        };
        assert_eq!(keys(gc_of_manifest(&artifact)), ["0", "1"]);
        let index = Index {
            manifests: vec![descriptor(OCI_MANIFEST), descriptor(DOCKER_MANIFEST)],
        };
        assert_eq!(keys(gc_of_index(&index)), ["m.0", "m.1"]);
    }
}
