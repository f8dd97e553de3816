//! Why an archive was not unpacked.

use std::fmt::Write as _;

use rustix::io::Errno;

/// An archive that cannot be unpacked, or a disk that does not take it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UntarError {
    /// A header is not one.
    #[error("a header of the archive is broken: {0}")]
    Header(&'static str),
    /// The archive ends in the middle of an entry.
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    /// An entry asks for something that containerd refuses as well.
    #[error("{path}: {problem}")]
    Entry {
        /// The entry's name, with what is not printable escaped.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is more in the archive than the limits allow.
    #[error("the archive {what}, more than the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// The operating system refused.
    #[error("{path}: cannot {action}: {errno}")]
    Io {
        /// The entry's name, with what is not printable escaped.
        path: String,
        /// What was to be done.
        action: &'static str,
        /// Why not.
        errno: Errno,
    },
}

impl UntarError {
    pub(super) fn io(path: &[u8], action: &'static str, errno: Errno) -> Self {
        let path = shown(path);
        Self::Io {
            path,
            action,
            errno,
        }
    }

    pub(super) fn entry(path: &[u8], problem: impl Into<String>) -> Self {
        Self::Entry {
            path: shown(path),
            problem: problem.into(),
        }
    }

    /// Whether the disk, and not the archive, is what is wrong.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { errno, .. } if matches!(*errno, Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the machine, and not the archive, is what is wrong.
    #[must_use]
    pub fn is_machine(&self) -> bool {
        let of_machine = |errno| {
            matches!(
                errno,
                Errno::IO
                    | Errno::ROFS
                    | Errno::NFILE
                    | Errno::MFILE
                    | Errno::NOMEM
                    | Errno::ACCESS
                    | Errno::PERM
                    | Errno::STALE
            )
        };
        self.is_disk_full() || matches!(self, Self::Io { errno, .. } if of_machine(*errno))
    }
}

/// Most bytes of a name that go into a message.
const MAX_SHOWN: usize = 200;

/// A name in printable ASCII.
fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(MAX_SHOWN)];
    let mut shown = cut.escape_ascii().to_string();
    if cut.len() < path.len() {
        let _ = write!(shown, "… ({} bytes)", path.len());
    }
    shown
}
