//! A network of its own for every participant: a namespace each on one bridge, where any two can be kept apart.
//!
//! The program runs itself again in namespaces for mounts, processes and the network, so that nothing of a run is seen
//! outside or is left when it ends, whatever ends it.

use std::fs;
use std::process::{Command, ExitCode};

use crate::support::parts;

/// Tells the inner program that it is the inner one.
const INSIDE: &str = "PREWARM_CHAOS_INSIDE";
/// The bridge, and the address on it of the program itself, where the registry is.
const BRIDGE: &str = "chaos";
/// The registry's side of the network, in the words of partitions.
pub(crate) const REGISTRY: &str = "registry";

/// Runs this program in namespaces of its own and says how it ended; `None` if it is there already.
pub(crate) fn enter() -> Option<ExitCode> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "chaos needs root, for containerd and network namespaces"
    );
    let dir = parts::temp_dir();
    let ended = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
        ])
        .args(["--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .env("PREWARM_TEST_DIR", dir.path())
        .status()
        .expect("unshare (of util-linux) to start");
    if !ended.success() {
        println!("logs are in {}", dir.keep().display());
    }
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Some(ExitCode::from(code.unwrap_or(1)))
}

/// The network inside.
pub(crate) struct World {
    members: Vec<String>,
}

impl World {
    /// Makes the bridge; only inside.
    pub(crate) fn new() -> Self {
        // ip(8) keeps the names of namespaces in this folder, which is shared with everything outside.
        fs::create_dir_all("/run/netns").expect("/run/netns");
        run("mount", &["-t", "tmpfs", "netns", "/run/netns"]);
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        let here = format!("{}/24", address(0));
        run("ip", &["addr", "add", &here, "dev", BRIDGE]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        Self {
            members: vec![REGISTRY.to_owned()],
        }
    }

    /// Adds a participant and returns its address.
    pub(crate) fn join(&mut self, name: &str) -> String {
        let number = self.members.len();
        let (at_bridge, own) = (format!("chaos{number}"), format!("{}/24", address(number)));
        run("ip", &["netns", "add", name]);
        run(
            "ip",
            &[
                "link", "add", &at_bridge, "type", "veth", "peer", "name", "eth0", "netns", name,
            ],
        );
        run("ip", &["link", "set", &at_bridge, "master", BRIDGE, "up"]);
        for args in [
            ["link", "set", "lo", "up"].as_slice(),
            &["addr", "add", &own, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            run("ip", &[&["-n", name], args].concat());
        }
        self.members.push(name.to_owned());
        address(number)
    }

    /// The registry's address.
    pub(crate) fn here() -> String {
        address(0)
    }

    /// Lets nothing pass between two: what one sends to the other goes to a hardware address that nobody has, and so is
    /// lost without a word, as on a broken network.
    pub(crate) fn part(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            let to = address(self.number(to));
            let args = [
                "neigh",
                "replace",
                &to,
                "lladdr",
                "02:00:00:00:00:fe",
                "nud",
                "permanent",
            ];
            neighbour(from, &args);
        }
    }

    /// Lets everything pass between them again.
    pub(crate) fn join_again(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            let to = address(self.number(to));
            neighbour(from, &["neigh", "del", &to]);
        }
    }

    fn number(&self, name: &str) -> usize {
        let number = self.members.iter().position(|member| member == name);
        number.unwrap_or_else(|| panic!("nobody is called {name}"))
    }
}

fn neighbour(member: &str, args: &[&str]) {
    if member == REGISTRY {
        run("ip", &[args, &["dev", BRIDGE]].concat());
    } else {
        run("ip", &[&["-n", member], args, &["dev", "eth0"]].concat());
    }
}

fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// `command` in the network of a participant, as the same process.
pub(crate) fn in_network(member: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{member}"))
        .arg("--")
        .arg(program);
    command
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
