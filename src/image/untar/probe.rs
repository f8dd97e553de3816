//! What a layer can hold, made once in small, so that a right that is missing is known before an image needs it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::attributes::proc_path;
use super::tree::{Dir, Tree};

/// What everything is made in.
const ROOM: &str = ".prewarm-probe";
/// A folder of somebody else that nobody may enter.
const FOLDER: &str = "folder";
const DEVICE: &str = "folder/device";
const FILE: &str = "folder/file";
/// With setuid, setgid and sticky bits.
const SPECIAL: Mode = Mode::from_raw_mode(0o7755);
/// `security.capability` of version 2 (linux/capability.h, `struct vfs_cap_data`): `CAP_CHOWN`, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Something that a layer can hold and this process may not make.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this process may not {action}, which takes {right}: {errno}")]
pub struct Lack {
    action: &'static str,
    right: &'static str,
    errno: Errno,
}

/// Finds out whether this process may make in `dir` all that a layer can hold, and the kernel has what is needed to do it
/// safely. Leaves nothing there.
///
/// # Errors
/// The first thing that it may not.
pub fn probe(dir: &Path) -> Result<(), Lack> {
    let safely = lacks("open folders safely", "openat2(2), of Linux 5.6");
    let tree = Tree::open(dir).map_err(lacks("open the directory", "access to it"))?;
    tree.open_plain(b"").map_err(safely)?;
    let writes = lacks("write", "access to the directory");
    rustix::fs::mkdirat(tree.root(), ROOM, Mode::RWXU).map_err(writes)?;
    let opened = rustix::fs::openat(
        tree.root(),
        ROOM,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let found = opened.map_err(writes).and_then(|fd| {
        let room = Dir {
            fd,
            path: Vec::new(),
        };
        let found = make_all(&room);
        clean(room.fd.as_fd());
        found
    });
    // What is left is the snapshot's, and goes with it.
    let _ = rustix::fs::unlinkat(tree.root(), ROOM, AtFlags::REMOVEDIR);
    found
}

fn lacks(action: &'static str, right: &'static str) -> impl Fn(Errno) -> Lack + Copy {
    move |errno| Lack {
        action,
        right,
        errno,
    }
}

/// Each step takes one right more. What was given away is then another user's, as with most files of most images.
fn make_all(room: &Dir) -> Result<(), Lack> {
    let at = room.fd.as_fd();
    let (user, group) = (Some(Uid::from_raw(1)), Some(Gid::from_raw(1)));
    let writes = lacks("write", "access to the directory");
    let owns = lacks("give files to other users", "CAP_CHOWN");
    rustix::fs::mkdirat(at, FOLDER, Mode::RWXU).map_err(writes)?;
    rustix::fs::chownat(at, FOLDER, user, group, AtFlags::empty()).map_err(owns)?;
    rustix::fs::chmodat(at, FOLDER, Mode::empty(), AtFlags::empty())
        .map_err(lacks("set modes of other users' files", "CAP_FOWNER"))?;
    let file =
        new_file(at).map_err(lacks("write into other users' folders", "CAP_DAC_OVERRIDE"))?;
    drop(file);
    rustix::fs::mknodat(
        at,
        DEVICE,
        FileType::CharacterDevice,
        Mode::empty(),
        rustix::fs::makedev(1, 3),
    )
    .map_err(lacks("make devices", "CAP_MKNOD"))?;
    rustix::fs::chownat(at, FILE, user, group, AtFlags::empty()).map_err(owns)?;
    rustix::fs::chmodat(at, FILE, SPECIAL, AtFlags::empty()).map_err(owns)?;
    // Without the right the kernel takes the bit away, and says nothing.
    let keeps = lacks("set the setgid bit of other groups' files", "CAP_FSETID");
    let stat = rustix::fs::statat(at, FILE, AtFlags::empty()).map_err(keeps)?;
    if Mode::from_raw_mode(stat.st_mode) != SPECIAL {
        return Err(keeps(Errno::PERM));
    }
    let set = |name: &str, key: &str, value: &[u8]| {
        let path = proc_path(room, name.as_bytes());
        match rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()) {
            // As a layer's own are left out where the file system has none.
            Err(Errno::NOTSUP) if key.starts_with("security.") => Ok(()),
            done => done,
        }
    };
    set(FILE, "security.capability", &CAPABILITY)
        .map_err(lacks("give files capabilities", "CAP_SETFCAP"))?;
    set(FOLDER, "trusted.overlay.opaque", b"y")
        .map_err(lacks("set trusted attributes", "CAP_SYS_ADMIN"))
}

fn new_file(room: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(room, FILE, flags, Mode::RUSR | Mode::WUSR)
}

fn clean(room: BorrowedFd<'_>) {
    for (name, flags) in [
        (FILE, AtFlags::empty()),
        (DEVICE, AtFlags::empty()),
        (FOLDER, AtFlags::REMOVEDIR),
    ] {
        // Not all of them were made.
        let _ = rustix::fs::unlinkat(room, name, flags);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_do_all_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // Without root it is told what it may not.
        let found = probe(dir.path());
        assert_eq!(
            found.is_ok(),
            rustix::process::geteuid().is_root(),
            "{found:?}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_nothing_can_be_written_that_is_what_is_said() {
        let lack = probe(Path::new("/proc")).unwrap_err();
        assert_eq!(
            lack.to_string().split(", which").next(),
            Some("this process may not write")
        );
        let lack = probe(Path::new("/proc/nothing-is-here")).unwrap_err();
        assert_eq!(lack.right, "access to it");
    }
}
