//! A nats-server of our own: loopback, a free port, JetStream in a directory, and gone when we are.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_nats::ServerAddr;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::cli::exit::Failure;

/// The program's name.
const PROGRAM: &str = "nats-server";
/// How long it may take to say where it listens; a large store is read first.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks for its ports file.
const POLL: Duration = Duration::from_millis(20);
/// Lines of its log that a failure shows.
const LOG_LINES: usize = 5;

/// A running nats-server.
pub(super) struct Broker {
    child: Mutex<Child>,
    log: PathBuf,
    url: String,
    /// The file that tells others the address.
    announcement: PathBuf,
}

/// What nats-server writes with `--ports_file_dir` (server/server.go, `Ports`).
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// Where the data goes when nobody says (XDG Base Directory Specification).
pub(super) fn default_directory(home: Option<PathBuf>) -> PathBuf {
    let set = std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty());
    set.map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".local/share")))
        .unwrap_or_else(std::env::temp_dir)
        .join("prewarm")
}

impl Broker {
    /// Starts one and waits until it listens.
    pub(super) async fn start(program: Option<PathBuf>, directory: &Path) -> Result<Self, Failure> {
        let program = match program {
            Some(program) => program,
            None => on_path(PROGRAM).ok_or_else(not_installed)?,
        };
        let at = |error: std::io::Error| {
            Failure::input(format!("cannot use {}: {error}", directory.display()))
                .advise("choose another directory with --data-dir")
        };
        std::fs::create_dir_all(directory).map_err(at)?;
        let directory = directory.canonicalize().map_err(at)?;
        let announcement = directory.join("nats.url");
        // That of an earlier server, which was killed together with its `up`.
        let _ = std::fs::remove_file(&announcement);
        let config = directory.join("nats-server.conf");
        std::fs::write(&config, configuration(&directory)).map_err(at)?;
        let log = directory.join("nats-server.log");
        let output = File::create(&log).map_err(at)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args([
                "tethered",
                "--parent",
                &std::process::id().to_string(),
                "--lock",
            ])
            .arg(directory.join("lock"))
            .arg("--")
            .arg(&program)
            .arg("--config")
            .arg(&config)
            .arg("--ports_file_dir")
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(at)?)
            .stderr(output)
            // Ctrl-C reaches a terminal's whole process group: ours ends first, then the server.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| {
            Failure::input(format!("cannot start {}: {error}", program.display()))
        })?;
        let mut broker = Self {
            child: Mutex::new(child),
            log,
            url: String::new(),
            announcement,
        };
        broker.url = broker.listening(&directory).await?;
        Ok(broker)
    }

    /// Writes its address where scripts look for it.
    pub(super) fn announce(&self) -> Result<(), Failure> {
        let text = format!("{}\n", self.url);
        std::fs::write(&self.announcement, text).map_err(|error| {
            Failure::input(format!(
                "cannot write {}: {error}",
                self.announcement.display()
            ))
        })
    }

    /// Its address.
    pub(super) fn address(&self) -> Result<ServerAddr, Failure> {
        self.url.parse().map_err(|error| {
            Failure::unreachable(format!(
                "nats-server says that it listens on {:?}: {error}",
                self.url
            ))
        })
    }

    async fn listening(&self, directory: &Path) -> Result<String, Failure> {
        let pid = self.child.lock().await.id().unwrap_or_default();
        // The process becomes the server, so the server's id is ours to know.
        let file = directory.join(format!("{PROGRAM}_{pid}.ports"));
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if self
                .child
                .lock()
                .await
                .try_wait()
                .is_ok_and(|status| status.is_some())
            {
                return Err(self.failure("ended at once"));
            }
            let ports = std::fs::read(&file).ok();
            let ports = ports.and_then(|bytes| serde_json::from_slice::<Ports>(&bytes).ok());
            if let Some(url) = ports.and_then(|ports| ports.nats.into_iter().next()) {
                return Ok(url);
            }
            if Instant::now() >= deadline {
                return Err(self.failure(&format!("did not listen within {START_LIMIT:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Comes back when the server has ended by itself.
    pub(super) async fn ended(&self) -> Failure {
        match self.child.lock().await.wait().await {
            Ok(status) => self.failure(&format!("ended ({status})")),
            Err(error) => self.failure(&format!("cannot be watched: {error}")),
        }
    }

    fn failure(&self, what: &str) -> Failure {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Failure::unreachable(format!("nats-server {what}:\n{tail}"))
            .advise(format!("its whole log is {}", self.log.display()))
    }

    /// Ends it well: it writes what it has in memory.
    pub(super) async fn stop(self) {
        let mut child = self.child.into_inner();
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Fails only for a process that has ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_LIMIT, child.wait())
            .await
            .is_err()
        {
            tracing::warn!("nats-server does not end; it is killed");
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_file(self.announcement);
    }
}

fn configuration(directory: &Path) -> String {
    // JSON's text form is one of the forms nats-server reads.
    let store = serde_json::Value::from(directory.to_string_lossy());
    format!(
        "listen: \"127.0.0.1:-1\"\nserver_name: prewarm-up\njetstream: {{ store_dir: {store} }}\n"
    )
}

/// The first program of that name on PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn not_installed() -> Failure {
    Failure::unreachable("there is no nats-server on PATH, and no broker was named").advise(
        "install one (Debian: apt install nats-server; else https://github.com/nats-io/nats-server/releases), \
         say where it is with --nats-server, or use a running broker with --nats-url",
    )
}
