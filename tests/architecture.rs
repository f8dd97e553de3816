//! Holds the code to the table of rooms in ARCHITECTURE.md, and pure code to purity.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use, beside itself.
const ROOMS: [(&str, &[&str]); 11] = [
    ("api", &["bus", "wire", "domain"]),
    ("domain", &[]),
    ("wire", &["domain"]),
    ("telemetry", &["domain"]),
    ("bus", &["wire", "domain"]),
    ("image", &["domain"]),
    ("kubernetes", &["domain"]),
    ("work", &["bus", "image", "telemetry", "wire", "domain"]),
    ("simulate", &["work", "bus", "image", "wire", "domain"]),
    ("dispatch", &["bus", "image", "telemetry", "wire", "domain"]),
    ("webhook", &["bus", "telemetry", "wire", "domain"]),
];

/// Rooms and files that decide: no clock, no randomness, no I/O.
const PURE: [&str; 31] = [
    "domain",
    "wire",
    "dispatch/census.rs",
    "dispatch/failed.rs",
    "dispatch/fleet.rs",
    "dispatch/input.rs",
    "dispatch/job.rs",
    "dispatch/lease.rs",
    "dispatch/nodes.rs",
    "dispatch/pulls.rs",
    "dispatch/pushes.rs",
    "dispatch/rebuild.rs",
    "dispatch/record.rs",
    "dispatch/requests.rs",
    "dispatch/rounds.rs",
    "dispatch/slots.rs",
    "dispatch/state.rs",
    "dispatch/timers.rs",
    "image/containerd/engine.rs",
    "image/containerd/pinned.rs",
    "image/cri/failure.rs",
    "image/cri/snapshotters.rs",
    "kubernetes/standing.rs",
    "simulate/figures.rs",
    "simulate/plan.rs",
    "webhook/admit.rs",
    "webhook/auth.rs",
    "webhook/oidc.rs",
    "webhook/source",
    "work/pins.rs",
    "work/state",
];

fn sources(room: &Path) -> Vec<PathBuf> {
    if room.is_file() {
        return vec![room.to_owned()];
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(room).unwrap_or_else(|error| panic!("{}: {error}", room.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The code of a file without comments and without what follows its test module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .to_owned();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_test(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str().to_string_lossy().contains("tests"))
}

#[test]
fn a_room_uses_only_the_rooms_below_it() {
    let mut broken = BTreeMap::new();
    for (room, allowed) in ROOMS {
        for path in sources(&src().join(room))
            .into_iter()
            .filter(|path| !is_test(path))
        {
            for part in code(&path).split("crate::").skip(1) {
                let used: String = part
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                let known = ROOMS.iter().any(|(known, _)| *known == used) || used == "cli";
                if known && used != room && !allowed.contains(&used.as_str()) {
                    broken.insert(path.clone(), used);
                }
            }
        }
    }
    assert!(broken.is_empty(), "against ARCHITECTURE.md: {broken:#?}");
}

#[test]
fn what_decides_reads_no_clock_draws_no_number_and_does_no_io() {
    let forbidden = [
        "SystemTime::now",
        "Instant::now",
        "tokio::",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "rand::rng(",
        "thread_rng",
    ];
    let mut broken = Vec::new();
    for room in PURE {
        for path in sources(&src().join(room))
            .into_iter()
            .filter(|path| !is_test(path))
        {
            let code = code(&path);
            broken.extend(
                forbidden
                    .iter()
                    .filter(|what| code.contains(**what))
                    .map(|what| (path.clone(), what)),
            );
        }
    }
    assert!(broken.is_empty(), "pure code does I/O: {broken:#?}");
}

#[test]
fn every_file_is_short_enough_to_be_one_idea() {
    let long: Vec<_> = sources(&src())
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > 500)
        .collect();
    assert!(long.is_empty(), "over 500 lines: {long:#?}");
}
