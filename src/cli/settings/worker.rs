//! What a worker is told of its node and of the runtime it pulls into.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::kubernetes::KubernetesArgs;
use super::labels::labels;
use super::{Check, given};
use crate::domain::name::NodeName;
use crate::domain::node::MAX_CAPACITY;
use crate::image::containerd::Nice;
use crate::image::size::{Bandwidth, ByteSize, DiskReserve};
use crate::kubernetes::pod::Pod;
use crate::kubernetes::standing::Choices;

/// Where a worker keeps what would not survive a restart of it, unless a setting says otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/prewarm";
/// Least memory for pulls: a large layer's threads, and one part of it on its way.
const MIN_MEMORY_LIMIT: ByteSize = ByteSize(32 << 20);

/// The node and its runtime.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Node")]
pub struct WorkerArgs {
    /// The node's name [default: the host name; in a pod what its token says]
    #[arg(long, env = "PREWARM_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Labels for selectors: k=v,k=v; they outweigh those of Kubernetes
    #[arg(long, env = "PREWARM_LABELS", value_name = "LABELS")]
    pub labels: Option<String>,
    /// Pulls at once
    #[arg(
        long,
        env = "PREWARM_CAPACITY",
        value_name = "NUMBER",
        default_value = "3"
    )]
    pub capacity: String,
    /// Bytes a second all pulls of the node may take together [default: no limit]
    #[arg(long, env = "PREWARM_BANDWIDTH_LIMIT", value_name = "BYTES")]
    pub bandwidth_limit: Option<String>,
    /// Memory that all pulls of the node may use for bytes on their way
    #[arg(
        long,
        env = "PREWARM_MEMORY_LIMIT",
        value_name = "BYTES",
        default_value = "256MiB"
    )]
    pub memory_limit: String,
    /// Write everything to the disk before an image gets its name
    #[arg(
        long,
        env = "PREWARM_SYNC_FILESYSTEM",
        value_name = "BOOL",
        default_value = "false"
    )]
    pub sync_filesystem: String,
    /// How much pulls stand back for others on the processor and the disk, 0 to 19
    #[arg(
        long,
        env = "PREWARM_NICE",
        value_name = "NUMBER",
        default_value = "10"
    )]
    pub nice: String,
    /// How much of the disk of images stays free: a percentage, or bytes
    #[arg(
        long,
        env = "PREWARM_MIN_FREE_DISK",
        value_name = "SPACE",
        default_value = "10%"
    )]
    pub min_free_disk: String,
    /// Where ends of pulls are kept until the broker has them; or none [default: /var/lib/prewarm; none if simulated]
    #[arg(long, env = "PREWARM_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// containerd, or simulated for a look without root
    #[arg(
        long,
        env = "PREWARM_RUNTIME",
        value_name = "RUNTIME",
        default_value = "containerd"
    )]
    pub runtime: String,
    /// Which containerd.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
    /// What Kubernetes says.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}

/// Which containerd, and what of it.
#[derive(clap::Args, Clone, Default)]
pub struct ContainerdArgs {
    /// containerd's socket
    #[arg(
        long,
        env = "PREWARM_CONTAINERD_ADDRESS",
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_address: String,
    /// containerd's namespace: Kubernetes' is k8s.io
    #[arg(
        long,
        env = "PREWARM_CONTAINERD_NAMESPACE",
        value_name = "NAME",
        default_value = "k8s.io"
    )]
    pub containerd_namespace: String,
    /// containerd's snapshotter
    #[arg(
        long,
        env = "PREWARM_SNAPSHOTTER",
        value_name = "NAME",
        default_value = "overlayfs"
    )]
    pub snapshotter: String,
}

/// Where images go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RuntimeChoice {
    /// Into containerd.
    Containerd(ContainerdSettings),
    /// Nowhere.
    Simulated,
}

/// Which containerd, and what of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerdSettings {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace the images go to.
    pub namespace: String,
    /// The snapshotter they are unpacked with.
    pub snapshotter: String,
}

