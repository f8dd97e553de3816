//! Entries into a directory that is to be a layer of an overlay, with the effect that containerd's own
//! unpacking has (`pkg/archive/tar.go`, `tar_unix.go`, `tar_opts_linux.go`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir as Entries, FileType, Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::attributes::{gid, own, proc_path, times, uid, xattrs};
use super::error::UntarError;
use super::reader::{Entry, Kind, Sink};
use super::tree::{Dir, Tree, clean, join, split};
use super::{Implicit, Level, Limits};

const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";

/// Takes entries and makes them files.
pub(super) struct Extractor {
    tree: Tree,
    level: Level,
    limits: Limits,
    entries: u64,
    bytes: u64,
    current: Option<Open>,
    /// Times of directories, set last because whatever is made in one changes them.
    dirs: Vec<(Vec<u8>, Timestamps)>,
    implicit: Vec<Implicit>,
    /// Where in `implicit` a path is.
    implicit_at: HashMap<Vec<u8>, usize>,
    /// On the lowest level: the paths that had an entry, which an opaque directory keeps.
    unpacked: HashSet<Vec<u8>>,
}

/// A file that is being written.
struct Open {
    file: File,
    /// The offset that data was written or holes were left up to.
    position: u64,
    /// Whether the position is ahead of the file's own.
    ahead: bool,
    entry: Entry,
    dir: Rc<Dir>,
    name: Vec<u8>,
}

impl Extractor {
    pub(super) fn new(tree: Tree, level: Level, limits: Limits) -> Self {
        Self {
            tree,
            level,
            limits,
            entries: 0,
            bytes: 0,
            current: None,
            dirs: Vec::new(),
            implicit: Vec::new(),
            implicit_at: HashMap::new(),
            unpacked: HashSet::new(),
        }
    }

