//! Three nats-servers that keep streams together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::context::{DeleteStreamError, DeleteStreamErrorKind};
use async_nats::jetstream::{self, ErrorCode, consumer};
use futures::{StreamExt as _, TryStreamExt as _};

use super::images;
use super::nats::{NatsServer, NatsVersion};
use super::process::free_port;
use super::shipped::{self, Ports};
use super::wait::{eventually, within};

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// How long a cluster may take until it has a leader for its streams and consumers.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The same before it is mended.
const READY_SOON: Duration = Duration::from_secs(20);

/// Three servers on loopback ports, each with a store of its own.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, `server-0` to `server-2`.
    pub servers: Vec<NatsServer>,
    /// Where each of them listens besides; only the shipped configuration has a monitor.
    pub ports: Vec<Ports>,
    access: Access,
}

/// How the servers are reached.
#[derive(Debug, Clone)]
enum Access {
    /// By anyone.
    Open,
    /// By a user of the shipped accounts.
    User,
    /// The same with TLS, trusting this CA.
    Tls(PathBuf),
}

impl NatsCluster {
    /// Starts one that can keep three replicas.
    pub async fn start(version: NatsVersion) -> Self {
        Self::start_with(version, "").await
    }

    /// The same with `extra` text in each server's configuration.
    pub async fn start_with(version: NatsVersion, extra: &str) -> Self {
        Self::of(version, Access::Open, |number, ports| {
            let routes: Vec<String> = ports
                .iter()
                .map(|ports| format!("\"nats://127.0.0.1:{}\"", ports.route))
                .collect();
            format!(
                "listen: \"127.0.0.1:@PORT@\"\njetstream {{ store_dir: \"@STORE@\" }}\nserver_name: \"{}\"\n\
                 cluster {{ name: \"cell\", listen: \"127.0.0.1:{}\", routes: [{}] }}\n{extra}\n",
                Self::name(number),
                ports[number].route,
                routes.join(", ")
            )
        })
        .await
    }

    /// Starts the shipped cluster.conf with the shipped accounts, which syncs every write.
    pub async fn shipped(version: NatsVersion) -> Self {
        Self::shipped_with(version, |text| text).await
    }

    /// The same with a change to each server's configuration.
    pub async fn shipped_with(version: NatsVersion, change: impl Fn(String) -> String) -> Self {
        Self::of(version, Access::User, |number, ports| {
            change(shipped::cluster(shipped::CLUSTER, number, ports))
        })
        .await
    }

    /// Starts the shipped configuration with TLS, each server with `tls.crt`, `tls.key` and `ca.crt` of a folder of its own.
    pub async fn shipped_with_tls(version: NatsVersion, files: &[PathBuf], ca: &Path) -> Self {
        Self::of(version, Access::Tls(ca.to_owned()), |number, ports| {
            shipped::cluster_tls(number, ports, &files[number], false)
        })
        .await
    }

    async fn of(
        version: NatsVersion,
        access: Access,
        text: impl Fn(usize, &[Ports]) -> String,
    ) -> Self {
        let ports: Vec<Ports> = (0..SERVERS)
            .map(|_| Ports {
                route: free_port(),
                monitor: free_port(),
            })
            .collect();
        let texts: Vec<String> = (0..SERVERS).map(|number| text(number, &ports)).collect();
        let starting = texts
            .iter()
            .map(|text| NatsServer::start_whole(version, text));
        let mut cluster = Self {
            servers: futures::future::join_all(starting).await,
            ports,
            access,
        };
        if version == NatsVersion::V2_10 {
            cluster.mended().await;
        }
        cluster.ready().await;
        cluster
    }

    /// Now and then a first start of 2.10 ends with a server whose word does not reach the leader, for as long as
    /// both live. Does what the runbook says of it ("A cluster that finds no peers").
    async fn mended(&mut self) {
        if tokio::time::timeout(READY_SOON, self.ready()).await.is_ok() {
            return;
        }
        eprintln!("the cluster of {SERVERS} finds no peers: its servers start again, one by one");
        for server in &mut self.servers {
            server.restart().await;
        }
    }

    /// What the cluster calls the server of this number.
    pub fn name(number: usize) -> String {
        format!("server-{number}")
    }

    /// All of them, as `--nats-url` takes it, for a dispatcher.
    pub fn urls(&self) -> String {
        self.urls_of("core:core")
    }

    /// The same for simulated nodes.
    pub fn urls_of_nodes(&self) -> String {
        self.urls_of(&format!("{}:node", shipped::EVERY_NODE))
    }

