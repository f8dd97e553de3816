//! How long a pull takes, ours and others', into the same containerd from the same registry:
//! `cargo bench --bench pull` (root; `make parts` before). Arguments after `--` choose cases whose
//! names contain one of them, such as `2.1` or `one-layer`; `-n 9` sets the number of rounds.
//!
//! The contenders take turns: this engine, `ctr images pull`, CRI's PullImage, and the same of a containerd
//! that is set up as well as it can be (`Tuned`: igzip or unpigz on its PATH, ten downloads at once), so that what else goes on hits all alike; the first round is not
//! counted. Ours runs in a process of its own. CPU time is that of the client and of containerd. The
//! images are made of the files in this machine's /usr.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use bytes::Bytes;
use prewarm::domain::job::ImagePullPolicy;
use prewarm::domain::progress::PullProgress;
use prewarm::image::PullRequest;
use prewarm::image::containerd::{Containerd as Runtime, ContainerdConfig, PullLimits};
use prewarm::image::registry::{Registry, RegistryConfig};
use prewarm::image::size::DiskReserve;
use support::containerd::{Containerd, ContainerdVersion, NAMESPACE};
use support::images::{Compression, Image, Layer, Recipe};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Rounds that count, unless the arguments say.
const ROUNDS: usize = 5;
/// The limited registry: bytes in a second for each connection, and time to the first.
const RATE: f64 = 50e6;
const LATENCY: Duration = Duration::from_millis(10);
/// What the registry sends at a time.
const PIECE: usize = 256 << 10;
/// Ticks of a second in /proc/PID/stat (USER_HZ).
const TICKS: f64 = 100.0;

/// Who pulls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Contender {
    Ours,
    Ctr,
    Cri,
    /// CRI of a containerd that is set up to pull as fast as it can.
    Tuned,
}

const CONTENDERS: [Contender; 4] = [
    Contender::Ours,
    Contender::Ctr,
    Contender::Cri,
    Contender::Tuned,
];

/// A registry that serves a few images from memory.
struct Shop {
    blobs: HashMap<String, (String, Bytes)>,
    limited: bool,
}

async fn serve(images: &[(&'static str, Image)], limited: bool) -> String {
    let mut blobs = HashMap::new();
    for (name, image) in images {
        for blob in image.blobs.iter().chain([&image.target]) {
            let value = (blob.media_type.clone(), blob.bytes.clone());
            blobs.insert(blob.digest.clone(), value);
        }
        let target = &image.target;
        let value = (target.media_type.clone(), target.bytes.clone());
        blobs.insert(format!("{name}:1"), value);
    }
    let app = Router::new()
        .route("/v2/", axum::routing::get(async || ""))
        .route("/v2/{name}/{kind}/{reference}", axum::routing::get(answer))
        .with_state(Arc::new(Shop { blobs, limited }));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn answer(
    State(shop): State<Arc<Shop>>,
    UrlPath((name, _, reference)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let tagged = format!("{name}:{reference}");
    let found = shop
        .blobs
        .get(&reference)
        .or_else(|| shop.blobs.get(&tagged));
    let Some((media_type, bytes)) = found else {
        let missing = Response::builder().status(StatusCode::NOT_FOUND);
        return missing.body(Body::empty()).unwrap();
    };
    let total = bytes.len();
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, media_type)
        .header(header::ACCEPT_RANGES, "bytes")
        .header("docker-content-digest", prewarm_digest(bytes, &reference));
    let range = headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok()?.strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'));
    let part = match range {
        None => bytes.clone(),
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(total, |end: usize| (end + 1).min(total));
            let range = format!("bytes {start}-{}/{total}", end - 1);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, range);
            bytes.slice(start..end)
        }
    };
    let limited = shop.limited;
    let length = part.len();
    let begun = Instant::now() + LATENCY;
    let pieces = futures::stream::unfold(0, move |at| {
        let piece = part.slice(at.min(length)..(at + PIECE).min(length));
        async move {
            if piece.is_empty() {
                return None;
            }
            if limited {
                let due = begun + Duration::from_secs_f64(at as f64 / RATE);
                tokio::time::sleep_until(due.into()).await;
            }
            let next = at + piece.len();
            Some((Ok::<_, std::convert::Infallible>(piece), next))
        }
    });
    response
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(pieces))
        .unwrap()
}

