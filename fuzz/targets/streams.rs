//! Bytes of layers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use prewarm::image::inflate::{CHUNK_BYTES, InflateError, Inflater, Outlet};
use prewarm::image::untar::{Level, Limits, Untar};

use super::choose;

/// Most bytes that may come out.
const MOST_BYTES: u64 = 1 << 20;
/// Most entries that may be made.
const MOST_ENTRIES: u64 = 64;

#[derive(Default)]
struct Collected(Vec<u8>);

impl Outlet for Collected {
    fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError> {
        self.0.extend_from_slice(&buffer[..filled]);
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        vec![0; CHUNK_BYTES]
    }
}

fn inflated(data: &[u8], piece: usize) -> Result<Vec<u8>, InflateError> {
    let mut inflater = Inflater::new(MOST_BYTES);
    let mut out = Collected::default();
    for piece in data.chunks(piece) {
        inflater.push(piece, &mut out)?;
    }
    inflater.finish(&mut out)?;
    Ok(out.0)
}

/// gzip, zstd and plain: never more than the limit, and the same in whatever pieces it comes.
pub fn inflate(data: &[u8]) {
    let Some((piece, data)) = choose(data, 64) else {
        return;
    };
    let (whole, pieces) = (inflated(data, usize::MAX), inflated(data, piece + 1));
    if let Ok(out) = &whole {
        assert!(out.len() as u64 <= MOST_BYTES);
    }
    match (&whole, &pieces) {
        (Ok(whole), Ok(pieces)) => assert!(whole == pieces, "pieces of {} differ", piece + 1),
        (Err(_), Err(_)) => {}
        _ => panic!(
            "whole {:?}, in pieces of {} {:?}",
            whole.err(),
            piece + 1,
            pieces.err()
        ),
    }
}

/// Mode, size and number of links by path.
type Tree = BTreeMap<Vec<u8>, (u32, u64, u64)>;

/// Every path below `root` with what can be seen of it.
fn tree(root: &Path) -> Tree {
    use std::os::unix::ffi::OsStrExt as _;
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let relative = path.strip_prefix(root).expect("a path below the root");
            let size = if metadata.is_file() {
                metadata.size()
            } else {
                0
            };
            found.insert(
                relative.as_os_str().as_bytes().to_vec(),
                (metadata.mode(), size, metadata.nlink()),
            );
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

fn unpacked(data: &[u8], level: Level, piece: usize) -> (Result<(), String>, Tree) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let root = place.path().join("root");
    let guard = place.path().join("guard");
    fs::create_dir(&root).expect("a folder");
    fs::create_dir(&guard).expect("a folder");
    fs::write(guard.join("file"), "untouched").expect("a file");
    std::os::unix::fs::symlink("guard/file", place.path().join("link")).expect("a link");
    let before = tree(place.path());
    let limits = Limits {
        entries: MOST_ENTRIES,
        bytes: MOST_BYTES,
    };
    let mut untar = Untar::new(&root, level, limits).expect("a folder to unpack into");
    let written = data.chunks(piece).try_for_each(|piece| untar.write(piece));
    let result = written.and_then(|()| untar.finish().map(drop));
    let mut after = tree(place.path());
    let inside = tree(&root);
    after.retain(|path, _| !path.starts_with(b"root/"));
    // The root's own mode and links are an entry's to set.
    let root_of = |mut tree: Tree| {
        tree.remove(&b"root"[..]);
        tree
    };
    assert_eq!(
        root_of(after),
        root_of(before),
        "something outside was touched"
    );
    assert_eq!(
        fs::read(guard.join("file")).expect("the guard"),
        b"untouched"
    );
    let bytes: u64 = inside
        .values()
        .map(|(_, size, links)| size / links.max(&1))
        .sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes were written");
    (result.map_err(|error| error.to_string()), inside)
}

/// Archives: nothing outside the root, no more than the limits, and the same in whatever pieces they come.
pub fn untar(data: &[u8]) {
    let Some((choice, data)) = choose(data, 128) else {
        return;
    };
    let level = if choice % 2 == 0 {
        Level::Lowest
    } else {
        Level::Upper
    };
    let (whole, there) = unpacked(data, level, usize::MAX);
    let (pieces, there_by_pieces) = unpacked(data, level, 1 + choice * 8);
    assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?}, {pieces:?}");
    if whole.is_ok() {
        assert_eq!(there, there_by_pieces);
    }
}
