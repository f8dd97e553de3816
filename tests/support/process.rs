//! Child processes that end with the test, whatever ends it.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait::eventually;

/// How long a process may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How many lines of its log a failure shows.
const TAIL_LINES: usize = 40;
/// Ports for servers: below the range that Linux gives to outgoing connections (32768 and up by default), so that a
/// server that restarts finds its port free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Ends process $1 and removes the folder $2 once its standard input closes, which it does with the test process.
const GUARD: &str = r#"trap '' INT TERM HUP; read -r line || { kill -9 "$1"; rm -rf --one-file-system "$2"; } 2>/dev/null"#;

/// A running program whose output goes to a log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    guard: Child,
}

impl Process {
    /// Starts `command`, called `name` in messages, with its output appended to `log`; `data` is the folder to remove
    /// should the test process be killed.
    pub fn spawn(name: &str, command: &mut Command, log: &Path, data: &Path) -> Self {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file for a child process");
        let err = out.try_clone().expect("a second handle of the log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard", &child.id().to_string()])
            .arg(data)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh to watch over a child process");
        Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
            guard,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it has had resident, in bytes (`VmHWM` of proc_pid_status(5)).
    pub fn most_resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.expect("VmHWM").trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().expect("kilobytes") * 1024
    }

    /// Processor time that it has used (utime and stime of proc_pid_stat(5)).
    pub fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .expect("a running process");
        let (_, fields) = stat.rsplit_once(')').expect("the end of a process's name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks
            .map(|field| field.parse::<f64>().expect("ticks"))
            .sum();
        ticks / f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap())
    }

    /// Sends `signal`; a process that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
            kill_process(pid, signal)
                .unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("the status of a child process")
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> ExitStatus {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("the end of a killed process")
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end(STOP_LIMIT).await
    }

    /// Waits for its end.
    pub async fn end(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} (process {}) to end", self.name, self.pid());
        eventually(&what, limit, async || {
            self.ended().ok_or_else(|| self.log_tail())
        })
        .await
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// The end of what it has written, for messages.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // A line instead of the end of input tells the guard that there is nothing left to do.
        if let Some(mut stdin) = self.guard.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.guard.wait();
    }
}

fn read_log(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

fn log_tail(log: &Path) -> String {
    let text = read_log(log);
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "the end of {}:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    )
}

/// A loopback port that nobody listens on at this moment, and that is given once: a server that restarts, or does not listen
/// yet, has it for its own.
pub fn free_port() -> u16 {
    use rand::RngExt;
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    let mut rng = rand::rng();
    (0..200)
        .map(|_| rng.random_range(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port))
        .expect("a free loopback port")
}