/// A blob is asked for by its digest, a manifest perhaps by its tag.
fn prewarm_digest(bytes: &Bytes, reference: &str) -> String {
    match reference.starts_with("sha256:") {
        true => reference.to_owned(),
        false => prewarm::domain::image::Digest::of(bytes).to_string(),
    }
}

/// The files below /usr, in an order that mixes small and large ones.
fn files() -> Vec<(PathBuf, u64)> {
    let mut pending = vec![
        PathBuf::from("/usr/lib"),
        "/usr/share".into(),
        "/usr/bin".into(),
    ];
    let mut found = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_file() && meta.size() < 40_000_000 {
                found.push((entry.path(), meta.size()));
            }
        }
    }
    found.sort_by_key(|(path, _)| {
        let name = path.to_string_lossy();
        prewarm::domain::image::Digest::of(name.as_bytes()).to_string()
    });
    found
}

/// Layers of about so many bytes of files each.
fn layers(count: usize, bytes: u64, compression: Compression) -> Vec<Layer> {
    let files = files();
    let mut files = files.iter().cycle();
    let one = |files: &mut dyn Iterator<Item = &(PathBuf, u64)>, number: usize| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut left = bytes;
        while left > 0 {
            let (path, size) = files.next().expect("files in /usr");
            let name = format!("layer-{number}{}", path.display());
            let mut content = Vec::new();
            let read =
                std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut content));
            if read.is_err() || builder_append(&mut builder, &name, &content).is_err() {
                continue;
            }
            left = left.saturating_sub((*size).max(1));
        }
        Layer::archive(builder.into_inner().unwrap()).packed_as(compression)
    };
    (0..count).map(|number| one(&mut files, number)).collect()
}

fn builder_append(
    builder: &mut tar::Builder<Vec<u8>>,
    name: &str,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content)
}

