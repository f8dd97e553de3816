//! containerd of three generations, each instance with a root, a state folder and a socket of its own. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use tempfile::TempDir;

use super::cri::Cri;
use super::process::Process;
use super::wait::eventually;
use super::{parts, process};

/// How long a daemon may take until its CRI plugin answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The namespace of the images that kubelet sees.
pub const NAMESPACE: &str = "k8s.io";

/// What does not work without devices and tools that a test machine lacks, or reaches outside the instance's folder.
const DISABLED: [&str; 10] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
];

/// A generation of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerdVersion {
    /// 1.6, of Debian 12.
    V1_6,
    /// 1.7, of Debian 13.
    V1_7,
    /// 2.1, of Debian 14.
    V2_1,
}

impl ContainerdVersion {
    /// All three.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    fn part(self) -> &'static str {
        match self {
            Self::V1_6 => "containerd-1.6",
            Self::V1_7 => "containerd-1.7",
            Self::V2_1 => "containerd-2.1",
        }
    }
}

/// A containerd with its CRI plugin.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    version: ContainerdVersion,
    dir: TempDir,
    tuning: Tuning,
    network: Option<String>,
}

/// How a containerd is set up for pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tuning {
    /// As it comes.
    None,
    /// As well as its own settings and what it finds on PATH allow: ten downloads at once, and the fastest program that it
    /// inflates with (igzip from 2.0 on, else unpigz).
    Best,
}

impl Tuning {
    /// The part with the program that inflates.
    fn inflater(self, version: ContainerdVersion) -> Option<&'static str> {
        match (self, version) {
            (Self::None, _) => None,
            (Self::Best, ContainerdVersion::V2_1) => Some("igzip"),
            (Self::Best, _) => Some("unpigz"),
        }
    }

    /// Downloads of one pull at once; 3 is what containerd has by default.
    fn downloads(self) -> u32 {
        match self {
            Self::None => 3,
            Self::Best => 10,
        }
    }
}

impl Containerd {
    /// Starts one that has no image and knows no registry.
    pub async fn start(version: ContainerdVersion) -> Self {
        Self::start_with(version, Tuning::None).await
    }

    /// Starts one that is set up to pull as fast as it can.
    #[allow(dead_code, reason = "only benchmarks compare with it")]
    pub async fn start_tuned(version: ContainerdVersion) -> Self {
        Self::start_with(version, Tuning::Best).await
    }

    async fn start_with(version: ContainerdVersion, tuning: Tuning) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "containerd needs root: run these tests as root"
        );
        Self::start_in(parts::temp_dir(), version, tuning, "", None).await
    }

    /// Starts one with more in its configuration: whole tables, in TOML.
    #[allow(dead_code, reason = "only the tests of pulls need another set-up")]
    pub async fn start_with_config(version: ContainerdVersion, tables: &str) -> Self {
        Self::start_in(parts::temp_dir(), version, Tuning::None, tables, None).await
    }

    /// Starts one whose `root` is a file system of its own, of so many MiB.
    #[allow(dead_code, reason = "only the tests of pulls fill disks")]
    pub async fn start_on_small_disk(version: ContainerdVersion, mebibytes: u32) -> Self {
        Self::start_in_network(version, mebibytes, None).await
    }

    /// The same in a network namespace with a name, ip-netns(8).
    #[allow(dead_code, reason = "only chaos has networks")]
    pub async fn start_in_network(
        version: ContainerdVersion,
        mebibytes: u32,
        network: Option<String>,
    ) -> Self {
        let dir = parts::temp_dir();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("a folder for the disk");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0711")])
            .arg("small-disk")
            .arg(&root)
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "cannot mount a tmpfs: this needs root"
        );
        Self::start_in(dir, version, Tuning::None, "", network).await
    }

    async fn start_in(
        dir: TempDir,
        version: ContainerdVersion,
        tuning: Tuning,
        more: &str,
        network: Option<String>,
    ) -> Self {
        std::fs::create_dir(dir.path().join("certs.d")).expect("a folder for hosts.toml files");
        let config = config(version, dir.path(), tuning) + more;
        std::fs::write(dir.path().join("config.toml"), config).expect("containerd's configuration");
        let mut process = spawn(version, dir.path(), tuning, network.as_deref());
        answers(&mut process, version, dir.path()).await;
        Self {
            process,
            version,
            dir,
            tuning,
            network,
        }
    }

    /// Its gRPC socket.
    pub fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// Its `root` folder, with the content store and the snapshots.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Its `config_path`, with one folder for each registry host.
    pub fn certs_dir(&self) -> PathBuf {
        self.dir.path().join("certs.d")
    }

    /// A folder for the test's own use on the same file system; gone with the instance.
    pub fn scratch(&self) -> PathBuf {
        let dir = self.dir.path().join("scratch");
        std::fs::create_dir_all(&dir).expect("a scratch folder");
        dir
    }

    /// Its generation.
    pub fn version(&self) -> ContainerdVersion {
        self.version
    }

    /// Makes the registry at `address` (`host:port`) known as one that speaks plain HTTP.
    pub fn allow_registry(&self, address: &str) {
        let hosts = format!(
            "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        self.registry_hosts(address, &hosts);
    }

    /// Writes `hosts.toml` for the registry at `address`.
    pub fn registry_hosts(&self, address: &str, hosts_toml: &str) {
        let dir = self.certs_dir().join(address);
        std::fs::create_dir_all(&dir).expect("a folder for hosts.toml");
        std::fs::write(dir.join("hosts.toml"), hosts_toml).expect("hosts.toml");
    }

    /// A gRPC channel to it.
    pub async fn channel(&self) -> Channel {
        containerd_client::connect(self.socket())
            .await
            .expect("a connection to containerd")
    }

    /// A client of its CRI plugin.
    pub async fn cri(&self) -> Cri {
        Cri::connect(&self.socket())
            .await
            .expect("a connection to containerd")
    }

    /// What this generation's `ctr` prints, in the namespace `k8s.io`.
    ///
    /// # Panics
    /// When it fails.
    pub async fn ctr(&self, args: &[&str]) -> String {
        let output = tokio::process::Command::new(parts::program(self.version.part(), "ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", NAMESPACE])
            .args(args)
            .output()
            .await
            .expect("ctr to start");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "ctr {args:?} failed:\n{stdout}{stderr}"
        );
        stdout
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// Starts it again with more in its configuration: whole tables, in TOML.
    #[allow(dead_code, reason = "only the tests of pulls change the set-up")]
    pub async fn restart_with_config(&mut self, tables: &str) {
        let path = self.dir.path().join("config.toml");
        let config = std::fs::read_to_string(&path).expect("containerd's configuration") + tables;
        std::fs::write(path, config).expect("containerd's configuration");
        self.restart().await;
    }

    /// Starts it again with the same folders and socket, stopping it first if it runs.
    pub async fn restart(&mut self) {
        if self.process.ended().is_none() {
            self.process.stop().await;
        }
        self.start_again();
        answers(&mut self.process, self.version, self.dir.path()).await;
    }

    /// Starts it again, without waiting until it answers.
    pub fn start_again(&mut self) {
        let network = self.network.as_deref();
        self.process = spawn(self.version, self.dir.path(), self.tuning, network);
    }

    /// The process: its log, its id, signals.
    pub fn process(&mut self) -> &mut process::Process {
        &mut self.process
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process.kill();
        unmount_below(self.dir.path());
    }
}

