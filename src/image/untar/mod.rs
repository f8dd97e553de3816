//! Unpacking a layer's archive as it comes, into a directory that becomes a layer of an overlay.
//!
//! What comes out is what containerd's own unpacking makes of the same archive, entry by entry, and
//! what it refuses is refused here. Nothing an archive says can reach outside the directory: paths are
//! resolved within it, and every file is made by a single name in a directory that is held open.

mod attributes;
mod error;
mod extended;
mod extract;
mod header;
mod lower;
mod probe;
mod reader;
mod tree;

use std::path::Path;

pub use self::error::UntarError;
use self::extract::Extractor;
pub use self::lower::inherit;
pub use self::probe::{Lack, probe};
use self::reader::Reader;
use self::tree::Tree;

/// Where among an image's layers the directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Below all others: nothing is there to be hidden, so that whiteouts remove what the archive
    /// itself had before.
    Lowest,
    /// On top of others: whiteouts become the marks that overlayfs knows.
    Upper,
}

/// How much an archive may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

impl Default for Limits {
    /// More than any image that is in use, and less than what takes a node down: the largest known
    /// have some hundred thousand files, and some hundred GB.
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            bytes: 1 << 40,
        }
    }
}

/// A directory that was made because an entry lay in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Implicit {
    /// Its path below the root.
    pub path: Vec<u8>,
    /// Whether an entry for itself came later.
    pub described: bool,
}

/// Unpacks one archive. It does not leave the thread it was made on.
pub struct Untar {
    reader: Reader,
    extractor: Extractor,
}

impl Untar {
    /// Prepares to unpack into an empty directory, which nobody else may write to meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn new(root: &Path, level: Level, limits: Limits) -> Result<Self, UntarError> {
        let tree = Tree::open(root).map_err(|errno| UntarError::Io {
            path: root.display().to_string(),
            action: "open it",
            errno,
        })?;
        Ok(Self {
            reader: Reader::new(),
            extractor: Extractor::new(tree, level, limits),
        })
    }

    /// Unpacks the next bytes of the archive.
    ///
    /// # Errors
    /// What is wrong with the archive or the disk. The rest of the archive is then of no use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UntarError> {
        self.reader.push(bytes, &mut self.extractor)
    }

    /// Ends the archive. The directories that no entry described, parents first, are still to be
    /// given what they have in the layers below, by [`inherit`].
    ///
    /// # Errors
    /// `Truncated` in the middle of an entry, and what the disk refuses.
    pub fn finish(self) -> Result<Vec<Implicit>, UntarError> {
        self.reader.finish()?;
        self.extractor.finish()
    }
}

#[cfg(test)]
mod tests;
