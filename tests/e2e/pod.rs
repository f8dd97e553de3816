//! A pod's container as kubelet and a runtime would make it: from the image that `make image` packs and what the rendered
//! manifests say, run by runc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::parts;
use crate::support::prewarm::{Prewarm, prewarm};

/// What Kubernetes calls Linux's names of capabilities without.
const PREFIX: &str = "CAP_";
/// What every container gets from its runtime (containerd's and CRI-O's defaults), and what is hidden from it.
const MOUNTS: [(&str, &str, &[&str]); 4] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
];
const MASKED: [&str; 6] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Runs a program to its end, which has to be a good one, and returns its standard output.
fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The product's container image, unpacked.
pub(crate) struct Image {
    dir: TempDir,
    /// Its configuration, as the OCI image specification has it.
    pub(crate) config: Value,
}

impl Image {
    /// Packs the program under test as `make image` packs the one to ship.
    pub(crate) fn build() -> Self {
        let dir = parts::temp_dir();
        let [program, archive, oci, root] =
            ["prewarm", "image.tar", "oci", "root"].map(|name| dir.path().join(name));
        // What `make image` packs has no symbols either; those of a test's are most of it.
        output(
            Command::new("strip")
                .arg("-o")
                .arg(&program)
                .arg(env!("CARGO_BIN_EXE_prewarm")),
        );
        output(
            // Offline: in a network that has nothing in it.
            Command::new("unshare")
                .arg("--net")
                .arg(repository().join("deploy/image/build"))
                .arg(&program)
                .arg(&archive),
        );
        let unpack = |archive: &Path, folder: &Path| {
            fs::create_dir_all(folder).unwrap();
            let mut tar = Command::new("tar");
            output(tar.arg("-xf").arg(archive).arg("-C").arg(folder));
        };
        unpack(&archive, &oci);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            oci.join("blobs").join(digest.replace(':', "/"))
        };
        let index = read_json(&oci.join("index.json"));
        let manifest = read_json(&blob(&index["manifests"][0]));
        for layer in manifest["layers"].as_array().unwrap() {
            unpack(&blob(layer), &root);
        }
        let config = read_json(&blob(&manifest["config"]))["config"].clone();
        Self { dir, config }
    }

    /// Its root file system.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn entry_point(&self) -> Vec<Value> {
        self.config["Entrypoint"].as_array().unwrap().clone()
    }

    fn user(&self) -> Value {
        let user = self.config["User"].as_str().unwrap();
        let (uid, gid) = user.split_once(':').unwrap();
        json!({"uid": uid.parse::<u32>().unwrap(), "gid": gid.parse::<u32>().unwrap()})
    }

    /// A container as the image alone says, with no rights at all: these arguments, and these files in it.
    pub(crate) fn call(&self, args: &[&str], env: &[(&str, &str)], files: &[Volume]) -> Prewarm {
        let container = Container {
            user: self.user(),
            args: args.iter().map(|arg| json!(arg)).collect(),
            env: env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            volumes: files.to_vec(),
            ..Container::default()
        };
        self.run(&container)
    }

    /// The container of a pod template's only one; `volumes` says where the host's folder of each volume is, and where it
    /// appears if that is another place than the manifest has. `env` is what the secrets have, `files` what kubelet adds.
    pub(crate) fn pod(
        &self,
        pod: &Value,
        env: &[(&str, &str)],
        volume: impl Fn(&str) -> (PathBuf, Option<PathBuf>),
        files: &[Volume],
    ) -> Prewarm {
        let only = |list: &Value| {
            let list = list.as_array().unwrap();
            assert_eq!(list.len(), 1, "{list:?}");
            list[0].clone()
        };
        let main = only(&pod["containers"]);
        let (of_pod, rights) = (&pod["securityContext"], &main["securityContext"]);
        assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(rights["readOnlyRootFilesystem"], json!(true));
        assert_eq!(rights["allowPrivilegeEscalation"], json!(false));
        assert_eq!(of_pod["seccompProfile"]["type"], json!("RuntimeDefault"));
        let none = Vec::new();
        let capabilities = rights["capabilities"]["add"].as_array().unwrap_or(&none);
        let mut variables: Vec<String> = env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        for variable in main["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            // A test says another port than that which a pod has for itself.
            let is_given = env.iter().any(|(given, _)| *given == name);
            if let Some(value) = variable["value"].as_str().filter(|_| !is_given) {
                variables.push(format!("{name}={value}"));
            }
        }
        let mounts = main["volumeMounts"].as_array().unwrap().iter();
        let volumes = mounts.map(|mount| {
            let (host, place) = volume(mount["name"].as_str().unwrap());
            let said = || PathBuf::from(mount["mountPath"].as_str().unwrap());
            Volume {
                host,
                place: place.unwrap_or_else(said),
                read_only: mount["readOnly"] == json!(true),
                follows_host: mount["mountPropagation"] == json!("HostToContainer"),
            }
        });
        self.run(&Container {
            user: json!({"uid": of_pod["runAsUser"], "gid": of_pod["runAsGroup"]}),
            args: main["args"].as_array().unwrap().clone(),
            env: variables,
            capabilities: capabilities
                .iter()
                .map(|name| format!("{PREFIX}{}", name.as_str().unwrap()))
                .collect(),
            volumes: volumes.chain(files.iter().cloned()).collect(),
        })
    }

    fn run(&self, container: &Container) -> Prewarm {
        let bundle = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        run_bundle(&bundle, &container.spec(self))
    }
}

