//! docker-registry (distribution 2.8) with file system storage, and what it was asked for.

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use super::images::{Image, Pushed, http, push};
use super::process::{Process, free_port};
use super::wait::eventually;
use super::{parts, process};

/// How long a registry may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long the log line of an answered request may take.
const LOG_LIMIT: Duration = Duration::from_secs(60);
/// Another process may take a port between our look and the server's bind.
const PORT_ATTEMPTS: usize = 5;

/// A registry on 127.0.0.1 that speaks plain HTTP and lets anyone push, pull and delete.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    port: u16,
    extra: String,
    marks: std::sync::atomic::AtomicUsize,
    dir: TempDir,
}

/// A point in time for [`Registry::requests_since`].
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

/// One answered request, from the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path with its query, such as `/v2/app/manifests/1.0`.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// The bytes of the answer's body.
    pub bytes: u64,
}

impl Request {
    /// Whether it downloaded a blob, or a part of one.
    pub fn gets_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    /// Whether it downloaded a manifest.
    pub fn gets_manifest(&self) -> bool {
        self.method == "GET" && self.path.contains("/manifests/")
    }
}

impl Registry {
    /// Starts an empty one.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts an empty one with `extra` text in its configuration file: notifications, …
    pub async fn start_with(extra: &str) -> Self {
        let dir = parts::temp_dir();
        for _ in 1..PORT_ATTEMPTS {
            let port = free_port();
            match run(port, extra, dir.path()).await {
                Ok(process) => {
                    return Self {
                        process,
                        port,
                        extra: extra.to_owned(),
                        marks: 0.into(),
                        dir,
                    };
                }
                Err(log) => assert!(
                    log.contains("address already in use"),
                    "docker-registry ended at once; {log}"
                ),
            }
        }
        panic!("found no free port for docker-registry");
    }

    /// `127.0.0.1:PORT`, as it stands in an image reference.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stores `image` as `repository:tag`.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> Pushed {
        push(&self.addr(), repository, tag, image).await
    }

    /// This moment: everything answered until now is before it.
    pub async fn mark(&self) -> Mark {
        Mark(self.settled_log().await.len())
    }

    /// What was asked since then and has been answered, in the order of the answers.
    pub async fn requests_since(&self, mark: Mark) -> Vec<Request> {
        let log = self.settled_log().await;
        log[mark.0..]
            .iter()
            .filter_map(|line| parse(line))
            .filter(|request| !request.path.starts_with("/v2/?mark="))
            .collect()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// Starts it again with other `extra` text in its configuration file.
    #[allow(dead_code, reason = "only the tests of credentials change it")]
    pub async fn restart_with(&mut self, extra: &str) {
        extra.clone_into(&mut self.extra);
        self.restart().await;
    }

    /// Starts it again on the same port and storage, stopping it first if it runs.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = run(self.port, &self.extra, self.dir.path())
            .await
            .unwrap_or_else(|log| {
                panic!(
                    "docker-registry did not come back on port {}; {log}",
                    self.port
                )
            });
    }

    /// The process: its log, its id, signals.
    pub fn process(&mut self) -> &mut process::Process {
        &mut self.process
    }

    /// The log's lines once everything answered so far is in it. A line is written after its answer; so this asks for
    /// something else and waits for the line of that.
    async fn settled_log(&self) -> Vec<String> {
        let number = self
            .marks
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = format!("/v2/?mark={number}");
        http()
            .get(format!("http://{}{path}", self.addr()))
            .send()
            .await
            .expect("an answer of the registry");
        let is_mark = |line: &String| parse(line).is_some_and(|request| request.path == path);
        eventually("the registry's access log", LOG_LIMIT, async || {
            let lines: Vec<String> = self.process.log().lines().map(str::to_owned).collect();
            lines.iter().any(is_mark).then_some(lines)
        })
        .await
    }
}

/// A line of the access log, in Apache's combined format; other lines of the log are none.
fn parse(line: &str) -> Option<Request> {
    let mut quoted = line.split('"');
    let (_, request, answer) = (quoted.next()?, quoted.next()?, quoted.next()?);
    let mut request = request.split(' ');
    let (method, path) = (request.next()?, request.next()?);
    request
        .next()
        .filter(|protocol| protocol.starts_with("HTTP/"))?;
    let mut answer = answer.split_ascii_whitespace();
    let status = answer.next()?.parse().ok()?;
    let bytes = answer.next()?.parse().ok()?;
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status,
        bytes,
    })
}

/// A registry that answers on `port`, or the log of one that ended.
async fn run(port: u16, extra: &str, dir: &Path) -> Result<Process, String> {
    let config = format!(
        r#"version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: "{}"}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
{extra}"#,
        dir.join("storage").display()
    );
    let file = dir.join("registry.yml");
    std::fs::write(&file, config).expect("docker-registry's configuration file");
    let mut command = Command::new(parts::program("registry-2.8", "docker-registry"));
    command.arg("serve").arg(&file).env_clear();
    let mut process = Process::spawn("docker-registry", &mut command, &dir.join("log"), dir);

    let up = eventually("docker-registry to answer", START_LIMIT, async || {
        if process.ended().is_some() {
            return Ok(false);
        }
        let answer = http()
            .get(format!("http://127.0.0.1:{port}/v2/"))
            .send()
            .await;
        // One that wants a password is up as well.
        answer
            .map(|answer| answer.status().is_success() || answer.status() == 401)
            .map_err(|error| format!("{error}; {}", process.log_tail()))
    })
    .await;
    // Somebody else may have answered in its place; then it has ended, or is about to, as it cannot bind.
    if up && process.ended().is_none() {
        Ok(process)
    } else {
        Err(process.log_tail())
    }
}
