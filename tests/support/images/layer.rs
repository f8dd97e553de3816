//! Layers: tar archives with fixed owners and times.

use std::io::Write;

use super::digest;

/// Every file's time: 2026-01-01T00:00:00Z.
const MTIME: u64 = 1_767_225_600;
/// The usual size of a file of a generated layer.
const GENERATED_FILE: usize = 64 * 1024;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As most images are.
    Gzip,
    /// As some newer images are.
    Zstd,
    /// A bare tar archive.
    None,
}

/// One entry of a layer; paths are relative to the root.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    mode: u32,
    owner: (u64, u64),
    /// Of the version 2 of `security.capability`, permitted and effective.
    capability: Option<u32>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
    CharDevice(u32, u32),
}

impl Entry {
    fn new(path: impl Into<String>, mode: u32, kind: Kind) -> Self {
        Self {
            path: path.into(),
            mode,
            owner: (0, 0),
            capability: None,
            kind,
        }
    }

    /// A directory.
    pub fn dir(path: impl Into<String>, mode: u32) -> Self {
        Self::new(path, mode, Kind::Dir)
    }

    /// A file.
    pub fn file(path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, mode, Kind::File(content.into()))
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, 0o777, Kind::Symlink(target.into()))
    }

    /// Another name for the file at `target`.
    pub fn hard_link(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, 0o644, Kind::HardLink(target.into()))
    }

    /// A device node.
    pub fn char_device(path: impl Into<String>, mode: u32, major: u32, minor: u32) -> Self {
        Self::new(path, mode, Kind::CharDevice(major, minor))
    }

    /// Hides `path` of the layers below (OCI layer specification, "Whiteouts").
    pub fn whiteout(path: &str) -> Self {
        let (dir, name) = path
            .rsplit_once('/')
            .map_or(("", path), |(dir, name)| (dir, name));
        let separator = if dir.is_empty() { "" } else { "/" };
        Self::file(format!("{dir}{separator}.wh.{name}"), 0o644, "")
    }

    /// Hides everything that the layers below have in the directory `dir` ("Opaque Whiteout").
    pub fn opaque(dir: &str) -> Self {
        Self::file(format!("{dir}/.wh..wh..opq"), 0o644, "")
    }

    /// The same entry, of another owner and group.
    #[must_use]
    pub fn owned_by(mut self, user: u64, group: u64) -> Self {
        self.owner = (user, group);
        self
    }

    /// The same program, which may do what this capability (its number in linux/capability.h) allows, whoever runs it.
    #[must_use]
    pub fn capable_of(mut self, capability: u32) -> Self {
        self.capability = Some(capability);
        self
    }

    /// As its file has it (linux/capability.h, `struct vfs_cap_data`).
    fn file_capability(&self) -> Option<Vec<u8>> {
        let bits = 1_u64 << self.capability?;
        let (low, high) = ((bits & 0xffff_ffff) as u32, (bits >> 32) as u32);
        let words = [0x0200_0001, low, 0, high, 0];
        Some(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }
}

/// A layer before it is packed.
#[derive(Debug, Clone)]
pub struct Layer {
    /// How it is packed.
    pub compression: Compression,
    tar: Vec<u8>,
}

impl Layer {
    /// A gzip layer of these entries, in this order.
    pub fn of(entries: &[Entry]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for entry in entries {
            append(&mut builder, entry).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        }
        Self {
            compression: Compression::Gzip,
            tar: builder.into_inner().expect("a tar archive in memory"),
        }
    }

    /// A gzip layer of about `bytes` bytes in files that compress to about half, with nothing in common with the layer of
    /// another `seed` or `number`.
    pub fn generated(seed: u64, number: u64, bytes: usize) -> Self {
        let mut random = SplitMix(seed.wrapping_mul(0x1000_0000_01b3).wrapping_add(number));
        let root = format!("layer-{number}");
        let mut entries = vec![Entry::dir(&root, 0o755)];
        let mut left = bytes;
        let mut file = 0;
        while left > 0 {
            if file % 50 == 0 {
                entries.push(Entry::dir(format!("{root}/{}", file / 50), 0o755));
            }
            let size = left.min(GENERATED_FILE);
            entries.push(Entry::file(
                format!("{root}/{}/{file}", file / 50),
                0o644,
                half_random(&mut random, size),
            ));
            left -= size;
            file += 1;
        }
        Self::of(&entries)
    }

    /// A gzip layer of an archive that is there.
    pub fn archive(tar: Vec<u8>) -> Self {
        Self {
            compression: Compression::Gzip,
            tar,
        }
    }

    /// The bare tar archive.
    pub fn tar(&self) -> &[u8] {
        &self.tar
    }

    /// The same layer, packed otherwise.
    #[must_use]
    pub fn packed_as(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The digest of the bare tar archive.
    pub fn diff_id(&self) -> String {
        digest(&self.tar)
    }

    /// The bytes as they are in the registry.
    pub fn packed(&self) -> Vec<u8> {
        match self.compression {
            Compression::None => self.tar.clone(),
            Compression::Zstd => {
                let mut packed = Vec::with_capacity(zstd_safe::compress_bound(self.tar.len()));
                zstd_safe::compress(&mut packed, &self.tar, 3).expect("zstd in memory");
                packed
            }
            Compression::Gzip => {
                let mut packer =
                    flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
                packer
                    .write_all(&self.tar)
                    .and_then(|()| packer.finish())
                    .expect("gzip in memory")
            }
        }
    }
}

fn append(builder: &mut tar::Builder<Vec<u8>>, entry: &Entry) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(MTIME);
    header.set_size(0);
    if let Some(value) = entry.file_capability() {
        builder.append_pax_extensions([("SCHILY.xattr.security.capability", value.as_slice())])?;
    }
    match &entry.kind {
        Kind::Dir => {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, format!("{}/", entry.path), std::io::empty())
        }
        Kind::File(content) => {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, &entry.path, content.as_slice())
        }
        Kind::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, &entry.path, target)
        }
        Kind::HardLink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            builder.append_link(&mut header, &entry.path, target)
        }
        Kind::CharDevice(major, minor) => {
            header.set_entry_type(tar::EntryType::Char);
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            builder.append_data(&mut header, &entry.path, std::io::empty())
        }
    }
}

/// Every second block of 256 bytes is random, the others are all the same.
fn half_random(random: &mut SplitMix, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 512);
    while bytes.len() < size {
        for _ in 0..32 {
            bytes.extend(random.next().to_le_bytes());
        }
        bytes.extend([b'.'; 256]);
    }
    bytes.truncate(size);
    bytes
}

/// `SplitMix64` (Steele, Lea and Flood 2014): the same numbers for a seed in every version, which `rand` does not promise.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
