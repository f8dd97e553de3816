//! What systemd needs beside the units. That the units' own sandboxes let the roles work, tests/e2e/units.rs shows.

use std::fs;
use std::process::Command;

use super::{deploy, output, parts};

const UNITS: [&str; 3] = ["prewarm-dispatcher", "prewarm-webhook", "prewarm-worker"];

fn unit(name: &str) -> String {
    fs::read_to_string(deploy().join(format!("systemd/{name}.service"))).unwrap()
}

#[test]
fn the_groups_of_the_units_are_made() {
    let root = parts::temp_dir();
    fs::create_dir(root.path().join("etc")).unwrap();
    let mut sysusers = Command::new("systemd-sysusers");
    sysusers.arg("--root").arg(root.path());
    output(sysusers.arg(deploy().join("systemd/prewarm.sysusers.conf")));
    let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
    let mut needed = 0;
    for name in UNITS {
        for line in unit(name).lines() {
            if let Some(group) = line.strip_prefix("SupplementaryGroups=") {
                needed += 1;
                assert!(groups.contains(&format!("{group}:")), "{name}: {groups:?}");
            }
        }
    }
    assert_eq!(needed, 2);
}

/// No test can make systemd's filter of devices without systemd; so none may be there that a layer's devices would meet.
#[test]
fn the_worker_may_make_every_device() {
    let unit = unit("prewarm-worker");
    for setting in [
        "PrivateDevices",
        "ProtectClock",
        "DeviceAllow",
        "DevicePolicy",
    ] {
        let is_set = unit
            .lines()
            .any(|line| line.starts_with(&format!("{setting}=")));
        assert!(
            !is_set,
            "{setting} brings a list of devices, and mknod(2) fails for all others"
        );
    }
}

/// The runbook's steps, run in a folder that stands for a host's root. What needs a running systemd is left out.
#[test]
fn the_runbooks_steps_install_what_the_units_name() {
    let runbook = fs::read_to_string(deploy().join("RUNBOOK.md")).unwrap();
    let (_, section) = runbook
        .split_once("\n## Installing with systemd\n")
        .unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let root = parts::temp_dir();
    let at = root.path().display().to_string();
    let steps = section.lines().filter_map(|line| line.strip_prefix("    "));
    let steps: Vec<String> = steps
        .filter(|line| !line.starts_with("systemctl "))
        .map(|line| {
            let line = line.replace("target/release/prewarm", "/bin/true");
            let line = line.replace("systemd-sysusers", &format!("systemd-sysusers --root={at}"));
            line.replace(" /usr/", &format!(" {at}/usr/"))
                .replace(" /etc/", &format!(" {at}/etc/"))
        })
        .collect();
    assert!(steps.len() > 4, "{steps:?}");
    fs::create_dir_all(root.path().join("etc")).unwrap();
    // The files that a user has written.
    let own = parts::temp_dir();
    for name in ["dispatcher", "webhook", "sources", "worker"] {
        fs::write(own.path().join(format!("{name}.yaml")), "").unwrap();
    }
    std::os::unix::fs::symlink(deploy(), own.path().join("deploy")).unwrap();
    let script = steps.join("\n");
    // The group is the folder's and not this machine's.
    let script = script.replace("--group=prewarm ", "");
    let mut shell = Command::new("sh");
    output(shell.args(["-eu", "-c", &script]).current_dir(own.path()));
    for name in UNITS {
        let unit = unit(name);
        let call = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let files = call
            .unwrap()
            .split(' ')
            .filter(|word| word.starts_with('/'));
        for file in files {
            assert!(root.path().join(&file[1..]).exists(), "{name}: {file}");
        }
        let installed = root
            .path()
            .join(format!("etc/systemd/system/{name}.service"));
        assert!(installed.exists(), "{name}");
    }
    let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
    assert!(groups.contains("prewarm:"), "{groups}");
}
