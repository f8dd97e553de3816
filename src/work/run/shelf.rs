//! Results on the disk: one small file each, written whole or not at all.
//!
//! A file is a line with the digest of what follows, and the result as JSON.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::domain::image::Digest;
use crate::domain::name::NodeName;
use crate::work::state::kept::{KeptResult, MAX_KEPT_RESULTS};

/// Largest result that is kept: no message of the broker is larger by default.
pub(super) const MAX_RESULT_BYTES: u64 = 1 << 20;
/// Most bytes of all results together.
pub(super) const MAX_SHELF_BYTES: u64 = 16 << 20;
/// Most results at once: those of earlier lives, and one for every slot.
pub(super) const MAX_SHELF_RESULTS: usize =
    MAX_KEPT_RESULTS + crate::domain::node::MAX_CAPACITY as usize;
/// Most entries of the directory that are looked at: more are not ours.
const MAX_ENTRIES: usize = 4_096;
/// What a result's name ends with.
const ENDING: &str = ".result";
/// What the name of a file ends with that is being written.
const UNFINISHED: &str = ".unfinished";

/// Why a result is not on the disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShelfError {
    #[error("{} cannot be {what}: {source}", .path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    #[error("it cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("there are {results} results of {bytes} bytes in all already, which nobody has taken")]
    Full { results: usize, bytes: u64 },
}

fn failed<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> ShelfError + 'a {
    move |source| ShelfError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

/// The directory of one node's results, of which this process is the only writer.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    node: NodeName,
    /// Sizes by name.
    sizes: BTreeMap<String, u64>,
}

impl Shelf {
    /// The results of this node under this subject prefix; the directory is made if it is not there.
    pub(super) fn open(state: &Path, prefix: &str, node: &NodeName) -> Result<Self, ShelfError> {
        let directory = state.join("results").join(prefix).join(node.as_str());
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&directory)
            .map_err(failed(&directory, "made"))?;
        Ok(Self {
            directory,
            node: node.clone(),
            sizes: BTreeMap::new(),
        })
    }

    /// Reads what is there. What cannot be read is told and taken away, or it would be told at every start.
    pub(super) fn load(&mut self) -> Result<Vec<KeptResult>, ShelfError> {
        let entries = fs::read_dir(&self.directory).map_err(failed(&self.directory, "listed"))?;
        let mut found = Vec::new();
        for entry in entries.take(MAX_ENTRIES) {
            let path = entry.map_err(failed(&self.directory, "listed"))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.ends_with(UNFINISHED) {
                let _ = fs::remove_file(&path);
            } else if name.ends_with(ENDING) {
                match self.read(&path) {
                    Ok((kept, size)) => found.push((name.to_owned(), kept, size)),
                    Err(reason) => {
                        tracing::warn!(file = %path.display(), reason, "a kept result cannot be used and is removed; its pull is looked at again if it is still wanted");
                        let _ = fs::remove_file(&path);
                    }
                }
            }
        }
        found.sort_by_key(|(_, kept, _)| kept.at);
        let surplus = found.len().saturating_sub(MAX_KEPT_RESULTS);
        if surplus > 0 {
            tracing::warn!(
                surplus,
                limit = MAX_KEPT_RESULTS,
                "there are more kept results than are told; the oldest are dropped"
            );
        }
        for (name, _, _) in found.drain(..surplus) {
            let _ = fs::remove_file(self.directory.join(name));
        }
        let mut results = Vec::with_capacity(found.len());
        for (name, kept, size) in found {
            self.sizes.insert(name, size);
            results.push(kept);
        }
        Ok(results)
    }

    fn read(&self, path: &Path) -> Result<(KeptResult, u64), String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        file.take(MAX_RESULT_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        let size = bytes.len() as u64;
        if size > MAX_RESULT_BYTES {
            return Err(format!("it has more than {MAX_RESULT_BYTES} bytes"));
        }
        let kept = decode(&bytes)?;
        if kept.event.node != self.node {
            return Err(format!("it is of node {}", kept.event.node));
        }
        Ok((kept, size))
    }

    /// Writes a result; when this returns, it survives a crash of the machine.
    pub(super) fn put(&mut self, kept: &KeptResult) -> Result<(), ShelfError> {
        let content = encode(kept)?;
        let name = name(&kept.message_id);
        let others = self.sizes.iter().filter(|(other, _)| **other != name);
        let (results, bytes) =
            others.fold((0, 0), |(count, sum), (_, size)| (count + 1, sum + size));
        let size = content.len() as u64;
        if results >= MAX_SHELF_RESULTS || size > MAX_RESULT_BYTES || bytes + size > MAX_SHELF_BYTES
        {
            return Err(ShelfError::Full { results, bytes });
        }
        let path = self.directory.join(&name);
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        let written = write(&unfinished, &content)
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(failed(&path, "written")(error));
        }
        self.sizes.insert(name, size);
        Ok(())
    }

    /// Takes a result away, if it is there. What a crash of the machine brings back is told again, and is a repeat.
    pub(super) fn remove(&mut self, message_id: &str) -> Result<(), ShelfError> {
        let name = name(message_id);
        if self.sizes.remove(&name).is_none() {
            return Ok(());
        }
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&path, "removed")(error))
            }
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn name(message_id: &str) -> String {
    format!("{}{ENDING}", Digest::of(message_id.as_bytes()).hex())
}