fn socket(dir: &Path) -> PathBuf {
    // In a folder of its own, as /run/containerd is: a container is given the folder.
    dir.join("run/containerd.sock")
}

fn spawn(version: ContainerdVersion, dir: &Path, tuning: Tuning, network: Option<&str>) -> Process {
    let program = parts::program(version.part(), "containerd");
    let mut command = match network {
        None => Command::new(program),
        Some(network) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net=/run/netns/{network}"))
                .arg("--")
                .arg(program);
            command
        }
    };
    command.arg("--config").arg(dir.join("config.toml"));
    if let Some(inflater) = tuning.inflater(version) {
        let program = parts::program(inflater, inflater);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = program.parent().expect("the part's folder of programs");
        let path = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path).expect("PATH"));
    }
    Process::spawn(version.part(), &mut command, &dir.join("log"), dir)
}

/// Waits until its CRI plugin answers.
async fn answers(process: &mut Process, version: ContainerdVersion, dir: &Path) {
    let name = version.part();
    eventually(
        &format!("the CRI plugin of {name}"),
        START_LIMIT,
        async || {
            assert!(
                process.ended().is_none(),
                "{name} ended at once; {}",
                process.log_tail()
            );
            let answer = async {
                Cri::connect(&socket(dir))
                    .await?
                    .list_images()
                    .await
                    .map_err(|status| status.to_string())
            };
            answer
                .await
                .map_err(|error: String| format!("{error}; {}", process.log_tail()))
        },
    )
    .await;
}

/// The configuration: version 2 of the format for 1.x, version 3 for 2.x (`containerd config default` of each).
fn config(version: ContainerdVersion, dir: &Path, tuning: Tuning) -> String {
    let dir = dir.display();
    let downloads = tuning.downloads();
    let disabled = DISABLED.map(|plugin| format!("\"{plugin}\"")).join(", ");
    let (format, cri) = match version {
        ContainerdVersion::V1_6 | ContainerdVersion::V1_7 => (
            2,
            format!(
                r#"
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
max_concurrent_downloads = {downloads}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{dir}/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/cni"
conf_dir = "{dir}/cni"
"#
            ),
        ),
        ContainerdVersion::V2_1 => (
            3,
            format!(
                r#"
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = {downloads}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
max_concurrent_downloads = {downloads}
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{dir}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{dir}/cni"]
conf_dir = "{dir}/cni"
"#
            ),
        ),
    };
    format!(
        r#"version = {format}
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [{disabled}]
[grpc]
address = "{dir}/run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/opt"
{cri}"#
    )
}

/// Unmounts what is still mounted below `dir`, so that the folder can be removed.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Field 5 of a line is the mount point (proc_pid_mountinfo(5)); a later line may be mounted on an earlier one.
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir));
    for point in below.collect::<Vec<_>>().into_iter().rev() {
        let unmounted = Command::new("umount").args(["--lazy", point]).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {point}");
        }
    }
}
