//! A service as systemd would start it from its unit, where no systemd runs: by runc, with what the unit says of
//! capabilities, mounts and system calls (systemd.exec(5)). What it says of devices and of shares of the machine is left
//! out: see [`LEFT_OUT`]; tests/deploy has a look at the former.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::pod;
use crate::support::prewarm::Prewarm;

/// Where a unit has the program, and its files of settings.
const PROGRAM: &str = "/usr/local/bin/prewarm";
const SETTINGS: &str = "/etc/prewarm/";
/// Where they are in a test: in what is the service's own by `PrivateTmp`.
const TEST_PROGRAM: &str = "/tmp/program/prewarm";
const TEST_SETTINGS: &str = "/tmp/settings/";
/// `DynamicUser` takes one of 61184 to 65519.
const DYNAMIC_USER: u32 = 61_184;
/// What no sandbox is made of, and what only systemd itself can do.
const LEFT_OUT: [&str; 7] = [
    "Restart",
    "RestartSec",
    "EnvironmentFile",
    "CPUWeight",
    "IOWeight",
    "StateDirectoryMode",
    "SupplementaryGroups",
];
/// What allow-listing and dropped capabilities bring with them: everything that these forbid is in no filter and takes a
/// capability that no unit has.
const IMPLIED: [&str; 4] = [
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectClock",
    "ProtectKernelTunables",
];
/// `CLONE_NEW*` of sched.h: time, mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACES: u64 = 0x80
    | 0x2_0000
    | 0x200_0000
    | 0x400_0000
    | 0x800_0000
    | 0x1000_0000
    | 0x2000_0000
    | 0x4000_0000;
/// sys/mman.h and sys/shm.h.
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const SHM_EXEC: u64 = 0o100_000;
/// errno.h.
const ENOSYS: u64 = 38;
const EAFNOSUPPORT: u64 = 97;

/// A unit of deploy/systemd.
pub(crate) struct Unit {
    settings: BTreeMap<String, String>,
    /// Everything that is made for it.
    dir: PathBuf,
}

