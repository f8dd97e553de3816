//! What the C library's heap is told before a worker begins.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The C library's setting (mallopt(3)), and its value: allocations of so many bytes and more are given
/// back to the system as soon as they are freed. Unless it is set, that bound rises with the buffers of
/// the first pull, and a worker keeps two hundred MB for good.
pub const RETURN_LARGE: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

/// Begins this program anew, as the same process, with the setting, unless it is there. The C library
/// reads it only at the start. Where that is not possible, the program goes on without.
pub fn return_large() {
    let (name, value) = RETURN_LARGE;
    if std::env::var_os(name).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_else(|| program.clone().into());
    // It returns only when it fails.
    let _ = Command::new(program)
        .arg0(own_name)
        .args(arguments)
        .env(name, value)
        .exec();
}
