//! `tethered`: becomes a program that ends when its parent does, even when that is killed.
//!
//! The kernel sends the parent-death signal (prctl(2), `PR_SET_PDEATHSIG`), which stays set across
//! execve(2). To set it between fork and exec of another program takes unsafe code; to set it in one's
//! own process and then become the other program does not. The file lock is held by a descriptor that
//! goes along, so it lasts exactly as long as the program.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::args::TetheredArgs;
use super::exit::Failure;

/// How long the lock's holder before us may take to end.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at the lock.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Becomes the program. To be called before there are threads.
///
/// # Errors
/// The lock is held, or the program cannot be started.
pub fn run(args: &TetheredArgs) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| {
        Failure::input(format!(
            "cannot ask to end with the parent process: {error}"
        ))
    })?;
    let parent = i32::try_from(args.parent).ok().and_then(Pid::from_raw);
    if getppid() != parent {
        // It ended before we asked.
        return Ok(());
    }
    let lock = lock(&args.lock)?;
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::input("there is no program to become"));
    };
    let error = Command::new(program).args(arguments).exec();
    drop(lock);
    Err(Failure::input(format!(
        "cannot start {}: {error}",
        program.display()
    )))
}

/// A locked descriptor without the close-on-exec flag.
fn lock(path: &std::path::Path) -> Result<rustix::fd::OwnedFd, Failure> {
    let at = |error: Errno| Failure::input(format!("cannot lock {}: {error}", path.display()));
    let flags = OFlags::CREATE | OFlags::RDWR;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(at)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(Errno::WOULDBLOCK) => {
                return Err(Failure::input(format!(
                    "{} is locked: another `prewarm up` uses this directory",
                    path.display()
                )));
            }
            Err(error) => return Err(at(error)),
        }
    }
}
