//! What an entry says of itself beside its content: owner, extended attributes, times.

use std::ffi::OsStr;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::UntarError;
use super::header::Nanos;
use super::reader::{Entry, Kind};
use super::tree::{Dir, join};

pub(super) fn own(dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
    let (user, group) = (uid(entry.uid), gid(entry.gid));
    rustix::fs::chownat(&dir.fd, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| UntarError::io(&join(&dir.path, name), "set the owner", errno))
}

pub(super) fn uid(id: Option<u32>) -> Option<Uid> {
    id.map(Uid::from_raw)
}

pub(super) fn gid(id: Option<u32>) -> Option<Gid> {
    id.map(Gid::from_raw)
}

/// Sets the attributes that containerd would: not the overlay's own, nor those that the file system
/// does not have.
pub(super) fn xattrs(dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
    for (key, value) in &entry.xattrs {
        if key.starts_with(b"trusted.") {
            continue;
        }
        let path = proc_path(dir, name);
        match rustix::fs::lsetxattr(path, key.as_slice(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            // Only files and directories may have them (xattr(7)).
            Err(Errno::PERM)
                if key.starts_with(b"user.") && !matches!(entry.kind, Kind::File | Kind::Dir) => {}
            Err(errno) => {
                let path = join(&dir.path, name);
                let action = "set an extended attribute";
                return Err(match errno {
                    // What the archive asks for, and no file system would do.
                    Errno::INVAL | Errno::RANGE | Errno::TOOBIG | Errno::PERM => {
                        UntarError::entry(&path, format!("cannot {action}: {errno}"))
                    }
                    errno => UntarError::io(&path, action, errno),
                });
            }
        }
    }
    Ok(())
}

/// A path to a name in an open directory, for calls that take no directory.
pub(super) fn proc_path(dir: &Dir, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.fd.as_raw_fd()));
    if !name.is_empty() {
        path.push(OsStr::from_bytes(name));
    }
    path
}

/// What containerd sets: the later of the two as the time of access, and 1970 in place of what Go's
/// clock does not reach (`pkg/archive/time.go`).
pub(super) fn times(entry: &Entry) -> Timestamps {
    let modified = entry.modified;
    let accessed = entry.accessed.map_or(modified, |time| time.max(modified));
    Timestamps {
        last_access: timespec(accessed),
        last_modification: timespec(modified),
    }
}

fn timespec(nanos: Nanos) -> Timespec {
    let nanos = u64::try_from(nanos)
        .ok()
        .filter(|nanos| i64::try_from(*nanos).is_ok())
        .unwrap_or(0);
    Timespec {
        tv_sec: (nanos / 1_000_000_000).cast_signed(),
        tv_nsec: (nanos % 1_000_000_000).cast_signed(),
    }
}
