//! Images made in memory, the same bytes every time, and pushed to a registry over plain HTTP.

mod layer;
mod push;
pub mod tarball;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use layer::{Compression, Entry, Layer};
pub use push::{Pushed, http, push};

/// A blob, manifest or config: its bytes and what they are.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its media type.
    pub media_type: String,
    /// `sha256:<hex>` of the bytes.
    pub digest: String,
    /// The bytes as stored in a registry.
    pub bytes: Bytes,
}

impl Blob {
    fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            media_type: media_type.to_owned(),
            digest: digest(&bytes),
            bytes,
        }
    }

    fn json(media_type: &str, value: &Value) -> Self {
        Self::new(
            media_type,
            serde_json::to_vec(value).expect("JSON of a JSON value"),
        )
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// Whose media types an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OCI image specification 1.1.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl Format {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            // Docker's own format never had a type for it.
            (_, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// An image of one platform, an index of several, or an artifact: everything that has to be in a registry for it.
#[derive(Debug, Clone)]
pub struct Image {
    /// What a tag points to: a manifest, or an index.
    pub target: Blob,
    /// The manifests that an index names; empty for an image of one platform.
    pub manifests: Vec<Blob>,
    /// Configs and layers.
    pub blobs: Vec<Blob>,
    /// `os/architecture[/variant]` of an image of one platform.
    platform: String,
}

/// What an image of one platform is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Whose media types to use.
    pub format: Format,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
    /// The command to run by default.
    pub command: Vec<String>,
}

impl Recipe {
    /// An OCI image of this machine's platform.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self {
            format: Format::Oci,
            platform: host_platform(),
            layers,
            command: vec!["/bin/sh".to_owned()],
        }
    }

    /// The image.
    pub fn build(&self) -> Image {
        let layers: Vec<Blob> = self
            .layers
            .iter()
            .map(|layer| Blob::new(self.format.layer(layer.compression), layer.packed()))
            .collect();
        let diff_ids: Vec<String> = self.layers.iter().map(Layer::diff_id).collect();
        let mut config = platform_json(&self.platform);
        config["config"] =
            json!({"Cmd": self.command, "Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/"});
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        let config = Blob::json(self.format.config(), &config);
        let target = manifest(self.format, None, &config, &layers);
        let blobs = std::iter::once(config).chain(layers).collect();
        Image {
            target,
            manifests: Vec::new(),
            blobs,
            platform: self.platform.clone(),
        }
    }
}

impl Image {
    /// An index of images of one platform each.
    pub fn index(format: Format, images: &[Self]) -> Self {
        let entries: Vec<Value> = images
            .iter()
            .map(|image| {
                let mut entry = image.target.descriptor();
                entry["platform"] = platform_json(&image.platform);
                entry
            })
            .collect();
        let value = json!({"schemaVersion": 2, "mediaType": format.index(), "manifests": entries});
        Self {
            target: Blob::json(format.index(), &value),
            manifests: images.iter().map(|image| image.target.clone()).collect(),
            blobs: images
                .iter()
                .flat_map(|image| image.blobs.clone())
                .collect(),
            platform: String::new(),
        }
    }

    /// An OCI artifact (image specification 1.1, "Guidelines for Artifact Usage"): the empty config, one file as it is.
    pub fn artifact(artifact_type: &str, media_type: &str, file: &[u8]) -> Self {
        let config = Blob::json("application/vnd.oci.empty.v1+json", &json!({}));
        let layers = [Blob::new(media_type, file.to_vec())];
        let target = manifest(Format::Oci, Some(artifact_type), &config, &layers);
        let blobs = std::iter::once(config).chain(layers).collect();
        Self {
            target,
            manifests: Vec::new(),
            blobs,
            platform: String::new(),
        }
    }

    /// The digest of what a tag points to.
    pub fn digest(&self) -> &str {
        &self.target.digest
    }

    /// The digest of the config: the image's id for CRI. An index has one for each platform; this is the first.
    pub fn config_digest(&self) -> &str {
        &self.blobs[0].digest
    }

    /// The compressed bytes of all its blobs, configs too.
    pub fn size(&self) -> usize {
        self.blobs.iter().map(|blob| blob.bytes.len()).sum()
    }
}

fn manifest(format: Format, artifact_type: Option<&str>, config: &Blob, layers: &[Blob]) -> Blob {
    let layers: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    let mut value = json!({"schemaVersion": 2, "mediaType": format.manifest(), "config": config.descriptor(), "layers": layers});
    if let Some(artifact_type) = artifact_type {
        value["artifactType"] = artifact_type.into();
    }
    Blob::json(format.manifest(), &value)
}

/// A real image: the static busybox of Debian with a link for each of its applets, in one gzip layer.
pub fn busybox(program: &Path) -> Recipe {
    let list = Command::new(program)
        .arg("--list")
        .output()
        .expect("busybox to start");
    let applets = String::from_utf8(list.stdout).expect("names of applets");
    let mut entries = vec![
        Entry::dir("bin", 0o755),
        Entry::dir("etc", 0o755),
        Entry::dir("tmp", 0o1777),
        Entry::file(
            "bin/busybox",
            0o755,
            std::fs::read(program).expect("the busybox program"),
        ),
        Entry::file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ];
    let links = applets
        .lines()
        .filter(|applet| !applet.is_empty() && *applet != "busybox");
    entries.extend(links.map(|applet| Entry::symlink(format!("bin/{applet}"), "busybox")));
    Recipe::new(vec![Layer::of(&entries)])
}

/// An image of `layers` layers with `bytes` bytes of files each, all different for another `seed`. It has nothing to run.
pub fn generated(seed: u64, layers: usize, bytes: usize) -> Recipe {
    Recipe::new(
        (0..layers as u64)
            .map(|number| Layer::generated(seed, number, bytes))
            .collect(),
    )
}

/// This machine's platform, in OCI's words.
pub fn host_platform() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "linux/amd64".to_owned(),
        "aarch64" => "linux/arm64/v8".to_owned(),
        other => format!("linux/{other}"),
    }
}

fn platform_json(platform: &str) -> Value {
    let mut parts = platform.split('/');
    let (os, architecture) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let mut value = json!({"os": os, "architecture": architecture});
    if let Some(variant) = parts.next() {
        value["variant"] = variant.into();
    }
    value
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
