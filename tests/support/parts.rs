//! Where the programs fetched by `make parts` are, and where tests may put their files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Kernel's magic number of overlayfs (`linux/magic.h`), which cannot be the upper layer of another overlay.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// The folder of the parts, as `deploy/local/parts` chooses it.
pub fn dir() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("PREWARM_PARTS")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("prewarm/parts")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/prewarm/parts")))
        .expect("one of PREWARM_PARTS, XDG_CACHE_HOME and HOME must be set to find the servers that tests run")
}

/// The path of `program` of the part `part`, such as `nats-server` of `nats-2.15`.
///
/// # Panics
/// When it is not there: a missing part fails a test, it never skips it.
pub fn program(part: &str, program: &str) -> PathBuf {
    let path = dir().join(part).join("bin").join(program);
    assert!(
        path.exists(),
        "{} is missing: run `make parts` first (it fetches the servers that tests run)",
        path.display()
    );
    path
}

/// The Python interpreter that has the packages of `deploy/local/python-env`.
///
/// # Panics
/// When it is not there.
pub fn python() -> PathBuf {
    let path = dir().join("python/bin/python3");
    assert!(
        path.exists(),
        "{} is missing: run `make python-env` first",
        path.display()
    );
    path
}

/// A new temporary folder with a short path: a Unix socket's path has 108 bytes (unix(7)).
///
/// It is in `PREWARM_TEST_DIR` if set; else in the first of the usual folders whose file system can hold overlayfs layers.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("pw-")
        .tempdir_in(base_dir())
        .expect("a temporary folder for the test")
}

fn base_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PREWARM_TEST_DIR") {
        return dir.into();
    }
    let usual = [
        std::env::temp_dir(),
        "/tmp".into(),
        "/var/tmp".into(),
        "/dev/shm".into(),
    ];
    usual.into_iter().find(|dir| holds_layers(dir)).expect(
        "no usual temporary folder can hold overlayfs layers (is this a container?); set PREWARM_TEST_DIR to a short path on ext4, xfs or tmpfs",
    )
}

fn holds_layers(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type != OVERLAYFS_MAGIC)
}
