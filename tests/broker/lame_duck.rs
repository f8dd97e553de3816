//! A server that is told to go: by the pod's hook and by the unit's signal.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use async_nats::{ConnectOptions, Event};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::manifests::{cluster_broker, nats, seconds};
use crate::support::nats::NatsVersion;
use crate::support::nats_cluster::NatsCluster;
use crate::support::parts;
use crate::support::process::{Process, free_port};
use crate::support::shipped::{self, Ports};
use crate::support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(60);

/// The shipped configuration with a shorter pause before the first client is let go, for the sake of the tests' time.
fn sooner(text: String) -> String {
    let sooner = text.replace("lame_duck_grace_period: 10s", "lame_duck_grace_period: 5s");
    assert_ne!(sooner, text);
    sooner
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_tells_its_clients_and_they_go_on_elsewhere() {
    let readiness = crate::probes::paths().readiness;
    for version in NatsVersion::ALL {
        let mut cluster = NatsCluster::shipped_with(version, sooner).await;
        let (told, mut events) = mpsc::unbounded_channel();
        let options = ConnectOptions::new()
            .retry_on_initial_connect()
            .event_callback(move |event| {
                // Nobody listens any more once the test has ended.
                let _ = told.send(event);
                std::future::ready(())
            });
        let client = cluster.client_with(options).await;
        client.flush().await.unwrap();
        let name = client.server_info().server_name;
        let number: usize = name.strip_prefix("server-").unwrap().parse().unwrap();
        let began = Instant::now();
        cluster.servers[number].process().signal(Signal::USR2);
        // It takes no new ones meanwhile, and the pod's service leads nobody to it.
        eventually("the server not to be ready", LIMIT, async || match cluster
            .monitor(number, &readiness)
            .await
        {
            Ok((200, _)) => Err("it is ready".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => panic!("it ended before it let its client go: {error}"),
        })
        .await;
        let ended = cluster.servers[number].lame_duck().await;
        assert!(began.elapsed() < Duration::from_secs(seconds("lame_duck_duration") + 20));
        assert!(ended.success(), "{version:?}: {ended}");
        let mut seen = Vec::new();
        let back = async {
            while let Some(event) = events.recv().await {
                let is_back = event == Event::Connected && seen.contains(&Event::LameDuckMode);
                seen.push(event);
                if is_back {
                    break;
                }
            }
        };
        within(LIMIT, "the client to be told, and to be elsewhere", back).await;
        assert_ne!(client.server_info().server_name, name, "{seen:?}");
        // What it left behind is where the others can go on with it.
        let log = cluster.servers[number].process().log();
        assert!(log.contains("Entering lame duck mode"), "{log}");
        cluster.servers[number].restart().await;
        cluster.in_sync().await;
    }
}

/// nats-server as process 1 of a namespace, as in a pod.
pub(crate) struct Pod {
    /// `unshare`, which ends with it.
    pub(crate) process: Process,
    pub(crate) port: u16,
    _dir: TempDir,
}

impl Pod {
    async fn start(version: NatsVersion) -> Self {
        let text = |ports: &[Ports]| shipped::cluster(shipped::CLUSTER, 0, ports);
        Self::start_by(text, |file| {
            let mut command = Command::new(version.program());
            command.arg("--config").arg(file);
            command
        })
        .await
    }

    /// Starts this configuration by this call, which is given the file of it.
    pub(crate) async fn start_by(
        text: impl FnOnce(&[Ports]) -> String,
        call: impl FnOnce(&Path) -> Command,
    ) -> Self {
        let dir = parts::temp_dir();
        let port = free_port();
        let ports = [(); 3].map(|()| Ports {
            route: free_port(),
            monitor: free_port(),
        });
        let text = text(&ports)
            .replace("@PORT@", &port.to_string())
            .replace("@STORE@", &dir.path().join("store").display().to_string());
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, slower(&text)).unwrap();
        let call = call(&file);
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(call.get_program())
            .args(call.get_args())
            .envs(
                call.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        let process = Process::spawn("a pod", &mut command, &dir.path().join("log"), dir.path());
        eventually("the pod's server to be ready", LIMIT, async || {
            let log = process.log();
            log.contains("Server is ready").then_some(()).ok_or(log)
        })
        .await;
        Self {
            process,
            port,
            _dir: dir,
        }
    }

    /// Process 1 of the pod, as the node sees it.
    fn first(&self) -> Pid {
        let unshare = self.process.pid();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        Pid::from_raw(children.unwrap().trim().parse().unwrap()).unwrap()
    }

    /// What kubelet does before SIGTERM.
    pub(crate) fn hook(&self, version: NatsVersion, call: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["--pid", "--mount", "--target"])
            .arg(self.first().as_raw_nonzero().to_string())
            .arg(version.program())
            .args(&call[1..])
            .output()
            .unwrap()
    }
}

/// What the container's `preStop` calls.
pub(crate) fn hook(container: &Value) -> Vec<&str> {
    let call = container["lifecycle"]["preStop"]["exec"]["command"].as_array();
    let words = call.expect("a hook").iter();
    let call: Vec<&str> = words.map(|word| word.as_str().unwrap()).collect();
    assert_eq!(call[0], "nats-server");
    call
}

/// The pause before the first client is let go, in the place of the shipped ten seconds.
const PAUSE: Duration = Duration::from_secs(3);

pub(crate) fn slower(text: &str) -> String {
    let pause = format!("lame_duck_grace_period: {}s", PAUSE.as_secs());
    let slower = text.replace("lame_duck_grace_period: 10s", &pause);
    assert_ne!(slower, text);
    slower
}

#[tokio::test]
async fn the_pods_hook_has_its_server_go_and_sigterm_does_not_hasten_it() {
    let all = cluster_broker();
    let container = nats(&all);
    assert_eq!(container["command"], json!(["nats-server"]));
    let call = hook(container);
    for version in NatsVersion::ALL {
        let mut pod = Pod::start(version).await;
        let (told, mut events) = mpsc::unbounded_channel();
        let login = ConnectOptions::with_user_and_password("core".into(), "core".into());
        let options = login.event_callback(move |event| {
            // Nobody listens any more once the test has ended.
            let _ = told.send(event);
            std::future::ready(())
        });
        let url = format!("nats://127.0.0.1:{}", pod.port);
        let client = options.connect(url).await.unwrap();
        client.flush().await.unwrap();
        let mut until = async |wanted: Event| {
            let seen = async { while events.recv().await.unwrap() != wanted {} };
            within(LIMIT, &wanted.to_string(), seen).await;
            Instant::now()
        };
        let asked = Instant::now();
        let hook = pod.hook(version, &call);
        assert!(hook.status.success(), "{hook:?}");
        until(Event::LameDuckMode).await;
        kill_process(pod.first(), Signal::TERM).unwrap();
        let gone = until(Event::Disconnected).await;
        assert!(gone - asked >= PAUSE, "{version:?}: {:?}", gone - asked);
        let ended = pod.process.end(LIMIT).await;
        assert!(ended.success(), "{version:?}: {ended}");
    }
}
