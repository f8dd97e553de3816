//! Bytes straight into the file that containerd collects an ingest in.
//!
//! Through its API every byte is copied four times and hashed on the way. Writing the file itself saves
//! that, while an open stream keeps others off the reference; when the stream is opened again, containerd
//! counts and hashes what is there (`plugins/content/local/store.go`, `resumeStatus`), so that wrong
//! bytes cannot be committed this way either. The layout is that of every containerd from 1.6 on; where
//! it is not found, bytes go through the API.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use containerd_client::tonic::Status;
use rustix::fs::Advice;
use rustix::io::Errno;

/// After so many bytes the kernel is told to begin writing them to the disk, so that containerd's
/// fsync finds little to do.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// The file of the ingest of a namespace's reference, if it has `offset` bytes.
pub(super) async fn find(
    store: PathBuf,
    (namespace, reference): (String, String),
    offset: u64,
) -> Option<File> {
    let find = move || {
        let ingests = std::fs::read_dir(store.join("ingest")).ok()?;
        let is_ours = |dir: &Path| {
            std::fs::read_to_string(dir.join("ref"))
                .is_ok_and(|name| is_of(&name, &namespace, &reference))
        };
        let mut dirs = ingests.flatten().map(|entry| entry.path());
        let dir = dirs.find(|dir| is_ours(dir))?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(dir.join("data"))
            .ok()?;
        let has = file.metadata().ok()?.len();
        (has == offset).then_some(file)
    };
    tokio::task::spawn_blocking(find).await.ok().flatten()
}

/// Whether the store knows a namespace's reference by this name: `NAMESPACE/NUMBER/REFERENCE` (`metadata/content.go`,
/// `createKey`).
fn is_of(name: &str, namespace: &str, reference: &str) -> bool {
    let rest = name.strip_prefix(namespace);
    let numbered = rest.and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
    numbered.is_some_and(|(number, of)| number.parse::<u64>().is_ok() && of == reference)
}

/// Writes at an offset.
pub(super) async fn append(
    file: &Arc<File>,
    pieces: Vec<Bytes>,
    offset: u64,
) -> Result<(), Status> {
    let file = file.clone();
    let append = move || -> std::io::Result<()> {
        let mut end = offset;
        for piece in pieces {
            file.write_all_at(&piece, end)?;
            end += piece.len() as u64;
        }
        let (before, now) = (offset / WRITEBACK_BYTES, end / WRITEBACK_BYTES);
        if now > before {
            let length = std::num::NonZeroU64::new(WRITEBACK_BYTES);
            // Dirty pages are not dropped by this, but on their way to the disk. It is only advice.
            let _ = rustix::fs::fadvise(
                &*file,
                (now - 1) * WRITEBACK_BYTES,
                length,
                Advice::DontNeed,
            );
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(append).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| match Errno::from_io_error(&error) {
        // As containerd says it.
        Some(Errno::NOSPC | Errno::DQUOT) => Status::unknown("no space left on device"),
        _ => Status::unknown(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingest_is_known_by_namespace_and_reference() {
        let is_ours = |name| is_of(name, "k8s.io", "layer-sha256:ab");
        assert!(is_ours("k8s.io/17/layer-sha256:ab"));
        for other in [
            "k8s.io/17/layer-sha256:abc",
            "k8s.io/17/x/layer-sha256:ab",
            "k8s.io/layer-sha256:ab",
            "moby/17/layer-sha256:ab",
            "17/k8s.io/layer-sha256:ab",
            "k8s.io/x/layer-sha256:ab",
            "",
        ] {
            assert!(!is_ours(other), "{other:?}");
        }
    }
}
