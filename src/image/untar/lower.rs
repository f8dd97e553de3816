//! Directories that a layer holds files in without an entry of their own: they look as they do in the
//! layers below (`mkparent` of containerd's `pkg/archive/tar.go`).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Implicit;
use super::error::UntarError;
use super::tree::{Tree, split};

/// Most bytes of the names, and of the value, of extended attributes (xattr(7), limits).
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Most layers below that are kept open; one more is opened each time that it is looked at.
const MAX_OPEN_LOWERS: usize = 64;
/// Most paths of layers that are remembered to be missing; what is not remembered is looked for.
const MAX_MISSING: usize = 64 << 10;

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
    let mut lowers = Lowers::new(lowers);
    let sources = Sources::find(&mut lowers, implicit)?;
    // The deepest first: changing what is in a directory changes its times.
    for (Implicit { path, described }, source) in implicit.iter().zip(sources).rev() {
        let Some(Source { lower, path: at }) = source else {
            continue;
        };
        let failed = |errno| UntarError::io(path, "make it look as below", errno);
        let target = match directory(&upper, path) {
            Ok(Some((target, _))) => target,
            // It may have gone again, or something else come in its place.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        let lower = lowers.tree(lower).map_err(failed)?;
        if let Some((source, stat)) = directory(&lower, &at).map_err(failed)? {
            copy(&source, &stat, &target, *described).map_err(failed)?;
        }
    }
    Ok(())
}

/// The layers below, the topmost first, each opened when it is looked at: there may be hundreds, and what is looked for is
/// in one of the topmost as a rule.
struct Lowers<'a> {
    dirs: &'a [PathBuf],
    open: HashMap<usize, Rc<Tree>>,
}

impl<'a> Lowers<'a> {
    fn new(dirs: &'a [PathBuf]) -> Self {
        Self {
            dirs,
            open: HashMap::new(),
        }
    }

    fn tree(&mut self, lower: usize) -> Result<Rc<Tree>, Errno> {
        if let Some(tree) = self.open.get(&lower) {
            return Ok(Rc::clone(tree));
        }
        let tree = Rc::new(Tree::open(&self.dirs[lower])?);
        if self.open.len() < MAX_OPEN_LOWERS {
            self.open.insert(lower, Rc::clone(&tree));
        }
        Ok(tree)
    }
}

/// What a directory is to look like.
struct Source {
    /// Which of the layers below has it.
    lower: usize,
    /// Where it is there, free of links.
    path: Vec<u8>,
}

/// Finds sources. Most of what a layer brings along is in few of those below, or in none: what is not there is
/// remembered, so that nobody looks below it.
struct Sources<'a> {
    /// Where a layer has nothing, by the path and the layer.
    missing: HashSet<(&'a [u8], usize)>,
}

impl<'a> Sources<'a> {
    /// For each path the topmost layer that has it.
    fn find(
        lowers: &mut Lowers<'_>,
        implicit: &'a [Implicit],
    ) -> Result<Vec<Option<Source>>, UntarError> {
        let mut sources = Self {
            missing: HashSet::new(),
        };
        let find = |Implicit { path, .. }: &'a Implicit| {
            let failed = |errno| UntarError::io(path, "look for it below", errno);
            sources.of(lowers, path).map_err(failed)
        };
        implicit.iter().map(find).collect()
    }

    fn of(&mut self, lowers: &mut Lowers<'_>, path: &'a [u8]) -> Result<Option<Source>, Errno> {
        for lower in 0..lowers.dirs.len() {
            if self.is_missing(path, lower) {
                continue;
            }
            let tree = lowers.tree(lower)?;
            // Without links on the way, one look is enough.
            let at = match tree.open_plain(path) {
                Ok(_) => {
                    let path = path.to_vec();
                    return Ok(Some(Source { lower, path }));
                }
                Err(Errno::NOENT) => {
                    self.remember((path, lower));
                    continue;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => tree.resolve(path)?,
                Err(errno) => return Err(errno),
            };
            match directory(&tree, &at) {
                Ok(Some(_)) => return Ok(Some(Source { lower, path: at })),
                Err(Errno::NOENT) => {}
                // It was something else in between, so that what is below does not count.
                Ok(None) | Err(Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    }

    /// Whether the directory that holds the path is known to be missing; those that are above come first.
    fn is_missing(&mut self, path: &'a [u8], lower: usize) -> bool {
        let (parent, _) = split(path);
        let missing = !parent.is_empty() && self.missing.contains(&(parent, lower));
        if missing {
            self.remember((path, lower));
        }
        missing
    }

    fn remember(&mut self, missing: (&'a [u8], usize)) {
        if self.missing.len() < MAX_MISSING {
            self.missing.insert(missing);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_layers_below_few_are_open_and_all_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let dirs: Vec<_> = (0..3 * MAX_OPEN_LOWERS)
            .map(|number| dir.path().join(number.to_string()))
            .collect();
        for path in &dirs {
            std::fs::create_dir(path).unwrap();
        }
        let lowest = dirs.len() - 1;
        std::fs::create_dir_all(dirs[lowest].join("in/it")).unwrap();
        let implicit = ["in/it", "in", "nowhere"].map(|path| Implicit {
            path: path.into(),
            described: false,
        });
        let mut lowers = Lowers::new(&dirs);
        let found = Sources::find(&mut lowers, &implicit).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|source| source.as_ref().map(|source| source.lower))
            .collect();
        assert_eq!(found, [Some(lowest), Some(lowest), None]);
        assert_eq!(lowers.open.len(), MAX_OPEN_LOWERS);

        let mut lowers = Lowers::new(&dirs[lowest..]);
        Sources::find(&mut lowers, &implicit[..1]).unwrap();
        assert_eq!(lowers.open.len(), 1, "only what is looked at is opened");
    }
}
