//! Directories that a layer holds files in without an entry of their own: they look as they do in the
//! layers below (`mkparent` of containerd's `pkg/archive/tar.go`).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Implicit;
use super::error::UntarError;
use super::tree::{Tree, split};

/// Most bytes of the names, and of the value, of extended attributes (xattr(7), limits).
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Gives implicit directories of the layer at `upper` the mode, owner, times and extended attributes
/// that they have in the topmost of `lowers` which has them; `lowers` has the topmost first.
///
/// # Errors
/// What the file system refuses.
pub fn inherit(upper: &Path, lowers: &[PathBuf], implicit: &[Implicit]) -> Result<(), UntarError> {
    if implicit.is_empty() || lowers.is_empty() {
        return Ok(());
    }
    let open = |path: &Path| {
        let failed = |errno| UntarError::io(path.as_os_str().as_bytes(), "open it", errno);
        Tree::open(path).map_err(failed)
    };
    let upper = open(upper)?;
    let lowers = lowers
        .iter()
        .map(|path| open(path))
        .collect::<Result<Vec<_>, _>>()?;
    // The deepest first: changing what is in a directory changes its times.
    for Implicit { path, described } in implicit.iter().rev() {
        let failed = |errno| UntarError::io(path, "make it look as below", errno);
        let target = match directory(&upper, path) {
            Ok(Some((target, _))) => target,
            // It may have gone again, or something else come in its place.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        for lower in &lowers {
            let resolved = lower.resolve(path).map_err(failed)?;
            match directory(lower, &resolved) {
                Ok(Some((source, stat))) => {
                    copy(&source, &stat, &target, *described).map_err(failed)?;
                    break;
                }
                Err(Errno::NOENT) => {}
                // It was something else in between, so that what is below does not count.
                Ok(None) | Err(Errno::NOTDIR) => break,
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    Ok(())
}

/// The directory at a path without links in it; `None` if it is something else.
fn directory(tree: &Tree, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let (parent, name) = split(path);
    let parent = tree.open_plain(parent)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(None);
    }
    Ok(Some((tree.open_plain(path)?, stat)))
}

fn copy(source: &OwnedFd, stat: &Stat, target: &OwnedFd, described: bool) -> Result<(), Errno> {
    let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (from, to) = (path(source), path(target));
    if !described {
        let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chown(&to, Some(user), Some(group))?;
    }
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = match rustix::fs::listxattr(&from, &mut names[..]) {
        Err(Errno::NOTSUP | Errno::NODATA) => 0,
        listed => listed?,
    };
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.") {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; MAX_XATTR_BYTES];
        let length = match rustix::fs::getxattr(&from, name, &mut value[..]) {
            Err(Errno::NOTSUP | Errno::NODATA) => continue,
            read => read?,
        };
        match rustix::fs::setxattr(&to, name, &value[..length], XattrFlags::CREATE) {
            Ok(()) | Err(Errno::NOTSUP | Errno::NODATA | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    if described {
        return Ok(());
    }
    rustix::fs::chmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.cast_signed(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(rustix::fs::CWD, &to, &times, AtFlags::empty())
}
