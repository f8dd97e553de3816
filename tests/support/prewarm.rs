//! The program under test, as a user runs it.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::kubernetes::KubernetesApi;
use super::parts;
use super::process::Process;
use super::wait::{eventually, within};

/// How long a command may take unless a test says otherwise.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Needed to find other programs; everything else of the environment is the test's to set.
const KEPT_VARIABLES: [&str; 2] = ["PATH", "LLVM_PROFILE_FILE"];

/// A call of `prewarm` with an empty home and no settings from the environment.
#[derive(Debug)]
pub struct Prewarm {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
    home: TempDir,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; a signal's is 128 and its number, as a shell says it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A call with these arguments.
pub fn prewarm<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Prewarm {
    let home = parts::temp_dir();
    let mut command = Command::new(env!("CARGO_BIN_EXE_prewarm"));
    command
        .args(args)
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .env("PREWARM_STATE_DIR", home.path().join("state"));
    for name in KEPT_VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Prewarm {
        command,
        stdin: None,
        limit: RUN_LIMIT,
        home,
    }
}

impl Prewarm {
    /// With this environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// With this on its standard input.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self
    }

    /// With another limit than a minute.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Run by this command, which is a whole one with its own environment and starts the program in its own way.
    #[must_use]
    pub fn by(mut self, command: Command) -> Self {
        self.command = command;
        self
    }

    /// As in a pod that reaches this API server, with the files of a service account where kubelet mounts them.
    #[must_use]
    pub fn in_a_pod(self, api: &KubernetesApi) -> Self {
        const SCRIPT: &str = r#"
            mount -t tmpfs pod /var/run
            mkdir -p /var/run/secrets/kubernetes.io
            ln -s "$1" /var/run/secrets/kubernetes.io/serviceaccount
            shift; exec "$@""#;
        self.env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", api.port().to_string())
            .with_mounts(SCRIPT, &[api.service_account().as_os_str()])
    }

    /// In a mount namespace of its own, by a script that gets these arguments and then the call.
    fn with_mounts(mut self, script: &str, args: &[&std::ffi::OsStr]) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-euc"])
            .args([script, "sh"])
            .args(args)
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .current_dir(self.home.path())
            .env_clear();
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        self.command = command;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it takes longer than the limit; it is killed then.
    pub async fn run(self) -> Output {
        let mut command = tokio::process::Command::from(self.command);
        let what = format!("the end of {:?}", command.as_std());
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.stdin(if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = command.spawn().expect("prewarm to start");
        if let (Some(input), Some(mut stdin)) = (self.stdin, child.stdin.take()) {
            // A program that ends before it has read everything closes the pipe; how it ended is what the test looks at.
            let _ = stdin.write_all(&input).await;
        }
        let output = within(self.limit, &what, child.wait_with_output())
            .await
            .expect("the output of prewarm");
        Output {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts it as a role that runs until it is ended; `name` is for messages.
    pub fn spawn(mut self, name: &str) -> Role {
        let log = self.home.path().join("log");
        let process = Process::spawn(name, &mut self.command, &log, self.home.path());
        Role {
            process,
            name: name.to_owned(),
            home: self.home,
        }
    }
}

/// A running role: a dispatcher, a worker, `up`.
#[derive(Debug)]
pub struct Role {
    process: Process,
    name: String,
    home: TempDir,
}

impl Role {
    /// Waits until its log (standard output and error) has a line with `text`, and returns that line.
    pub async fn logs(&mut self, text: &str, limit: Duration) -> String {
        let what = format!("{} to log {text:?}", self.name);
        let process = &self.process;
        eventually(&what, limit, || async {
            let log = process.log();
            log.lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
                .ok_or_else(|| process.log_tail())
        })
        .await
    }

    /// SIGKILL: it gets no chance to say or save anything.
    pub fn kill9(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.process.stop().await
    }

    /// Sends `signal`.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub async fn end(&mut self, limit: Duration) -> Output {
        let status = self.process.end(limit).await;
        Output {
            code: code(status),
            stdout: String::new(),
            stderr: self.process.log(),
        }
    }

    /// Everything it has written to standard output and error.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its home, which ends with this value; by default its state directory is `state` in it.
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    /// Its resident memory in bytes (`VmRSS` of proc_pid_status(5)).
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("a running process");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("kilobytes")
            * 1024
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("an exit code or a signal")
}