    fn urls_of(&self, login: &str) -> String {
        let begin = match self.access {
            Access::Open => "nats://127.0.0.1".to_owned(),
            Access::User => format!("nats://{login}@127.0.0.1"),
            Access::Tls(_) => format!("tls://{login}@{}", shipped::TLS_HOST),
        };
        let urls: Vec<String> = self
            .servers
            .iter()
            .map(|server| format!("{begin}:{}", server.port()))
            .collect();
        urls.join(",")
    }

    /// A client that goes to another server when its own is gone, and may do everything.
    pub async fn client(&self) -> async_nats::Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// The same with options of its own.
    pub async fn client_with(&self, mut options: ConnectOptions) -> async_nats::Client {
        let urls = self.urls().replace("core:core@", "");
        let servers: Vec<async_nats::ServerAddr> = urls
            .split(',')
            .map(|url| url.parse().expect("the address of a server"))
            .collect();
        if !matches!(self.access, Access::Open) {
            options = options.user_and_password("core".to_owned(), "core".to_owned());
        }
        if let Access::Tls(ca) = &self.access {
            options = options.add_root_certificates(ca.clone());
        }
        within(
            READY_LIMIT,
            "a connection to the cluster",
            options.connect(servers),
        )
        .await
        .expect("a connection to the cluster")
    }

    /// What a server's monitor answers at this path.
    pub async fn monitor(&self, number: usize, path: &str) -> Result<(u16, String), String> {
        monitor(self.ports[number].monitor, path).await
    }

    /// Waits until streams can be made on all of them.
    pub async fn ready(&self) {
        let jetstream = jetstream::new(self.client().await);
        let config = jetstream::stream::Config {
            name: "READY".to_owned(),
            num_replicas: SERVERS,
            ..Default::default()
        };
        eventually(
            "the cluster to keep three replicas",
            READY_LIMIT,
            async || {
                jetstream
                    .get_or_create_stream(config.clone())
                    .await
                    .map(drop)
            },
        )
        .await;
        eventually(
            "the deletion of a stream",
            READY_LIMIT,
            async || match jetstream.delete_stream("READY").await {
                Err(error) if !is_missing(&error) => Err(error),
                _ => Ok(()),
            },
        )
        .await;
    }

    /// Waits until every stream has a leader and all its replicas are up to date.
    pub async fn in_sync(&self) {
        let jetstream = jetstream::new(self.client().await);
        eventually("every replica to be up to date", READY_LIMIT, async || {
            let streams: Vec<_> = jetstream
                .streams()
                .try_collect()
                .await
                .map_err(|e| e.to_string())?;
            let behind = streams.iter().find(|stream| {
                let cluster = stream.cluster.as_ref();
                !cluster.is_some_and(|cluster| {
                    cluster.leader.is_some()
                        && cluster
                            .replicas
                            .iter()
                            .all(|peer| peer.current && !peer.offline)
                })
            });
            match behind {
                None => Ok(()),
                Some(stream) => Err(format!("{}: {:?}", stream.config.name, stream.cluster)),
            }
        })
        .await;
    }

    /// The consumers of a stream, each with the server that leads it.
    pub async fn consumers(&self, stream: &str) -> Vec<(String, String)> {
        let jetstream = jetstream::new(self.client().await);
        let infos = eventually("the consumers of the stream", READY_LIMIT, async || {
            let stream = jetstream.get_stream(stream).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let infos = stream.consumers();
            let infos = infos.map(|info| info.map_err(|error| error.to_string()));
            infos.try_collect::<Vec<consumer::Info>>().await
        })
        .await;
        infos
            .into_iter()
            .map(|info| {
                (
                    info.name,
                    info.cluster.and_then(|it| it.leader).unwrap_or_default(),
                )
            })
            .collect()
    }

    /// The number of the server that leads the most consumers of a stream, and the consumers that it leads.
    pub async fn busiest(&self, stream: &str) -> (usize, Vec<String>) {
        let consumers = self.consumers(stream).await;
        (0..SERVERS)
            .map(|number| {
                let of_it = consumers
                    .iter()
                    .filter(|(_, server)| *server == Self::name(number));
                (
                    number,
                    of_it.map(|(name, _)| name.clone()).collect::<Vec<_>>(),
                )
            })
            .max_by_key(|(_, led)| led.len())
            .expect("a server")
    }
}

/// What the monitor of a server on this port answers at this path: the status and the body.
pub async fn monitor(port: u16, path: &str) -> Result<(u16, String), String> {
    let asked = images::http().get(format!("http://127.0.0.1:{port}{path}"));
    let answer = asked.send().await.map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let body = answer.text().await.map_err(|error| error.to_string())?;
    Ok((status, body))
}

fn is_missing(error: &DeleteStreamError) -> bool {
    matches!(error.kind(), DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