impl Unit {
    pub(crate) fn read(name: &str, dir: &Path) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("deploy/systemd")
            .join(name);
        let text = fs::read_to_string(path).unwrap();
        let (_, service) = text.split_once("[Service]\n").unwrap();
        let (service, _) = service.split_once("\n[").unwrap();
        let lines = service.lines().filter(|line| !line.starts_with('#'));
        let settings = lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            settings: settings.collect(),
            dir: dir.to_owned(),
        }
    }

    /// Takes a setting, so that those that nobody took are known in the end.
    fn take(&mut self, name: &str) -> Option<String> {
        self.settings.remove(name)
    }

    fn is_on(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| value == "yes")
    }

    /// Starts it with this file of settings; `writable` are the folders that `ReadWritePaths` and `StateDirectory` stand for,
    /// and `readable` others of the host's `/tmp`, which the service has none of.
    pub(crate) fn start(
        mut self,
        settings: (&str, &str),
        writable: &[PathBuf],
        readable: &[PathBuf],
    ) -> Prewarm {
        fs::create_dir_all(self.dir.join("settings")).unwrap();
        fs::write(self.dir.join("settings").join(settings.0), settings.1).unwrap();
        let call = self.take("ExecStart").unwrap();
        let args: Vec<String> = call
            .split(' ')
            .map(|word| {
                word.replace(PROGRAM, TEST_PROGRAM)
                    .replace(SETTINGS, TEST_SETTINGS)
            })
            .collect();
        let mut bounding = self.take("CapabilityBoundingSet").unwrap();
        if self.is_on("ProtectKernelLogs") {
            bounding = bounding.replace("CAP_SYSLOG", "");
        }
        let is_nobody = self.is_on("DynamicUser");
        // Root has all that is not taken from it; whoever else, none.
        let held: Vec<&str> = bounding.split_whitespace().filter(|_| !is_nobody).collect();
        let user = if is_nobody { DYNAMIC_USER } else { 0 };
        let mounts = self.mounts(writable, readable);
        let no_new_privileges = self.is_on("NoNewPrivileges");
        let seccomp = self.seccomp();
        for name in LEFT_OUT.iter().chain(&IMPLIED) {
            self.take(name);
        }
        assert!(
            self.settings.is_empty(),
            "not known here: {:?}",
            self.settings
        );
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": user, "gid": user}, "args": args, "cwd": "/",
                "env": ["PATH=/usr/bin:/bin", "PREWARM_LOG=info,prewarm=debug", "PREWARM_LOG_FORMAT=json"],
                "capabilities": {
                    "bounding": bounding.split_whitespace().collect::<Vec<_>>(), "effective": held, "permitted": held,
                },
                "noNewPrivileges": no_new_privileges,
            },
            "root": {"path": self.root(), "readonly": true},
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": "mount"}],
                "maskedPaths": ["/dev/kmsg", "/proc/kmsg", "/usr/lib/modules"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"],
                "seccomp": seccomp,
            },
        });
        pod::run_bundle(&self.dir, &spec)
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The file system of the host, to read, with what is the service's own in it.
    fn mounts(&mut self, writable: &[PathBuf], readable: &[PathBuf]) -> Vec<Value> {
        assert_eq!(self.take("ProtectSystem").as_deref(), Some("strict"));
        let bind = |from: &Path, to: &Path, how: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", how]});
        let fresh = |to: &str, mode: &str| json!({"destination": to, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", mode]});
        let mut mounts = Vec::new();
        for entry in fs::read_dir("/").unwrap() {
            let place = entry.unwrap().path();
            let here = self.root().join(place.strip_prefix("/").unwrap());
            fs::create_dir_all(self.root()).unwrap();
            match fs::read_link(&place) {
                Ok(target) => std::os::unix::fs::symlink(target, here).unwrap(),
                Err(_)
                    if ["/proc", "/dev", "/tmp"]
                        .iter()
                        .any(|own| place == Path::new(own)) => {}
                Err(_) if place.is_dir() => mounts.push(bind(&place, &place, "rro")),
                Err(_) => {}
            }
        }
        let hide = if self.take("ProtectProc").as_deref() == Some("invisible") {
            "hidepid=invisible"
        } else {
            "rw"
        };
        mounts.push(json!({
            "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev", hide],
        }));
        if self.is_on("PrivateDevices") {
            // The runtime makes in it what every service has.
            mounts.push(json!({
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"],
            }));
        } else {
            mounts.push(bind(Path::new("/dev"), Path::new("/dev"), "rw"));
        }
        match self.take("ProtectHome").as_deref() {
            // As all the rest.
            Some("read-only") => {}
            Some("yes") => mounts.extend(["/root", "/home"].map(|home| fresh(home, "mode=000"))),
            other => panic!("ProtectHome={other:?}"),
        }
        assert!(self.is_on("ProtectKernelModules") && self.is_on("PrivateTmp"));
        mounts.extend(["/tmp", "/var/tmp"].map(|own| fresh(own, "mode=1777")));
        let program = Path::new(env!("CARGO_BIN_EXE_prewarm"));
        mounts.push(bind(program, Path::new(TEST_PROGRAM), "ro"));
        mounts.push(bind(
            &self.dir.join("settings"),
            Path::new(TEST_SETTINGS),
            "ro",
        ));
        mounts.extend(readable.iter().map(|folder| bind(folder, folder, "rro")));
        let own = [self.take("ReadWritePaths"), self.take("StateDirectory")];
        let own = own.iter().flatten().flat_map(|paths| paths.split(' '));
        assert_eq!(own.count(), writable.len(), "a folder for each");
        mounts.extend(writable.iter().map(|folder| bind(folder, folder, "rw")));
        mounts
    }

    /// The filter, as the Open Container Initiative's runtime specification has it. What is not in it ends the process, as
    /// systemd does it.
    fn seccomp(&mut self) -> Value {
        assert_eq!(
            self.take("SystemCallArchitectures").as_deref(),
            Some("native")
        );
        let mut allowed = BTreeSet::new();
        expand(&self.take("SystemCallFilter").unwrap(), &mut allowed);
        let mut rules = Vec::new();
        let mut instead = |names: &[&str], more: &[Value]| {
            for name in names {
                // What the filter forbids stays forbidden.
                if allowed.remove(*name) {
                    rules.extend(more.iter().map(|rule| {
                        let mut rule = rule.clone();
                        rule["names"] = json!([name]);
                        rule
                    }));
                }
            }
        };
        let allow = |args: Value| json!({"action": "SCMP_ACT_ALLOW", "args": [args]});
        let refuse = |errno: u64, args: Value| json!({"action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args});
        let masked = |index: u32, mask: u64, value: u64| json!({"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value});
        let compared = |op: &str, value: u64| json!({"index": 0, "op": op, "value": value});
        if self.is_on("MemoryDenyWriteExecute") {
            let both = PROT_WRITE | PROT_EXEC;
            instead(
                &["mmap"],
                &[0, PROT_WRITE, PROT_EXEC].map(|value| allow(masked(2, both, value))),
            );
            instead(
                &["mprotect", "pkey_mprotect"],
                &[allow(masked(2, PROT_EXEC, 0))],
            );
            instead(&["shmat"], &[allow(masked(2, SHM_EXEC, 0))]);
        }
        if self.is_on("RestrictNamespaces") {
            instead(&["clone", "unshare"], &[allow(masked(0, NAMESPACES, 0))]);
            // Its flags are in memory, where no filter looks: glibc takes clone in its place.
            instead(&["clone3"], &[refuse(ENOSYS, json!([]))]);
            instead(&["setns"], &[]);
        }
        if self.is_on("RestrictRealtime") {
            // SCHED_OTHER, SCHED_BATCH and SCHED_IDLE of sched.h.
            let normal = [0, 3, 5]
                .map(|policy| allow(json!({"index": 1, "op": "SCMP_CMP_EQ", "value": policy})));
            instead(&["sched_setscheduler"], &normal);
        }
        if self.is_on("LockPersonality") {
            instead(&["personality"], &[allow(compared("SCMP_CMP_EQ", 0))]);
        }
        let families = self.take("RestrictAddressFamilies").unwrap();
        instead(&["socket"], &sockets(&families, &allow, &refuse, &compared));
        rules.push(json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}));
        let architecture = format!("SCMP_ARCH_{}", std::env::consts::ARCH.to_uppercase());
        json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": [architecture], "syscalls": rules})
    }
}

/// Sockets of these families, and that there are no others: glibc asks for netlink's and does without.
fn sockets(
    families: &str,
    allow: &impl Fn(Value) -> Value,
    refuse: &impl Fn(u64, Value) -> Value,
    compared: &impl Fn(&str, u64) -> Value,
) -> Vec<Value> {
    let known = |name: &str| match name {
        "AF_UNIX" => 1,
        "AF_INET" => 2,
        "AF_INET6" => 10,
        other => panic!("{other} is not known here"),
    };
    let families: BTreeSet<u64> = families.split(' ').map(known).collect();
    let last = *families.last().unwrap();
    let mut rules: Vec<Value> = families
        .iter()
        .map(|family| allow(compared("SCMP_CMP_EQ", *family)))
        .collect();
    let between = (0..last).filter(|family| !families.contains(family));
    let others = between.map(|family| compared("SCMP_CMP_EQ", family));
    let others = others.chain([compared("SCMP_CMP_GT", last)]);
    rules.extend(others.map(|args| refuse(EAFNOSUPPORT, json!([args]))));
    rules
}

/// The system calls of a set, by systemd's own lists.
fn expand(set: &str, into: &mut BTreeSet<String>) {
    let output = Command::new("systemd-analyze")
        .args(["--no-pager", "syscall-filter", set])
        .output()
        .unwrap_or_else(|error| panic!("systemd-analyze does not start: {error}"));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for name in text.lines().skip(1).map(str::trim) {
        if name.starts_with('@') {
            expand(name, into);
        } else if !name.is_empty() && !name.starts_with('#') {
            into.insert(name.to_owned());
        }
    }
}