/// Checked settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub node: NodeName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether Kubernetes is asked for more, and what its answers mean for pulls.
    pub kubernetes: Option<Choices>,
    /// Pulls at once.
    pub capacity: u32,
    /// How much of the images' disk stays free.
    pub min_free_disk: DiskReserve,
    /// Bytes in a second that all pulls together may take.
    pub bandwidth_limit: Option<Bandwidth>,
    /// Memory for bytes on their way, of all pulls together.
    pub memory_limit: ByteSize,
    /// Whether everything is on the disk before an image is named.
    pub sync_filesystem: bool,
    /// How much pulls stand back.
    pub nice: Nice,
    /// Where ends of pulls are kept until the broker has them.
    pub state_dir: Option<PathBuf>,
    /// Where images go.
    pub runtime: RuntimeChoice,
}

impl WorkerArgs {
    /// Checks the settings; `host_name` is this machine's, `pod` the one we run in.
    pub fn check(
        &self,
        host_name: &str,
        pod: Option<&Pod>,
        check: &mut Check<'_>,
    ) -> Option<NodeSettings> {
        let kubernetes = self.kubernetes.check(pod, check);
        let node = match (given(self.node.as_deref()), kubernetes) {
            (Some(name), _) => check.parsed("node", Some(name)),
            (None, Some(Some((_, pod)))) => Self::node_of_pod(pod, check),
            (None, Some(None) | None) => Self::node_of_host(host_name, check),
        };
        let labels = labels("labels", given(self.labels.as_deref()), check);
        let capacity = check.number("capacity", Some(&self.capacity), (1, MAX_CAPACITY));
        let bandwidth = given(self.bandwidth_limit.as_deref());
        let bandwidth_limit = match bandwidth {
            None => Some(None),
            given => check.parsed("bandwidth-limit", given).map(Some),
        };
        let memory_limit = self.memory_limit(check);
        let sync_filesystem = check.parsed("sync-filesystem", Some(&self.sync_filesystem));
        let nice = check.parsed("nice", Some(&self.nice));
        let min_free_disk = check.parsed("min-free-disk", Some(&self.min_free_disk));
        let runtime = match self.runtime.trim() {
            "containerd" => self.containerd.check(check).map(RuntimeChoice::Containerd),
            "simulated" => Some(RuntimeChoice::Simulated),
            other => {
                check.problem(
                    "runtime",
                    format!("{other:?} is neither containerd nor simulated"),
                );
                None
            }
        };
        let state_dir = self.state_dir(runtime.as_ref(), check);
        Some(NodeSettings {
            node: node?,
            labels,
            kubernetes: kubernetes?.map(|(choices, _)| choices),
            capacity: capacity?,
            min_free_disk: min_free_disk?,
            bandwidth_limit: bandwidth_limit?,
            memory_limit: memory_limit?,
            sync_filesystem: sync_filesystem?,
            nice: nice?,
            state_dir,
            runtime: runtime?,
        })
    }

    fn memory_limit(&self, check: &mut Check<'_>) -> Option<ByteSize> {
        let limit = check.parsed("memory-limit", Some(&self.memory_limit))?;
        if limit >= MIN_MEMORY_LIMIT {
            return Some(limit);
        }
        check.problem(
            "memory-limit",
            format!("{limit} is too little for one layer; give {MIN_MEMORY_LIMIT} or more"),
        );
        None
    }

    /// The host name would be the pod's.
    fn node_of_pod(pod: &Pod, check: &mut Check<'_>) -> Option<NodeName> {
        if pod.node.is_none() {
            check.problem(
                "node",
                "the pod's token does not say on which node it is; set PREWARM_NODE from the field spec.nodeName",
            );
        }
        check.parsed("node", pod.node.as_deref())
    }

    fn state_dir(&self, runtime: Option<&RuntimeChoice>, check: &mut Check<'_>) -> Option<PathBuf> {
        match given(self.state_dir.as_deref()) {
            Some("none") => None,
            Some(directory) if Path::new(directory).is_absolute() => Some(directory.into()),
            Some(other) => {
                check.problem(
                    "state-dir",
                    format!("{other:?} is neither an absolute path of a directory nor none"),
                );
                None
            }
            None => (runtime != Some(&RuntimeChoice::Simulated)).then(|| DEFAULT_STATE_DIR.into()),
        }
    }