/// By runc, in a PID namespace whose end is that of everything in it: nothing outlives the test.
pub(crate) fn run_bundle(bundle: &Path, spec: &Value) -> Prewarm {
    let call = prewarm([""; 0]);
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let name = bundle.file_name().unwrap().to_str().unwrap();
    let id = name.replace('.', "pw-");
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(parts::program("runc", "runc"))
        .arg("--root")
        .arg(bundle.join("runc"))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id);
    call.by(command)
}

/// A folder or file of the host in a container.
#[derive(Clone)]
pub(crate) struct Volume {
    pub(crate) host: PathBuf,
    pub(crate) place: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) follows_host: bool,
}

impl Volume {
    /// A file that can be read.
    pub(crate) fn file(host: &Path, place: &str) -> Self {
        Self {
            host: host.to_owned(),
            place: PathBuf::from(place),
            read_only: true,
            follows_host: false,
        }
    }

    fn mount(&self) -> Value {
        let mut options = vec!["rbind"];
        options.push(if self.follows_host {
            "rslave"
        } else {
            "rprivate"
        });
        options.push(if self.read_only { "ro" } else { "rw" });
        json!({"destination": self.place, "type": "bind", "source": self.host, "options": options})
    }
}

#[derive(Default)]
struct Container {
    user: Value,
    args: Vec<Value>,
    env: Vec<String>,
    capabilities: Vec<String>,
    volumes: Vec<Volume>,
}

impl Container {
    /// As the OCI runtime specification has it. The network is the host's, where broker and registry of a test listen.
    fn spec(&self, image: &Image) -> Value {
        let mut env: Vec<Value> = image.config["Env"].as_array().unwrap().clone();
        env.extend(self.env.iter().map(|variable| json!(variable)));
        let mut mounts: Vec<Value> = MOUNTS
            .iter()
            .map(|(place, kind, options)| {
                json!({"destination": place, "type": kind, "source": kind, "options": options})
            })
            .collect();
        mounts.extend(self.volumes.iter().map(Volume::mount));
        let capabilities = json!({
            "bounding": self.capabilities, "effective": self.capabilities, "permitted": self.capabilities,
        });
        let args = [image.entry_point(), self.args.clone()].concat();
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": self.user, "args": args, "env": env, "cwd": "/",
                "capabilities": capabilities, "noNewPrivileges": true,
            },
            "root": {"path": image.root(), "readonly": true},
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
                "seccomp": runtime_default(&self.capabilities),
            },
        })
    }
}

/// What RuntimeDefault stands for: the profile that CRI-O, Podman and Buildah ship, made for these capabilities as they do it.
fn runtime_default(capabilities: &[String]) -> Value {
    // In the part where it is Debian's, else where buildah's own package has it.
    let part = parts::program("buildah", "buildah");
    let part = part.ancestors().nth(2).unwrap().to_owned();
    let places =
        [part, PathBuf::from("/")].map(|root| root.join("usr/share/containers/seccomp.json"));
    let profile = places.iter().find(|place| place.exists());
    let profile = read_json(profile.unwrap_or_else(|| panic!("none of {places:?} is there")));
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let applies = |rule: &&Value| {
        let has = |name: &String| capabilities.contains(name);
        let (only, not) = (&rule["includes"], &rule["excludes"]);
        let arches = texts(&only["arches"]);
        texts(&only["caps"]).iter().all(has)
            && !texts(&not["caps"]).iter().any(has)
            && (arches.is_empty() || arches.iter().any(|name| name == arch))
            && !texts(&not["arches"]).iter().any(|name| name == arch)
    };
    let rules = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(applies);
    let syscalls: Vec<Value> = rules
        .map(|rule| {
            let kept = ["names", "action", "errnoRet", "args"];
            let fields = kept.iter().filter(|field| !rule[**field].is_null());
            let fields: BTreeMap<&str, &Value> =
                fields.map(|field| (*field, &rule[*field])).collect();
            json!(fields)
        })
        .collect();
    assert!(syscalls.len() > 10, "{profile}");
    let architecture = format!("SCMP_ARCH_{}", std::env::consts::ARCH.to_uppercase());
    json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [architecture], "syscalls": syscalls,
    })
}

/// The pod template of a workload in what kubectl renders of a folder of deploy/kubernetes.
pub(crate) fn template(folder: &str, kind: &str, name: &str) -> Value {
    let kubectl = parts::python().with_file_name("kubectl");
    let folder = repository().join("deploy/kubernetes").join(folder);
    let rendered = output(Command::new(kubectl).arg("kustomize").arg(folder));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
    let found = documents
        .into_iter()
        .find(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))["spec"]["template"]["spec"].clone()
}
