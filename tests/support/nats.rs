//! nats-server of two generations, with JetStream.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use super::process::{Process, free_port};
use super::wait::{eventually, within};
use super::{parts, process};

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Another process may take a port between our look and the server's bind.
const PORT_ATTEMPTS: usize = 5;
/// How long a server may take to end in lame duck mode: the shipped configuration's, and closing the store on a busy machine.
const LAME_DUCK_LIMIT: Duration = Duration::from_secs(90);
/// What a server has for its configuration unless a test brings all of it. A text names its port and store in this way.
const PLAIN: &str = "listen: \"127.0.0.1:@PORT@\"\njetstream { store_dir: \"@STORE@\" }\n";

/// Everything that anybody publishes from now on where this client may listen, as text.
pub async fn overheard(client: async_nats::Client) -> Arc<Mutex<String>> {
    let mut all = client.subscribe(">").await.unwrap();
    taken_in(&client).await;
    let said = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&said);
    tokio::spawn(async move {
        while let Some(message) = all.next().await {
            let body = String::from_utf8_lossy(&message.payload);
            let line = format!("{} {:?} {body}\n", message.subject, message.headers);
            heard.lock().unwrap().push_str(&line);
        }
        drop(client);
    });
    said
}

/// The oldest and the newest generation that is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatsVersion {
    /// 2.10, of Debian 13.
    V2_10,
    /// 2.15, of Debian 14.
    V2_15,
}

impl NatsVersion {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::V2_10, Self::V2_15];

    fn part(self) -> &'static str {
        match self {
            Self::V2_10 => "nats-2.10",
            Self::V2_15 => "nats-2.15",
        }
    }

    /// Its program.
    pub fn program(self) -> PathBuf {
        parts::program(self.part(), "nats-server")
    }
}

/// Waits until the server has taken in what this client sent before, subscriptions above all. The client's own `flush` ends
/// when it is written, and another connection may then overtake it.
pub async fn taken_in(client: &async_nats::Client) {
    let asked = client.request("$JS.API.INFO", "".into());
    let answer = within(START_LIMIT, "an answer of nats-server", asked).await;
    answer.expect("an answer of JetStream");
}

/// A nats-server with JetStream and a store of its own.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    version: NatsVersion,
    port: u16,
    /// Its configuration, with marks in the place of port and store.
    text: String,
    /// Before the folder it is mounted in.
    disk: Option<SmallDisk>,
    dir: TempDir,
}

/// A tmpfs that ends with its value.
#[derive(Debug)]
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mebibytes: u32) -> Self {
        std::fs::create_dir(at).expect("a folder for the disk");
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mebibytes}m"),
                "small-disk",
            ])
            .arg(at)
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "cannot mount a tmpfs: this needs root"
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: who still has files open there is ending.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

impl NatsServer {
    /// Starts one, with no accounts and the server's own limits.
    pub async fn start(version: NatsVersion) -> Self {
        Self::start_with(version, "").await
    }

    /// Starts one with `extra` text in its configuration file: accounts, `max_payload`, …
    pub async fn start_with(version: NatsVersion, extra: &str) -> Self {
        Self::start_whole(version, &plain(extra)).await
    }

    /// Starts one with this configuration and nothing else, in which `@PORT@` is its port and `@STORE@` its store.
    pub async fn start_whole(version: NatsVersion, text: &str) -> Self {
        Self::start_in(parts::temp_dir(), version, text).await
    }

    async fn start_in(dir: TempDir, version: NatsVersion, text: &str) -> Self {
        for _ in 1..PORT_ATTEMPTS {
            let port = free_port();
            match run(version, port, text, dir.path()).await {
                Ok(process) => {
                    return Self {
                        process,
                        version,
                        port,
                        text: text.to_owned(),
                        disk: None,
                        dir,
                    };
                }
                Err(log) => assert!(
                    log.contains("address already in use"),
                    "nats-server ended at once; {log}"
                ),
            }
        }
        panic!("found no free port for nats-server");
    }