    /// A host name may have upper-case letters (RFC 1123, section 2.1); kubelet lowers them, too.
    fn node_of_host(host_name: &str, check: &mut Check<'_>) -> Option<NodeName> {
        let name = host_name.to_ascii_lowercase();
        match name.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                check.problem(
                    "node",
                    format!("the host name cannot be the node's name: {error}; give one"),
                );
                None
            }
        }
    }
}

impl ContainerdArgs {
    /// Checks the settings.
    pub fn check(&self, check: &mut Check<'_>) -> Option<ContainerdSettings> {
        let address = self.containerd_address.trim();
        let address = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        if !address.is_absolute() {
            check.problem(
                "containerd-address",
                format!(
                    "{:?} is not an absolute path of a socket",
                    self.containerd_address
                ),
            );
        }
        let named = |name: &str, text: &str, check: &mut Check<'_>| {
            let legal = !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !legal {
                check.problem(
                    name,
                    format!("{text:?} is not a name: letters, digits, '-', '_' and '.'"),
                );
            }
            text.to_owned()
        };
        Some(ContainerdSettings {
            address,
            namespace: named(
                "containerd-namespace",
                self.containerd_namespace.trim(),
                check,
            ),
            snapshotter: named("snapshotter", self.snapshotter.trim(), check),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::Sources;

    fn args() -> WorkerArgs {
        WorkerArgs {
            capacity: "3".to_owned(),
            memory_limit: "256MiB".to_owned(),
            sync_filesystem: "false".to_owned(),
            nice: "10".to_owned(),
            min_free_disk: "10%".to_owned(),
            runtime: "containerd".to_owned(),
            containerd: ContainerdArgs {
                containerd_address: "/run/containerd/containerd.sock".to_owned(),
                containerd_namespace: "k8s.io".to_owned(),
                snapshotter: "overlayfs".to_owned(),
            },
            kubernetes: KubernetesArgs {
                kubernetes: "auto".to_owned(),
                when_not_ready: "pull".to_owned(),
                when_cordoned: "pull".to_owned(),
            },
            ..WorkerArgs::default()
        }
    }

    fn checked(args: &WorkerArgs, host: &str) -> Result<NodeSettings, Vec<String>> {
        let sources = Sources::default();
        let mut check = Check::new(&sources);
        let settings = args.check(host, None, &mut check);
        check.done(settings).map_err(|bad| bad.0)
    }

    fn in_a_pod(args: &WorkerArgs, node: Option<&str>) -> Result<NodeSettings, Vec<String>> {
        let pod = Pod {
            node: node.map(str::to_owned),
        };
        let sources = Sources::default();
        let mut check = Check::new(&sources);
        let settings = args.check("prewarm-worker-x7k2p", Some(&pod), &mut check);
        check.done(settings).map_err(|bad| bad.0)
    }

    #[test]
    fn in_a_pod_the_node_is_the_one_of_its_token_and_never_the_pods_host_name() {
        let settings = in_a_pod(&args(), Some("node-1")).unwrap();
        assert_eq!(settings.node.as_str(), "node-1");
        assert!(settings.kubernetes.is_some());
        let problems = in_a_pod(&args(), None).unwrap_err();
        assert!(problems[0].contains("spec.nodeName"), "{problems:?}");
        let named = WorkerArgs {
            node: Some("node-2".to_owned()),
            ..args()
        };
        assert_eq!(in_a_pod(&named, None).unwrap().node.as_str(), "node-2");
    }

    #[test]
    fn kubernetes_is_asked_when_it_can_be_and_when_it_has_to_be() {
        let asked = |when: &str, pod: bool| {
            let mut args = args();
            args.node = Some("n".to_owned());
            args.kubernetes.kubernetes = when.to_owned();
            let settings = if pod {
                in_a_pod(&args, None)
            } else {
                checked(&args, "n")
            };
            settings.map(|settings| settings.kubernetes.is_some())
        };
        assert_eq!(asked("auto", true), Ok(true));
        assert_eq!(asked("auto", false), Ok(false));
        assert_eq!(asked("off", true), Ok(false));
        assert_eq!(asked("on", true), Ok(true));
        for (when, said) in [("on", "no worker in a pod"), ("always", "neither auto")] {
            let problems = asked(when, false).unwrap_err();
            assert!(problems[0].contains(said), "{problems:?}");
        }
        let mut args = args();
        args.kubernetes.when_cordoned = "drain".to_owned();
        let problems = checked(&args, "n").unwrap_err();
        assert!(
            problems[0].starts_with("--when-cordoned: \"drain\" is neither pull nor wait"),
            "{problems:?}"
        );
    }

    #[test]
    fn the_host_name_is_the_nodes_name() {
        let settings = checked(&args(), "Node-1.Example.COM").unwrap();
        assert_eq!(settings.node.as_str(), "node-1.example.com");
        assert_eq!(settings.capacity, 3);
        let problems = checked(&args(), "my_host").unwrap_err();
        assert!(
            problems[0].contains("the host name cannot be the node's name"),
            "{problems:?}"
        );
    }

    #[test]
    fn results_are_kept_on_the_disk_of_nodes_that_are_real() {
        let directory = |given: Option<&str>, runtime: &str| {
            let args = WorkerArgs {
                state_dir: given.map(str::to_owned),
                runtime: runtime.to_owned(),
                ..args()
            };
            checked(&args, "a").unwrap().state_dir
        };
        let default = Some(PathBuf::from(DEFAULT_STATE_DIR));
        assert_eq!(directory(None, "containerd"), default);
        assert_eq!(directory(None, "simulated"), None);
        assert_eq!(directory(Some("none"), "containerd"), None);
        assert_eq!(directory(Some("/x"), "simulated"), Some("/x".into()));
    }

    #[test]
    fn labels_are_pairs() {
        let labelled = |text: &str| {
            checked(
                &WorkerArgs {
                    labels: Some(text.to_owned()),
                    ..args()
                },
                "a",
            )
        };
        let labels = labelled("pool=gpu, topology.kubernetes.io/zone=z1,empty=")
            .unwrap()
            .labels;
        assert_eq!(labels["topology.kubernetes.io/zone"], "z1");
        assert_eq!(labels["empty"], "");
        for (bad, said) in [
            ("pool", "is not a label"),
            ("a b=c", "not a label key"),
            ("a=b c", "not a label value"),
            ("a=1,a=2", "there twice"),
        ] {
            let problems = labelled(bad).unwrap_err();
            assert!(
                problems[0].starts_with("--labels: ") && problems[0].contains(said),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let mut args = args();
        args.node = Some("node one".to_owned());
        args.capacity = "65".to_owned();
        args.min_free_disk = "lots".to_owned();
        args.bandwidth_limit = Some("fast".to_owned());
        args.memory_limit = "1MiB".to_owned();
        args.sync_filesystem = "perhaps".to_owned();
        args.nice = "20".to_owned();
        args.state_dir = Some("state".to_owned());
        args.containerd.containerd_address = "containerd.sock".to_owned();
        args.containerd.snapshotter = "over lay".to_owned();
        let problems = checked(&args, "a").unwrap_err();
        let begins = [
            "--node: \"node one\" is not a DNS-1123 subdomain",
            "--capacity: \"65\"",
            "--bandwidth-limit: ",
            "--memory-limit: 1.0 MiB is too little",
            "--sync-filesystem: ",
            "--nice: \"20\" is not a niceness",
            "--min-free-disk: ",
            "--containerd-address: ",
            "--snapshotter: ",
            "--state-dir: ",
        ];
        assert_eq!(problems.len(), begins.len(), "{problems:#?}");
        for (problem, begin) in problems.iter().zip(begins) {
            assert!(
                problem.starts_with(begin),
                "{problem} should begin with {begin}"
            );
        }
    }
}