fn encode(kept: &KeptResult) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(kept)?;
    let mut content = format!("{}\n", Digest::of(&body)).into_bytes();
    content.extend_from_slice(&body);
    Ok(content)
}

/// Reads a file's content; whatever is not exactly what was written is an error.
pub(super) fn decode(content: &[u8]) -> Result<KeptResult, String> {
    let end = content.iter().position(|byte| *byte == b'\n');
    let Some((digest, body)) = end.map(|end| (&content[..end], &content[end + 1..])) else {
        return Err("it is cut short".to_owned());
    };
    if digest != Digest::of(body).as_str().as_bytes() {
        return Err("its content is not what was written".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::wire::event::{PullState, TaskEvent};
    use crate::wire::task::Run;

    fn kept(number: usize) -> KeptResult {
        KeptResult {
            message_id: format!("id-{number}"),
            at: Timestamp::from_millis(i64::try_from(number).unwrap()),
            event: TaskEvent {
                job: "base".parse().unwrap(),
                run: Run {
                    uid: "u".to_owned(),
                    generation: 1,
                    round: 2,
                },
                node: node(),
                image: "nginx".parse().unwrap(),
                state: PullState::Succeeded,
                attempt: 1,
                failure: None,
                next_attempt_at: None,
                result: None,
                labels: [].into(),
                annotations: [].into(),
            },
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                .parse()
                .ok()
                .filter(|_| number % 2 == 1),
        }
    }

    fn node() -> NodeName {
        "node-1.example".parse().unwrap()
    }

    fn open(state: &Path) -> (Shelf, Vec<KeptResult>) {
        let mut shelf = Shelf::open(state, "prewarm", &node()).unwrap();
        let found = shelf.load().unwrap();
        (shelf, found)
    }

    #[test]
    fn what_is_put_is_there_until_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let (mut shelf, found) = open(state.path());
        assert_eq!(found, []);
        shelf.put(&kept(2)).unwrap();
        shelf.put(&kept(1)).unwrap();
        shelf.put(&kept(1)).unwrap();
        let (mut shelf, found) = open(state.path());
        assert_eq!(found, [kept(1), kept(2)]);
        shelf.remove("id-1").unwrap();
        shelf.remove("id-1").unwrap();
        shelf.remove("never there").unwrap();
        assert_eq!(open(state.path()).1, [kept(2)]);
        let other = Shelf::open(state.path(), "other", &node()).unwrap().load();
        assert_eq!(other.unwrap(), [], "another fleet's are its own");
    }

    #[test]
    fn damaged_files_are_removed_and_the_others_told() {
        let state = tempfile::tempdir().unwrap();
        let (mut shelf, _) = open(state.path());
        for number in 0..6 {
            shelf.put(&kept(number)).unwrap();
        }
        let path = |number: usize| shelf.directory.join(name(&format!("id-{number}")));
        let content = fs::read(path(0)).unwrap();
        fs::write(path(0), &content[..content.len() - 1]).unwrap();
        fs::write(path(1), b"").unwrap();
        let mut flipped = content;
        let last = flipped.len() - 10;
        flipped[last] ^= 1;
        fs::write(path(2), flipped).unwrap();
        let mut foreign = kept(3);
        foreign.event.node = "node-2".parse().unwrap();
        fs::write(path(3), encode(&foreign).unwrap()).unwrap();
        fs::write(path(4), vec![b'x'; MAX_RESULT_BYTES as usize + 1]).unwrap();
        fs::write(shelf.directory.join("half.result.unfinished"), b"x").unwrap();
        fs::write(shelf.directory.join("README"), b"somebody's").unwrap();
        assert_eq!(open(state.path()).1, [kept(5)]);
        let mut left: Vec<_> = fs::read_dir(&shelf.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [name("id-5").as_str(), "README"].map(std::ffi::OsString::from)
        );
    }

    #[test]
    fn a_shelf_has_an_end() {
        let state = tempfile::tempdir().unwrap();
        let (mut shelf, _) = open(state.path());
        for number in 0..MAX_SHELF_RESULTS {
            shelf.sizes.insert(format!("{number}"), 1);
        }
        let full = shelf.put(&kept(0)).unwrap_err();
        assert!(matches!(full, ShelfError::Full { .. }), "{full}");
        shelf.sizes.clear();
        shelf.sizes.insert("large".to_owned(), MAX_SHELF_BYTES);
        shelf.put(&kept(0)).unwrap_err();
        shelf.sizes.clear();
        for number in 0..MAX_KEPT_RESULTS + 2 {
            fs::write(
                shelf.directory.join(name(&format!("id-{number}"))),
                encode(&kept(number)).unwrap(),
            )
            .unwrap();
        }
        let found = open(state.path()).1;
        assert_eq!(found.len(), MAX_KEPT_RESULTS);
        assert_eq!(found[0], kept(2), "the oldest are dropped");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_an_error_that_names_the_file() {
        let state = tempfile::tempdir().unwrap();
        let (mut shelf, _) = open(state.path());
        fs::remove_dir_all(&shelf.directory).unwrap();
        let error = shelf.put(&kept(1)).unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
        assert_eq!(shelf.sizes.len(), 0);
    }
}
