//! The whole cell: brokers, dispatchers, nodes and a registry, each where it can be reached and hurt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use prewarm::bus::Bus;
use prewarm::wire::subject::Subjects;

use crate::cast::{Member, Role};
use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{Image, Pushed, busybox, generated};
use crate::support::wait::eventually;
use crate::support::{images, parts};
use crate::weather::Weather;
use crate::world::{World, in_network};

const BROKERS: usize = 3;
const DISPATCHERS: usize = 3;
/// The node of each generation of containerd.
const NODES: [(&str, ContainerdVersion); 3] = [
    ("node-1", ContainerdVersion::V1_6),
    ("node-2", ContainerdVersion::V1_7),
    ("node-3", ContainerdVersion::V2_1),
];
/// The disk of a node's containerd, in MiB.
const DISK_MIB: u32 = 160;
/// How long the cell may take until it works.
const START_LIMIT: Duration = Duration::from_secs(120);
const PROXY_PORT: u16 = 5000;
/// The tag that means another image now and then.
pub(crate) const MOVING: (&str, &str) = ("team/moving", "1");
/// An image that a container can be run from.
pub(crate) const RUNNABLE: (&str, &str) = ("library/busybox", "1");

/// The files of a node that say what time it is.
pub(crate) struct Clock {
    file: PathBuf,
    /// Seconds ahead of the true time.
    pub(crate) ahead: i64,
}

impl Clock {
    fn at(file: PathBuf) -> Self {
        let mut clock = Self { file, ahead: 0 };
        clock.set(0);
        clock
    }

    /// Steps the clock to so many seconds ahead of the true time.
    pub(crate) fn set(&mut self, ahead: i64) {
        self.ahead = ahead;
        // In one step: the worker reads it at any time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{ahead:+}\n")).expect("the file of a clock");
        std::fs::rename(new, &self.file).expect("the file of a clock");
    }
}

/// Everything of one run.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) cast: Vec<Member>,
    pub(crate) clocks: Vec<Clock>,
    pub(crate) weather: Weather,
    pub(crate) bus: Bus,
    pub(crate) registry_direct: String,
    pub(crate) registry: String,
    /// As `host/repository:tag`.
    pub(crate) images: Vec<String>,
    pub(crate) moved: u64,
    /// When a node's images were taken away last, in seconds since the epoch.
    pub(crate) emptied: BTreeMap<String, i64>,
    pub(crate) dir: PathBuf,
    _registry: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn build(seed: u64) -> Self {
        let dir = parts::temp_dir().keep();
        let mut world = World::new();
        let mut cast = Vec::new();
        let brokers: Vec<String> = (1..=BROKERS)
            .map(|n| world.join(&format!("broker-{n}")))
            .collect();
        for (number, _) in brokers.iter().enumerate() {
            cast.push(broker(&dir, number, &brokers));
        }
        let registry_dir = parts::temp_dir();
        let (member, registry_direct) = registry(&dir, registry_dir.path());
        cast.push(member);
        let registry = format!("{}:{PROXY_PORT}", World::here());
        let weather = Weather::serve(&registry, &registry_direct, seed).await;
        answers(&registry_direct).await;
        let images = push_all(&registry_direct, &registry).await;

        let url = |user: &str| {
            let urls: Vec<String> = brokers
                .iter()
                .map(|at| format!("nats://{user}:p{user}@{at}:4222"))
                .collect();
            urls.join(",")
        };
        let client = connected(&url("core")).await;
        let certs = hosts_file(&dir, &registry);
        for number in 1..=DISPATCHERS {
            let name = format!("dispatcher-{number}");
            world.join(&name);
            cast.push(dispatcher(&dir, &name, url("core"), certs.clone()));
        }
        let mut clocks = Vec::new();
        for (name, version) in NODES {
            world.join(name);
            let daemon =
                Containerd::start_in_network(version, DISK_MIB, Some(name.to_owned())).await;
            daemon.allow_registry(&registry);
            let clock = dir.join(format!("{name}.clock"));
            clocks.push(Clock::at(clock.clone()));
            let settings = Settings {
                node: name.to_owned(),
                url: url(name),
                socket: daemon.socket(),
                certs: daemon.certs_dir(),
                clock,
            };
            cast.push(Member::containerd(
                &format!("containerd of {name}"),
                &dir,
                daemon,
            ));
            cast.push(worker(&dir, settings));
        }
        Self {
            world,
            cast,
            clocks,
            weather,
            bus: Bus::new(client, Subjects::default()),
            registry_direct,
            registry,
            images,
            moved: 0,
            emptied: BTreeMap::new(),
            dir,
            _registry: registry_dir,
        }
    }

    /// Starts again and continues what is due.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        for member in &mut self.cast {
            member.tick(now);
        }
    }

    /// The containerds, by node.
    pub(crate) fn daemons(&self) -> Vec<(&'static str, &Containerd)> {
        let daemons = self
            .cast
            .iter()
            .filter(|member| member.role == Role::Containerd);
        NODES
            .iter()
            .map(|(name, _)| *name)
            .zip(daemons.map(Member::daemon))
            .collect()
    }

    /// Takes all images from a node, as somebody who makes room does: what is asked for next has to be pulled.
    pub(crate) async fn empty(&mut self, node: usize) {
        let (name, daemon) = self.daemons()[node];
        let cri = daemon.cri().await;
        for image in cri.list_images().await.expect("the images of a node") {
            cri.remove_image(&image.id).await.expect("an image to go");
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.expect("a clock after 1970").as_secs();
        self.emptied
            .insert(name.to_owned(), i64::try_from(now).expect("a time"));
    }

    /// Puts another image under the tag that moves.
    pub(crate) async fn move_tag(&mut self) -> Pushed {
        self.moved += 1;
        // It may have been started just now.
        answers(&self.registry_direct).await;
        let image = generated(1_000 + self.moved, 2, 150_000).build();
        images::push(&self.registry_direct, MOVING.0, MOVING.1, &image).await
    }
}

