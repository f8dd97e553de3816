//! How many files and connections a worker may have open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows this process as many as the system lets it allow itself. The limit at the start is 1024 as a rule, for the sake
/// of programs that use select(2); pulls of several images at once may need more.
pub fn allow_all() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    // Without it less fits at once.
    let _ = setrlimit(Resource::Nofile, all);
}
