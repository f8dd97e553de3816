//! Who takes part: processes that can be killed, stopped, and started again with what they left on the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::containerd::Containerd;
use crate::support::process::Process;

/// How long a process may take to end when it is told to; then it is killed.
const END_LIMIT: Duration = Duration::from_secs(60);

/// What a participant is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Role {
    Broker,
    Dispatcher,
    Worker,
    Containerd,
    Registry,
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [
        Self::Broker,
        Self::Dispatcher,
        Self::Worker,
        Self::Containerd,
        Self::Registry,
    ];
}

enum Body {
    Plain {
        command: Box<dyn Fn() -> Command + Send>,
        process: Option<Process>,
    },
    Containerd(Box<Containerd>),
}

/// One participant.
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) name: String,
    body: Body,
    log: PathBuf,
    dir: PathBuf,
    /// Down because of a fault, until then.
    down_until: Option<Instant>,
    /// Told to end; it starts again as soon as it has.
    ends: bool,
    /// Stopped by a signal, until then.
    stopped_until: Option<Instant>,
    /// Endings that no fault asked for.
    pub(crate) own_endings: Vec<String>,
}

impl Member {
    /// Starts a program; `command` makes the call each time it is started.
    pub(crate) fn start(
        role: Role,
        name: &str,
        dir: &Path,
        command: impl Fn() -> Command + Send + 'static,
    ) -> Self {
        let log = dir.join(format!("{name}.log"));
        let body = Body::Plain {
            command: Box::new(command),
            process: None,
        };
        let mut member = Self::new(role, name, body, log, dir);
        member.run();
        member
    }

    /// Takes a containerd in.
    pub(crate) fn containerd(name: &str, dir: &Path, containerd: Containerd) -> Self {
        let body = Body::Containerd(Box::new(containerd));
        Self::new(Role::Containerd, name, body, dir.join("unused"), dir)
    }

    fn new(role: Role, name: &str, body: Body, log: PathBuf, dir: &Path) -> Self {
        Self {
            role,
            name: name.to_owned(),
            body,
            log,
            dir: dir.to_owned(),
            down_until: None,
            ends: false,
            stopped_until: None,
            own_endings: Vec::new(),
        }
    }

    /// The containerd it is.
    pub(crate) fn daemon(&self) -> &Containerd {
        match &self.body {
            Body::Containerd(daemon) => daemon,
            Body::Plain { .. } => panic!("{} is no containerd", self.name),
        }
    }

    fn process(&mut self) -> Option<&mut Process> {
        match &mut self.body {
            Body::Plain { process, .. } => process.as_mut(),
            Body::Containerd(daemon) => Some(daemon.process()),
        }
    }

    fn run(&mut self) {
        match &mut self.body {
            Body::Plain { command, process } => {
                *process = Some(Process::spawn(
                    &self.name,
                    &mut command(),
                    &self.log,
                    &self.dir.join("nothing"),
                ));
            }
            Body::Containerd(daemon) => daemon.start_again(),
        }
    }

    /// Resident memory, in KiB; `None` if it does not run.
    pub(crate) fn resident(&mut self) -> Option<u64> {
        let pid = self.process()?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().split(' ').next()?.parse().ok()
    }

    /// Whether no fault has hold of it.
    pub(crate) fn is_well(&self) -> bool {
        self.down_until.is_none() && self.stopped_until.is_none()
    }

    /// SIGKILL; it starts again after `down`.
    pub(crate) fn kill(&mut self, down: Duration) {
        if let Some(process) = self.process() {
            process.kill();
        }
        self.stopped_until = None;
        self.down_until = Some(Instant::now() + down);
    }

    /// SIGTERM; it starts again once it has ended.
    pub(crate) fn terminate(&mut self) {
        if let Some(process) = self.process() {
            process.signal(Signal::TERM);
        }
        self.ends = true;
        self.down_until = Some(Instant::now() + END_LIMIT);
    }

    /// SIGSTOP, and SIGCONT after `time`.
    pub(crate) fn stop(&mut self, time: Duration) {
        if let Some(process) = self.process() {
            process.signal(Signal::STOP);
        }
        self.stopped_until = Some(Instant::now() + time);
    }

    /// Does what has become due: goes on, starts again.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.stopped_until.is_some_and(|until| until <= now) {
            self.stopped_until = None;
            if let Some(process) = self.process() {
                process.signal(Signal::CONT);
            }
        }
        let ended = self.process().and_then(Process::ended);
        match self.down_until {
            Some(until) if until <= now || (self.ends && ended.is_some()) => {
                if self.ends && ended.is_none() {
                    self.own_endings
                        .push(format!("{} did not end in {END_LIMIT:?}", self.name));
                }
                self.ends = false;
                if let Some(process) = self.process() {
                    process.kill();
                }
                self.down_until = None;
                self.run();
            }
            Some(_) => {}
            None => {
                if let Some(status) = ended {
                    // A supervisor would start it again; whether it should have ended is looked at later.
                    let tail = self
                        .process()
                        .map(|process| process.log_tail())
                        .unwrap_or_default();
                    self.own_endings
                        .push(format!("{} ended by itself ({status}); {tail}", self.name));
                    self.down_until = Some(now + Duration::from_secs(1));
                }
            }
        }
    }

    /// Ends every fault at once.
    pub(crate) fn heal(&mut self) {
        let now = Instant::now();
        self.stopped_until = self.stopped_until.map(|_| now);
        if self
            .process()
            .is_none_or(|process| process.ended().is_some())
        {
            self.down_until = self.down_until.map(|_| now);
        }
        self.tick(now);
    }
}