/// The images by name.
fn images(wanted: &dyn Fn(&str) -> bool) -> Vec<(&'static str, Image)> {
    const MB: u64 = 1_000_000;
    let all: [(&'static str, usize, u64, Compression); 5] = [
        ("ten-layers", 10, 80 * MB, Compression::Gzip),
        ("one-layer", 1, 800 * MB, Compression::Gzip),
        ("forty-small", 40, 2 * MB, Compression::Gzip),
        ("ten-layers-zstd", 10, 80 * MB, Compression::Zstd),
        ("one-layer-zstd", 1, 800 * MB, Compression::Zstd),
    ];
    all.into_iter()
        .filter(|(name, ..)| wanted(name))
        .map(|(name, count, bytes, compression)| {
            let image = Recipe::new(layers(count, bytes, compression)).build();
            println!("{name}: {:.0} MB packed", image.size() as f64 / 1e6);
            (name, image)
        })
        .collect()
}

/// One pull by this process, told by its arguments: the child of [`pull`].
async fn pull_here(args: &[String]) {
    let [socket, certs, image] = args else {
        panic!("SOCKET CERTS IMAGE");
    };
    let runtime = Runtime::connect(ContainerdConfig {
        address: socket.into(),
        namespace: NAMESPACE.to_owned(),
        snapshotter: "overlayfs".to_owned(),
        min_free_disk: DiskReserve::Percent(0),
        registry: Registry::new(RegistryConfig {
            hosts_dirs: vec![certs.into()],
            ..RegistryConfig::default()
        }),
        limits: PullLimits::default(),
    });
    let request = PullRequest {
        image: image.parse().unwrap(),
        digest: None,
        policy: ImagePullPolicy::IfNotPresent,
        platform: None,
        pull_secrets: Vec::new(),
        pin: None,
        unpack: true,
        labels: BTreeMap::new(),
    };
    let (progress, _) = watch::channel(PullProgress::default());
    let report = runtime
        .unwrap()
        .pull(&request, &progress, &CancellationToken::new())
        .await
        .unwrap();
    assert!(!report.already_present);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("{}", peak.unwrap_or_default());
}

/// One pull: wall and CPU seconds, and for ours the most resident memory.
async fn pull(contender: Contender, daemon: &mut Containerd, image: &str) -> (f64, f64, String) {
    let before = cpu(daemon.process().pid()) + cpu_of_children();
    let started = Instant::now();
    let mut said = String::new();
    match contender {
        Contender::Ours => {
            let output = tokio::process::Command::new(std::env::current_exe().unwrap())
                .arg("pull-here")
                .arg(daemon.socket())
                .arg(daemon.certs_dir())
                .arg(image)
                .output()
                .await
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
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
    let took = started.elapsed().as_secs_f64();
    let cpu = cpu(daemon.process().pid()) + cpu_of_children() - before;
    (took, cpu, said)
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn compare(
    version: ContainerdVersion,
    image: &str,
    address: &str,
    rounds: usize,
    case: &str,
) {
    let mut daemon = Containerd::start(version).await;
    let mut tuned = Containerd::start_tuned(version).await;
    daemon.allow_registry(address);
    tuned.allow_registry(address);
    let reference = format!("{address}/{image}:1");
    let mut seen: BTreeMap<Contender, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let mut memory = String::new();
    for round in 0..=rounds {
        for contender in CONTENDERS {
            let daemon = match contender {
                Contender::Tuned => &mut tuned,
                _ => &mut daemon,
            };
            let (wall, cpu, said) = pull(contender, daemon, &reference).await;
            if round > 0 {
                let (walls, cpus) = seen.entry(contender).or_default();
                walls.push(wall);
                cpus.push(cpu);
            }
            if contender == Contender::Ours {
                memory = said;
            }
            forget(daemon).await;
        }
    }
    let mut ours = (0.0, 0.0);
    println!("\n{case} (n = {rounds}; {memory})");
    for (contender, (mut walls, mut cpus)) in seen {
        let (wall, cpu) = (median(&mut walls), median(&mut cpus));
        if contender == Contender::Ours {
            ours = (wall, cpu);
        }
        println!(
            "  {contender:5?} wall {wall:6.2} s ({:.2} to {:.2})  cpu {cpu:6.2} s   ours/this: wall {:.2} cpu {:.2}",
            walls[0],
            walls[walls.len() - 1],
            ours.0 / wall,
            ours.1 / cpu
        );
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "pull-here") {
        return pull_here(&args[1..]).await;
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
        filters.iter().all(|filter| {
            filter
                .split(',')
                .any(|word| case.split(' ').any(|part| part == word))
        })
    };
    let mut cases = Vec::new();
    for image in [
        "ten-layers",
        "one-layer",
        "forty-small",
        "ten-layers-zstd",
        "one-layer-zstd",
    ] {
        for limited in [false, true] {
            for version in ContainerdVersion::ALL {
                let registry = if limited { "limited" } else { "fast" };
                let number = match version {
                    ContainerdVersion::V1_6 => "1.6",
                    ContainerdVersion::V1_7 => "1.7",
                    ContainerdVersion::V2_1 => "2.1",
                };
                let case = format!("{image} {registry} {number}");
                let is_limited_case = image == "one-layer" || image == "ten-layers";
                if chosen(&case) && (!limited || is_limited_case) {
                    cases.push((case, image, limited, version));
                }
            }
        }
    }
    let images = images(&|name| cases.iter().any(|(_, image, ..)| *image == name));
    let addresses = [serve(&images, false).await, serve(&images, true).await];
    for (case, image, limited, version) in cases {
        let address = &addresses[usize::from(limited)];
        compare(version, image, address, rounds, &case).await;
    }
}