    /// Does what has to be done last, and says which directories no entry described.
    pub(super) fn finish(self) -> Result<Vec<Implicit>, UntarError> {
        for (path, times) in &self.dirs {
            let (parent, name) = split(path);
            let set = || -> Result<(), Errno> {
                let parent = self.tree.open_plain(parent)?;
                let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                // Something else may have come in its place.
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    rustix::fs::utimensat(&parent, name, times, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                Ok(())
            };
            match set() {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(UntarError::io(path, "set the directory's times", errno)),
            }
        }
        Ok(self.implicit)
    }

    fn count(&mut self, bytes: u64) -> Result<(), UntarError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UntarError::Limit {
                what: "has entries",
                limit: self.limits.entries,
            });
        }
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(UntarError::Limit {
                what: "has bytes of files",
                limit: self.limits.bytes,
            });
        }
        Ok(())
    }

    /// The directory of an entry, made if it is not there.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Dir>, UntarError> {
        let (implicit, at) = (&mut self.implicit, &mut self.implicit_at);
        let made = |path: &[u8]| {
            at.insert(path.to_vec(), implicit.len());
            implicit.push(Implicit {
                path: path.to_vec(),
                described: false,
            });
        };
        self.tree.dir(path, made).map_err(|errno| match errno {
            Errno::NOTDIR => UntarError::entry(path, "is not a directory, and is to hold files"),
            errno => UntarError::io(path, "make or open the directory", errno),
        })
    }

    /// Hides what the layers below have. Says whether the entry was such a mark.
    fn whiteout(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<bool, UntarError> {
        if name == OPAQUE {
            match self.level {
                Level::Upper => {
                    let path = proc_path(dir, b"");
                    rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                        .map_err(|errno| UntarError::io(&dir.path, "make it opaque", errno))?;
                }
                Level::Lowest => self.clear(dir)?,
            }
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UntarError::entry(&entry.name, "hides no name"));
        }
        match self.level {
            Level::Lowest => self.remove(dir, hidden)?,
            Level::Upper => {
                let path = join(&dir.path, hidden);
                rustix::fs::mknodat(&dir.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|errno| match errno {
                    Errno::EXIST => {
                        UntarError::entry(&path, "is in the layer, which hides it as well")
                    }
                    errno => UntarError::io(&path, "make the whiteout", errno),
                })?;
                own(dir, hidden, entry)?;
            }
        }
        Ok(true)
    }

    /// Removes what a directory has without an entry of its own in this archive.
    fn clear(&mut self, dir: &Dir) -> Result<(), UntarError> {
        let failed = |errno| UntarError::io(&dir.path, "clear the directory", errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = rustix::fs::openat(&dir.fd, c".", flags, Mode::empty()).map_err(failed)?;
        for child in Entries::new(list).map_err(failed)? {
            let child = child.map_err(failed)?;
            let name = child.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = join(&dir.path, name);
            if !self.unpacked.contains(&path) {
                self.remove(dir, name)?;
            } else if child.file_type() == FileType::Directory {
                let fd = self.tree.open_plain(&path).map_err(failed)?;
                self.clear(&Dir { fd, path })?;
            }
        }
        Ok(())
    }

    /// Removes a name and all below it, if it is there.
    fn remove(&mut self, dir: &Dir, name: &[u8]) -> Result<(), UntarError> {
        self.tree.forget();
        let failed = |errno| UntarError::io(&join(&dir.path, name), "remove it", errno);
        match rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Follows no links, as of Rust 1.58.1 (CVE-2022-21658).
            Err(Errno::ISDIR) => std::fs::remove_dir_all(proc_path(dir, name))
                .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Makes something by a name, in the place of whatever has it.
    fn make<T>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        action: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UntarError> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.remove(dir, name)?;
                make()
            }
            made => made,
        };
        made.map_err(|errno| UntarError::io(&join(&dir.path, name), action, errno))
    }

    fn file(&mut self, dir: Rc<Dir>, name: Vec<u8>, entry: Entry) -> Result<(), UntarError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = self.make(&dir, &name, "create the file", || {
            rustix::fs::openat(&dir.fd, &*name, flags, mode)
        })?;
        self.current = Some(Open {
            file: File::from(fd),
            position: 0,
            ahead: false,
            entry,
            dir,
            name,
        });
        Ok(())
    }

    fn directory(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
        let path = join(&dir.path, name);
        let make = || rustix::fs::mkdirat(&dir.fd, name, Mode::from_raw_mode(0o700));
        let made = match make() {
            // Two directories become one.
            Err(Errno::EXIST) if self.is_directory(dir, name)? => Ok(()),
            Err(Errno::EXIST) => {
                self.remove(dir, name)?;
                make()
            }
            made => made,
        };
        made.map_err(|errno| UntarError::io(&path, "make the directory", errno))?;
        self.describe(dir, name, entry, false)?;
        if let Some(at) = self.implicit_at.get(&path) {
            self.implicit[*at].described = true;
        }
        self.dirs.push((path, times(entry)));
        Ok(())
    }

    fn is_directory(&self, dir: &Dir, name: &[u8]) -> Result<bool, UntarError> {
        let stat = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| UntarError::io(name, "look at it", errno))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn device(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
        let number = |number: i64| u32::try_from(number).ok();
        let device = number(entry.device.0).zip(number(entry.device.1));
        let (major, minor) =
            device.ok_or_else(|| UntarError::entry(&entry.name, "has no device number"))?;
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let mode = Mode::from_raw_mode(entry.mode);
        self.make(dir, name, "make the device", || {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(&dir.fd, name, kind, mode, device)
        })?;
        self.describe(dir, name, entry, false)
    }

    fn symlink(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
        self.make(dir, name, "make the symbolic link", || {
            rustix::fs::symlinkat(&*entry.link, &dir.fd, name)
        })?;
        self.describe(dir, name, entry, true)
    }

    fn hard_link(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), UntarError> {
        let failed = |errno| {
            let problem = format!(
                "cannot be linked to {} of the same layer: {errno}",
                entry.link.escape_ascii()
            );
            UntarError::entry(&entry.name, problem)
        };
        let link = clean(&entry.link);
        let (parent, base) = split(&link);
        let parent = self.tree.resolve(parent).map_err(failed)?;
        let target = join(&parent, base);
        if target == join(&dir.path, name) {
            // containerd removes the name first, and then finds nothing to link to.
            return Err(failed(Errno::NOENT));
        }
        let parent = self.tree.open_plain(&parent).map_err(failed)?;
        let stat = rustix::fs::statat(&parent, base, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let link = || rustix::fs::linkat(&parent, base, &dir.fd, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                self.remove(dir, name)?;
                link().map_err(failed)?;
            }
            linked => linked.map_err(failed)?,
        }
        self.describe(dir, name, entry, is_link)
    }

    /// Owner, extended attributes, mode and times, in this order: changing the owner takes away
    /// setuid and capabilities.
    fn describe(
        &self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        is_link: bool,
    ) -> Result<(), UntarError> {
        let failed = |action| {
            let path = join(&dir.path, name);
            move |errno| UntarError::io(&path, action, errno)
        };
        own(dir, name, entry)?;
        xattrs(dir, name, entry)?;
        if !is_link {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(&dir.fd, name, mode, AtFlags::empty())
                .map_err(failed("set the mode"))?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&dir.fd, name, &times(entry), flags).map_err(failed("set the times"))
    }
}

