//! How long a pull takes, ours and others', into the same containerd from the same registry:
//! `cargo bench --bench pull` (root; `make parts` before). Arguments after `--` choose cases: every one of them must be
//! a word of the case's name, such as `2.1` or `one-layer`, or several with commas between; `-n 9` sets the number of
//! rounds. The case `worker` measures the memory of a worker instead.
//!
//! The contenders take turns, so that what else goes on hits all alike; the first round is not counted. Ours runs in a
//! process of its own, with the settings of a worker. CPU time is that of the client and of containerd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

mod content;
mod floor;
mod ours;
mod shop;
#[path = "../../tests/support/mod.rs"]
mod support;
mod worker;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use support::containerd::{Containerd, ContainerdVersion};
use support::images::Image;

/// Rounds that count, unless the arguments say.
const ROUNDS: usize = 5;
/// Ticks of a second in /proc/PID/stat (USER_HZ).
const TICKS: f64 = 100.0;
/// The images; of the last three there is no case with limited connections.
const IMAGES: [&str; 5] = [
    "ten-layers",
    "one-layer",
    "forty-small",
    "ten-layers-zstd",
    "one-layer-zstd",
];

/// Who pulls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Contender {
    Ours,
    Ctr,
    Cri,
    /// CRI of a containerd that is set up to pull as fast as it can: igzip or unpigz on its PATH, ten downloads at once.
    Tuned,
    /// No pull, but what every pull has to do.
    Floor,
}

const CONTENDERS: [Contender; 5] = [
    Contender::Ours,
    Contender::Ctr,
    Contender::Cri,
    Contender::Tuned,
    Contender::Floor,
];

/// What one pull took.
#[derive(Default)]
struct Taken {
    wall: f64,
    cpu: f64,
    /// What the child has to say of itself.
    said: String,
}

/// One pull; `layers` is where the floor finds those of the image.
async fn pull(contender: Contender, daemon: &mut Containerd, image: &str, layers: &Path) -> Taken {
    let before = cpu(daemon.process().pid()) + cpu_of_children();
    let started = Instant::now();
    let mut said = String::new();
    match contender {
        Contender::Ours => {
            let (socket, certs) = (daemon.socket(), daemon.certs_dir());
            let args = [
                "pull-here".as_ref(),
                socket.as_path(),
                &certs,
                image.as_ref(),
            ];
            said = child(&args).await;
        }
        Contender::Floor => drop(child(&["unpack-here".as_ref(), layers]).await),
        Contender::Ctr => {
            let certs = daemon.certs_dir();
            let certs = certs.to_str().unwrap();
            daemon
                .ctr(&["images", "pull", "--hosts-dir", certs, image])
                .await;
        }
        Contender::Cri | Contender::Tuned => {
            daemon.cri().await.pull_image(image).await.unwrap();
        }
    }
    Taken {
        wall: started.elapsed().as_secs_f64(),
        cpu: cpu(daemon.process().pid()) + cpu_of_children() - before,
        said,
    }
}

/// Runs this program with other arguments, and says what it printed.
async fn child(args: &[&Path]) -> String {
    // As a worker sets it for itself.
    let (name, value) = prewarm::cli::heap::RETURN_LARGE;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(args).env(name, value).output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// CPU seconds of a process with its threads (proc_pid_stat(5), fields 14 and 15).
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    fields(&stat, 14)
}

/// CPU seconds of children that have ended (fields 16 and 17).
fn cpu_of_children() -> f64 {
    fields(&std::fs::read_to_string("/proc/self/stat").unwrap(), 16)
}

fn fields(stat: &str, first: usize) -> f64 {
    // The second field, in parentheses, may have spaces.
    let rest = stat.rsplit_once(") ").unwrap().1;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
    (ticks(first) + ticks(first + 1)) / TICKS
}

async fn forget(daemon: &Containerd) {
    let names = daemon.ctr(&["images", "list", "--quiet"]).await;
    let names: Vec<&str> = names.lines().collect();
    let mut args = vec!["images", "rm", "--sync"];
    args.extend(&names);
    if !names.is_empty() {
        daemon.ctr(&args).await;
    }
}

