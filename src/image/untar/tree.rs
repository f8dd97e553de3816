//! Directories below a root, reached so that no path of an archive can lead outside.
//!
//! A path is resolved here, component by component, as if the root were `/`; what comes out has no
//! symbolic link in it, and the kernel is told to follow none (openat2(2), `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`). What happens then happens by a single name in an open directory.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Most symbolic links in one path, as containerd has it (continuity, `fs/path.go`).
const MAX_LINKS: usize = 255;
/// Most directories that are kept open.
const MAX_OPEN: u64 = 256;
/// Of the files that a process may have open, the part that one archive's directories may be: sixteen layers at once take
/// half. It is often 1024, where nobody says otherwise.
const PART_OF_LIMIT: u64 = 32;
/// Mode of directories that no header describes.
const IMPLICIT_MODE: Mode = Mode::from_raw_mode(0o755);

/// An open directory and its path below the root, free of symbolic links; the root's is empty.
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    pub(super) path: Vec<u8>,
}

/// Everything below a directory.
pub(super) struct Tree {
    root: Rc<Dir>,
    /// Open directories by the path they were asked by.
    open: HashMap<Vec<u8>, Rc<Dir>>,
    most_open: usize,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        Ok(Self {
            root: Rc::new(Dir {
                fd,
                path: Vec::new(),
            }),
            open: HashMap::new(),
            most_open: most_open(),
        })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.fd.as_fd()
    }

    /// The directory at a path whose links count, with those that are missing made, and told of.
    pub(super) fn dir(&mut self, path: &[u8], made: impl FnMut(&[u8])) -> Result<Rc<Dir>, Errno> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(dir.clone());
        }
        let dir = Rc::new(match self.open_plain(path) {
            Ok(fd) => Dir {
                fd,
                path: path.to_vec(),
            },
            Err(_) => {
                let path = self.resolve(path)?;
                let fd = self.make(&path, made)?;
                Dir { fd, path }
            }
        });
        if self.open.len() >= self.most_open {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), dir.clone());
        Ok(dir)
    }

    /// Forgets what paths mean: a directory or link is about to go.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    /// Opens a directory at a path without links in it.
    pub(super) fn open_plain(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.openat2(path, OFlags::DIRECTORY)
    }

    fn openat2(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        loop {
            match rustix::fs::openat2(self.root(), path, flags, Mode::empty(), resolve) {
                // A rename somewhere on the system got in between (openat2(2), EAGAIN).
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
    }

    /// Follows all links of a path, within the root. What is not there counts as no link.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let backwards = |path: &[u8]| -> Vec<Vec<u8>> {
            let parts = path.rsplit(|byte| *byte == b'/');
            parts.map(<[u8]>::to_vec).collect()
        };
        let mut pending = backwards(path);
        let mut resolved: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let parent = split(&resolved).0.len();
                    resolved.truncate(parent);
                    continue;
                }
                _ => {}
            }
            let candidate = join(&resolved, &part);
            match self.link_at(&candidate)? {
                None => resolved = candidate,
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    pending.extend(backwards(&target));
                }
            }
        }
        Ok(resolved)
    }

    /// Where the link at a path points to; `None` if it is none, or nothing.
    fn link_at(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let fd = match self.openat2(path, OFlags::NOFOLLOW) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mode = rustix::fs::fstat(&fd)?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?;
        Ok(Some(target.into_bytes()))
    }

    /// Makes the directories of a path without links that are missing.
    fn make(&self, path: &[u8], mut made: impl FnMut(&[u8])) -> Result<OwnedFd, Errno> {
        match self.open_plain(path) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let (parent, name) = split(path);
        let parent = self.make(parent, &mut made as &mut dyn FnMut(&[u8]))?;
        rustix::fs::mkdirat(&parent, name, IMPLICIT_MODE)?;
        rustix::fs::chmodat(&parent, name, IMPLICIT_MODE, AtFlags::empty())?;
        made(path);
        self.open_plain(path)
    }
}

fn most_open() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((limit / PART_OF_LIMIT).clamp(1, MAX_OPEN)).unwrap_or(1)
}

/// The path without empty parts, `.` and, lexically, `..`, as if it began at the root.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A path's directory and last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}