    /// Starts one whose store is a file system of its own, of so many MiB.
    #[allow(dead_code, reason = "only the tests of limits fill disks")]
    pub async fn start_on_small_disk(version: NatsVersion, mebibytes: u32) -> Self {
        let dir = parts::temp_dir();
        let disk = SmallDisk::mount(&dir.path().join("store"), mebibytes);
        let mut server = Self::start_in(dir, version, &plain("")).await;
        server.disk = Some(disk);
        server
    }

    /// Fills the disk of its store, but for what is less than a page.
    #[allow(dead_code, reason = "only the tests of limits fill disks")]
    pub fn fill_disk(&self) {
        let filler = self.dir.path().join("store/filler");
        let mut file = std::fs::File::create(filler).expect("a file on the small disk");
        let full =
            std::io::copy(&mut std::io::repeat(0), &mut file).expect_err("a disk that fills up");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives the space back.
    #[allow(dead_code, reason = "only the tests of limits fill disks")]
    pub fn free_disk(&self) {
        let filler = self.dir.path().join("store/filler");
        std::fs::remove_file(filler).expect("the file that fills the disk");
    }

    /// Where it listens, such as `nats://127.0.0.1:20123`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its generation.
    pub fn version(&self) -> NatsVersion {
        self.version
    }

    /// A client of it without credentials.
    pub async fn client(&self) -> async_nats::Client {
        let connecting = async_nats::connect(self.url());
        within(START_LIMIT, "a connection to nats-server", connecting)
            .await
            .expect("a connection to nats-server")
    }

    /// SIGKILL: what it had not written is lost.
    pub fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.stop().await
    }

    /// Has it let its clients go and end, as `nats-server --signal ldm` does, and waits for its end.
    pub async fn lame_duck(&mut self) -> ExitStatus {
        self.process.signal(Signal::USR2);
        self.process.end(LAME_DUCK_LIMIT).await
    }

    /// Starts it again on the same port and store, stopping it first if it runs.
    pub async fn restart(&mut self) {
        if self.process.ended().is_none() {
            self.process.stop().await;
        }
        self.process = run(self.version, self.port, &self.text, self.dir.path())
            .await
            .unwrap_or_else(|log| {
                panic!("nats-server did not come back on port {}; {log}", self.port)
            });
    }

    /// The folder of its store.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Has it read this in the place of what it was started with (`nats-server --signal reload`).
    pub fn reload(&mut self, extra: &str) {
        self.text = plain(extra);
        configure(self.port, &self.text, self.dir.path());
        self.process.signal(Signal::HUP);
    }

    /// The process: its log, its id, signals.
    pub fn process(&mut self) -> &mut process::Process {
        &mut self.process
    }
}

fn plain(extra: &str) -> String {
    format!("{PLAIN}{extra}\n")
}

/// Writes the configuration file and says where it is.
fn configure(port: u16, text: &str, dir: &Path) -> PathBuf {
    let store = dir.join("store").display().to_string();
    let config = text
        .replace("@PORT@", &port.to_string())
        .replace("@STORE@", &store);
    let file = dir.join("nats.conf");
    std::fs::write(&file, config).expect("nats-server's configuration file");
    file
}

/// A server that answers on `port`, or the log of one that ended.
async fn run(version: NatsVersion, port: u16, text: &str, dir: &Path) -> Result<Process, String> {
    let file = configure(port, text, dir);
    let ports = dir.join("ports");
    std::fs::create_dir_all(&ports).expect("a folder for nats-server's ports file");

    let mut command = Command::new(version.program());
    command
        .arg("--config")
        .arg(&file)
        .arg("--ports_file_dir")
        .arg(&ports);
    let mut process = Process::spawn("nats-server", &mut command, &dir.join("log"), dir);

    // The ports file has our process's id in its name, so it cannot be another server that answers.
    let listens = ports.join(format!("nats-server_{}.ports", process.pid()));
    let what = format!("nats-server {version:?} to listen on port {port}");
    let up = eventually(&what, START_LIMIT, async || {
        if process.ended().is_some() {
            return Ok(false);
        }
        if listens.exists() && greets(port).await {
            Ok(true)
        } else {
            Err(process.log_tail())
        }
    })
    .await;
    if up {
        Ok(process)
    } else {
        Err(process.log_tail())
    }
}

/// Whether the server on that port says INFO, which it does first on every connection.
async fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return false;
    };
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.is_ok() && line.starts_with("INFO ")
}