impl Sink for Extractor {
    fn entry(&mut self, entry: Entry) -> Result<(), UntarError> {
        let is_file = entry.kind == Kind::File;
        self.count(if is_file { entry.size } else { 0 })?;
        let path = clean(&entry.name);
        let (parent, name) = split(&path);
        // The root is containerd's to make.
        if name.is_empty() {
            return Ok(());
        }
        let dir = self.parent(parent)?;
        if self.whiteout(&dir, name, &entry)? {
            return Ok(());
        }
        if self.level == Level::Lowest {
            self.unpacked.insert(join(&dir.path, name));
        }
        match entry.kind {
            Kind::File => self.file(dir, name.to_vec(), entry),
            Kind::Dir => self.directory(&dir, name, &entry),
            Kind::Symlink => self.symlink(&dir, name, &entry),
            Kind::HardLink => self.hard_link(&dir, name, &entry),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.device(&dir, name, &entry),
            Kind::Global => self.remove(&dir, name),
            Kind::Other(kind) => Err(UntarError::entry(
                &entry.name,
                format!(
                    "is of type '{}', which containerd does not unpack either",
                    kind.escape_ascii()
                ),
            )),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), UntarError> {
        let Some(open) = &mut self.current else {
            return Ok(());
        };
        let written = open.write(bytes);
        written.map_err(|error| open.failed("write the file", &error))
    }

    fn hole(&mut self, length: u64) -> Result<(), UntarError> {
        if let Some(open) = &mut self.current {
            open.position += length;
            open.ahead = true;
        }
        Ok(())
    }

    fn end_of_entry(&mut self) -> Result<(), UntarError> {
        let Some(open) = self.current.take() else {
            return Ok(());
        };
        open.end()
    }
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.ahead {
            self.file.seek(SeekFrom::Start(self.position))?;
            self.ahead = false;
        }
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, action: &'static str, error: &std::io::Error) -> UntarError {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        UntarError::io(&join(&self.dir.path, &self.name), action, errno)
    }

    /// As `describe`, by the open file.
    fn end(self) -> Result<(), UntarError> {
        let Self { file, entry, .. } = &self;
        if self.ahead {
            file.set_len(self.position)
                .map_err(|error| self.failed("set the size", &error))?;
        }
        let failed = |action| {
            let path = join(&self.dir.path, &self.name);
            move |errno| UntarError::io(&path, action, errno)
        };
        rustix::fs::fchown(file, uid(entry.uid), gid(entry.gid))
            .map_err(failed("set the owner"))?;
        xattrs(&self.dir, &self.name, entry)?;
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::fchmod(file, mode).map_err(failed("set the mode"))?;
        rustix::fs::futimens(file, &times(entry)).map_err(failed("set the times"))
    }
}
