//! Three nats-servers that keep streams together.

use std::time::Duration;

use async_nats::jetstream::{self, consumer};
use futures::{StreamExt as _, TryStreamExt as _};

use super::nats::{NatsServer, NatsVersion};
use super::process::free_port;
use super::wait::{eventually, within};

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// How long a cluster may take until it has a leader for its streams and consumers.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Three servers on loopback ports, each with a store of its own.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, `server-0` to `server-2`.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts one that can keep three replicas.
    pub async fn start(version: NatsVersion) -> Self {
        let ports: Vec<u16> = (0..SERVERS).map(|_| free_port()).collect();
        let routes: Vec<String> = ports
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let routes = routes.join(", ");
        let starting = ports.iter().enumerate().map(|(number, port)| {
            let extra = format!(
                "server_name: \"{}\"\ncluster {{ name: \"cell\", listen: \"127.0.0.1:{port}\", routes: [{routes}] }}",
                Self::name(number)
            );
            async move { NatsServer::start_with(version, &extra).await }
        });
        let servers = futures::future::join_all(starting).await;
        let cluster = Self { servers };
        cluster.ready().await;
        cluster
    }

    /// What the cluster calls the server of this number.
    pub fn name(number: usize) -> String {
        format!("server-{number}")
    }

    /// All of them, as `--nats-url` takes it.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    /// A client that goes to another server when its own is gone.
    pub async fn client(&self) -> async_nats::Client {
        let servers: Vec<async_nats::ServerAddr> = self
            .servers
            .iter()
            .map(|server| server.url().parse().expect("the address of a server"))
            .collect();
        within(
            READY_LIMIT,
            "a connection to the cluster",
            async_nats::connect(servers),
        )
        .await
        .expect("a connection to the cluster")
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
        jetstream
            .delete_stream("READY")
            .await
            .expect("the deletion of a stream");
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
        let stream = jetstream.get_stream(stream).await.expect("the stream");
        let infos: Vec<consumer::Info> = stream
            .consumers()
            .map(|info| info.map_err(|error| error.to_string()))
            .try_collect()
            .await
            .expect("the consumers of the stream");
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
