//! A pull in a process of its own: this program again, run for one of its tests, which does nothing unless it is told what
//! to pull.

use std::process::Command;

use prewarm::image::PullReport;
use prewarm::image::containerd::Containerd;

use super::node::{Node, pull, request, settings_at};

const SOCKET: &str = "PREWARM_TEST_PULL_SOCKET";
const CERTS: &str = "PREWARM_TEST_PULL_CERTS";
const IMAGE: &str = "PREWARM_TEST_PULL_IMAGE";

/// What runs `test` with the node's containerd and an image to pull.
pub(super) fn process(test: &str, node: &Node, image: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(SOCKET, node.daemon.socket())
        .env(CERTS, node.daemon.certs_dir())
        .env(IMAGE, image);
    command
}

/// Whether this process was made to pull.
pub(super) fn is_asked() -> bool {
    std::env::var_os(IMAGE).is_some()
}

/// Pulls what this process was told to.
pub(super) async fn pull_asked() -> PullReport {
    let told = |name| std::env::var(name).unwrap();
    let runtime = Containerd::connect(settings_at(told(SOCKET).into(), told(CERTS).into()));
    pull(&runtime.unwrap(), &request(&told(IMAGE)))
        .await
        .unwrap()
}
