//! The images, made of the files in this machine's /usr.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use prewarm::domain::image::Digest;

use super::support::images::{Compression, Image, Layer, Recipe};

/// The files below /usr, in an order that mixes small and large ones.
fn files() -> Vec<(PathBuf, u64)> {
    let mut pending = vec![
        PathBuf::from("/usr/lib"),
        "/usr/share".into(),
        "/usr/bin".into(),
    ];
    let mut found = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_file() && meta.size() < 40_000_000 {
                found.push((entry.path(), meta.size()));
            }
        }
    }
    found.sort_by_key(|(path, _)| {
        let name = path.to_string_lossy();
        Digest::of(name.as_bytes()).to_string()
    });
    found
}

/// Layers of about so many bytes of files each.
fn layers(count: usize, bytes: u64, compression: Compression) -> Vec<Layer> {
    let files = files();
    let mut files = files.iter().cycle();
    let one = |files: &mut dyn Iterator<Item = &(PathBuf, u64)>, number: usize| {
        let mut chosen = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let (path, size) = files.next().expect("files in /usr");
            chosen.push(path);
            left = left.saturating_sub((*size).max(1));
        }
        // As builders write a layer: in the order of the names, each directory before what is in it.
        chosen.sort_unstable();
        let mut builder = tar::Builder::new(Vec::new());
        let mut dirs = BTreeSet::new();
        for path in chosen {
            let name = format!("layer-{number}{}", path.display());
            let mut content = Vec::new();
            let read =
                std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut content));
            if read.is_ok() {
                append_parents(&mut builder, &name, &mut dirs);
                let _ = append(&mut builder, &name, &content);
            }
        }
        Layer::archive(builder.into_inner().unwrap()).packed_as(compression)
    };
    (0..count).map(|number| one(&mut files, number)).collect()
}

/// The directories above a name that the layer does not have yet.
fn append_parents(builder: &mut tar::Builder<Vec<u8>>, name: &str, dirs: &mut BTreeSet<String>) {
    let slashes: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
    for at in slashes {
        let dir = &name[..=at];
        if dirs.insert(dir.to_owned()) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_mtime(1_700_000_000);
            header.set_size(0);
            builder.append_data(&mut header, dir, &[][..]).unwrap();
        }
    }
}

fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content)
}

/// The images by name.
pub(super) fn images(wanted: &dyn Fn(&str) -> bool) -> Vec<(&'static str, Image)> {
    const MB: u64 = 1_000_000;
    let all: [(&'static str, usize, u64, Compression); 5] = [
        ("ten-layers", 10, 80 * MB, Compression::Gzip),
        ("one-layer", 1, 800 * MB, Compression::Gzip),
        ("forty-small", 40, 2 * MB, Compression::Gzip),
        ("ten-layers-zstd", 10, 80 * MB, Compression::Zstd),
        ("one-layer-zstd", 1, 800 * MB, Compression::Zstd),
    ];
    all.into_iter()
        .filter(|(name, ..)| wanted(name))
        .map(|(name, count, bytes, compression)| {
            let image = Recipe::new(layers(count, bytes, compression)).build();
            println!("{name}: {:.0} MB packed", image.size() as f64 / 1e6);
            (name, image)
        })
        .collect()
}