fn broker(dir: &Path, number: usize, brokers: &[String]) -> Member {
    let name = format!("broker-{}", number + 1);
    let home = dir.join(&name);
    std::fs::create_dir_all(&home).expect("a folder for a broker");
    std::fs::write(
        home.join("cluster.conf"),
        include_str!("../../deploy/nats/cluster.conf"),
    )
    .expect("a broker's configuration");
    std::fs::write(home.join("accounts.conf"), accounts()).expect("a broker's accounts");
    let routes: Vec<String> = brokers
        .iter()
        .map(|at| format!("nats://cluster:pcluster@{at}:6222"))
        .collect();
    let network = name.clone();
    Member::start(Role::Broker, &name, dir, move || {
        let mut command = in_network(&network, &parts::program("nats-2.15", "nats-server"));
        command
            .arg("--config")
            .arg(home.join("cluster.conf"))
            .env("SERVER_NAME", &network)
            .env("STORE_DIR", home.join("store"))
            .env("CLUSTER_PASSWORD", "pcluster")
            .env("CORE_PASSWORD", "pcore")
            .env("WEBHOOK_PASSWORD", "pwebhook")
            .env("CI_PASSWORD", "pci")
            .env("SYS_PASSWORD", "psys")
            .env("NODE_1_PASSWORD", "pnode-1");
        for (number, route) in routes.iter().enumerate() {
            command.env(format!("ROUTE_{number}"), route);
        }
        command
    })
}

/// The shipped accounts, with a user for each node, made as the file says.
fn accounts() -> String {
    let accounts = include_str!("../../deploy/nats/accounts.conf");
    let (_, user) = accounts
        .split_once("users: [{user: node-1")
        .expect("a node's user");
    let (user, _) = user.split_once("}}]").expect("the end of a node's user");
    let first = format!("{{user: node-1{user}}}}}");
    let users: Vec<String> = NODES
        .iter()
        .map(|(name, _)| {
            first
                .replace("$NODE_1_PASSWORD", &format!("p{name}"))
                .replace("node-1", name)
        })
        .collect();
    accounts.replace(&first, &users.join(",\n"))
}

fn registry(dir: &Path, home: &Path) -> (Member, String) {
    let addr = "127.0.0.1:5001".to_owned();
    let config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: \"{}\"}}\nhttp:\n  addr: {addr}\n",
        home.join("storage").display()
    );
    let file = home.join("registry.yml");
    std::fs::write(&file, config).expect("docker-registry's configuration");
    let member = Member::start(Role::Registry, "registry", dir, move || {
        let mut command = Command::new(parts::program("registry-2.8", "docker-registry"));
        command.arg("serve").arg(&file).env_clear();
        command
    });
    (member, addr)
}