/// One case: which image, by its name, from which registry into which containerd.
struct Case {
    name: String,
    image: &'static str,
    limited: bool,
    version: ContainerdVersion,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for image in IMAGES {
            for limited in [false, true] {
                for version in ContainerdVersion::ALL {
                    let registry = if limited { "limited" } else { "fast" };
                    let number = match version {
                        ContainerdVersion::V1_6 => "1.6",
                        ContainerdVersion::V1_7 => "1.7",
                        ContainerdVersion::V2_1 => "2.1",
                    };
                    let has_case = !limited || IMAGES[..2].contains(&image);
                    if has_case {
                        let name = format!("{image} {registry} {number}");
                        all.push(Self {
                            name,
                            image,
                            limited,
                            version,
                        });
                    }
                }
            }
        }
        all
    }

    async fn run(&self, image: &Image, address: &str, rounds: usize) {
        let mut daemon = Containerd::start(self.version).await;
        let mut tuned = Containerd::start_tuned(self.version).await;
        daemon.allow_registry(address);
        tuned.allow_registry(address);
        let layers = daemon.scratch().join("layers");
        floor::lay_out(image, &layers);
        let reference = format!("{address}/{}:1", self.image);
        let mut seen: BTreeMap<Contender, Vec<Taken>> = BTreeMap::new();
        for round in 0..=rounds {
            for contender in CONTENDERS {
                let daemon = match contender {
                    Contender::Tuned => &mut tuned,
                    _ => &mut daemon,
                };
                let taken = pull(contender, daemon, &reference, &layers).await;
                if round > 0 {
                    seen.entry(contender).or_default().push(taken);
                }
                forget(daemon).await;
                let _ = std::fs::remove_dir_all(floor::unpacked(&layers));
            }
        }
        self.print(&seen);
    }

    fn print(&self, seen: &BTreeMap<Contender, Vec<Taken>>) {
        let figures = |contender| {
            let taken: &Vec<Taken> = &seen[&contender];
            let sorted = |figure: fn(&Taken) -> f64| {
                let mut figures: Vec<f64> = taken.iter().map(figure).collect();
                figures.sort_by(f64::total_cmp);
                figures
            };
            (sorted(|taken| taken.wall), sorted(|taken| taken.cpu))
        };
        let median = |figures: &[f64]| figures[figures.len() / 2];
        let (wall, cpu) = figures(Contender::Ours);
        let ours = (median(&wall), median(&cpu));
        let said = seen[&Contender::Ours]
            .last()
            .map(|taken| taken.said.as_str());
        println!(
            "\n{} (n = {}; {})",
            self.name,
            wall.len(),
            said.unwrap_or_default()
        );
        for contender in CONTENDERS {
            let (walls, cpus) = figures(contender);
            let (wall, cpu) = (median(&walls), median(&cpus));
            println!(
                "  {contender:5?} wall {wall:6.2} s ({:.2} to {:.2})  cpu {cpu:6.2} s   ours/this: wall {:.2} cpu {:.2}",
                walls[0],
                walls[walls.len() - 1],
                ours.0 / wall,
                ours.1 / cpu
            );
        }
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("pull-here") => return ours::pull_here(&args[1..]).await,
        Some("unpack-here") => return floor::unpack_here(&args[1..]),
        _ => {}
    }
    let mut rounds = ROUNDS;
    let mut filters = Vec::new();
    let mut args = args.into_iter().filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-n" => rounds = args.next().and_then(|n| n.parse().ok()).expect("-n NUMBER"),
            _ => filters.push(arg),
        }
    }
    let chosen = |case: &str| {
        let has = |word: &str| case.split(' ').any(|part| part == word);
        filters.iter().all(|filter| filter.split(',').any(has))
    };
    let cases: Vec<Case> = Case::all()
        .into_iter()
        .filter(|case| chosen(&case.name))
        .collect();
    let of_worker = chosen("worker");
    let is_wanted = |image: &str| of_worker || cases.iter().any(|case| case.image == image);
    let images = content::images(&is_wanted);
    let addresses = [
        shop::serve(&images, false).await,
        shop::serve(&images, true).await,
    ];
    for case in cases {
        let address = &addresses[usize::from(case.limited)];
        let image = images.iter().find(|(name, _)| *name == case.image);
        case.run(&image.unwrap().1, address, rounds).await;
    }
    if of_worker {
        worker::memory(&addresses[0], &IMAGES).await;
    }
}