async fn answers(registry: &str) {
    eventually("docker-registry to answer", START_LIMIT, async || {
        let asked = images::http()
            .get(format!("http://{registry}/v2/"))
            .send()
            .await;
        asked.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
}

/// Fills the registry; what comes back is named as nodes name it.
async fn push_all(registry: &str, named: &str) -> Vec<String> {
    let made: Vec<((&str, &str), Image)> = vec![
        (
            RUNNABLE,
            busybox(&parts::program("busybox", "busybox")).build(),
        ),
        (MOVING, generated(1_000, 2, 150_000).build()),
        (("team/small", "1"), generated(1, 1, 20_000).build()),
        (("team/many", "1"), generated(2, 12, 60_000).build()),
        (("team/large", "1"), generated(3, 3, 3_000_000).build()),
        (("team/deep", "2"), generated(4, 6, 400_000).build()),
        (("team/other", "1"), generated(5, 4, 800_000).build()),
    ];
    let mut names = Vec::new();
    for ((repository, tag), image) in made {
        images::push(registry, repository, tag, &image).await;
        names.push(format!("{named}/{repository}:{tag}"));
    }
    names
}

async fn connected(urls: &str) -> async_nats::Client {
    let servers: Vec<async_nats::ServerAddr> = urls
        .split(',')
        .map(|url| url.parse().expect("a broker's address"))
        .collect();
    eventually("a connection to the cluster", START_LIMIT, async || {
        async_nats::ConnectOptions::new()
            .user_and_password("core".to_owned(), "pcore".to_owned())
            .connect(servers.clone())
            .await
            .map_err(|error| error.to_string())
    })
    .await
}

fn hosts_file(dir: &Path, registry: &str) -> PathBuf {
    let certs = dir.join("certs.d");
    let of_host = certs.join(registry);
    std::fs::create_dir_all(&of_host).expect("a folder for hosts.toml");
    std::fs::write(
        of_host.join("hosts.toml"),
        format!("server = \"http://{registry}\"\n"),
    )
    .expect("hosts.toml");
    certs
}

fn prewarm(network: &str, dir: &Path) -> Command {
    let mut command = in_network(network, Path::new(env!("CARGO_BIN_EXE_prewarm")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", dir)
        .env("PREWARM_METRICS_LISTEN", "off");
    command
        .env("PREWARM_LOG", "info,prewarm=debug")
        .env("RUST_BACKTRACE", "1");
    command
}

fn dispatcher(dir: &Path, name: &str, url: String, certs: PathBuf) -> Member {
    let (network, home) = (name.to_owned(), dir.to_owned());
    Member::start(Role::Dispatcher, name, dir, move || {
        let mut command = prewarm(&network, &home);
        command
            .args(["dispatcher", "--replicas", "3"])
            .env("PREWARM_NATS_URL", &url)
            .env("PREWARM_REGISTRY_CONFIG_DIR", &certs);
        command
    })
}

struct Settings {
    node: String,
    url: String,
    socket: PathBuf,
    certs: PathBuf,
    clock: PathBuf,
}

fn worker(dir: &Path, settings: Settings) -> Member {
    let home = dir.to_owned();
    let faketime = parts::program("faketime", "faketime");
    let faketime = std::fs::canonicalize(faketime).expect("faketime");
    let faketime = faketime
        .ancestors()
        .nth(2)
        .expect("the folder of the part")
        .join("lib");
    let name = format!("worker of {}", settings.node);
    Member::start(Role::Worker, &name, dir, move || {
        let mut command = prewarm(&settings.node, &home);
        command
            .args(["worker", "--min-free-disk", "0"])
            .env("PREWARM_NATS_URL", &settings.url)
            .env("PREWARM_NODE", &settings.node)
            .env("PREWARM_CONTAINERD_ADDRESS", &settings.socket)
            .env("PREWARM_REGISTRY_CONFIG_DIR", &settings.certs);
        // libfaketime(1): the wall clock is what the file says, read at every look; other clocks stay.
        command
            .env("LD_PRELOAD", library(&faketime))
            .env("FAKETIME_TIMESTAMP_FILE", &settings.clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    })
}

/// The library that steps clocks, in the folder of its architecture.
fn library(lib: &Path) -> PathBuf {
    let folders = std::fs::read_dir(lib).expect("the libraries of faketime");
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|library| library.exists())
        .expect("libfaketimeMT.so.1")
}
