//! A cell: broker, dispatcher, simulated fleet.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::{Client, Subscriber};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Role, prewarm};
use crate::support::wait::{eventually, within};

/// How long anything may take before the benchmark is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at how far a stream is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) struct Cell {
    pub(crate) nats: NatsServer,
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) dispatcher: Role,
    pub(crate) fleet: Role,
    /// From the start of the fleet to the last consumer.
    pub(crate) registered_in: Duration,
}

/// When a job was where.
pub(crate) struct JobTimes {
    /// From publish to the last task in the stream.
    pub(crate) released: Duration,
    /// From publish to the job's last event.
    pub(crate) completed: Duration,
}

impl Cell {
    pub(crate) async fn start(version: NatsVersion, nodes: u32, fleet: &[&str]) -> Self {
        let nats = NatsServer::start(version).await;
        let client = nats.client().await;
        let jetstream = jetstream::new(client.clone());
        let mut dispatcher = dispatcher(&nats);
        dispatcher.logs("leading", LIMIT).await;
        let began = Instant::now();
        let nodes_argument = nodes.to_string();
        let mut arguments = vec!["simulate", "--nodes", &nodes_argument];
        arguments.extend(fleet);
        let fleet = prewarm(arguments)
            .env("PREWARM_NATS_URL", nats.url())
            .spawn("the fleet");
        let cell = Self {
            nats,
            client,
            jetstream,
            dispatcher,
            fleet,
            registered_in: Duration::ZERO,
        };
        eventually("every node to have its consumer", LIMIT, async || {
            let consumers = cell.tasks().await.consumer_count;
            // What reads the stream back has one, too, and half a minute later no more.
            if consumers >= nodes as usize {
                Ok(())
            } else {
                Err(format!("{consumers} consumers; {}", cell.fleet.log()))
            }
        })
        .await;
        Self {
            registered_in: began.elapsed(),
            ..cell
        }
    }

    /// Where the stream of tasks is.
    pub(crate) async fn tasks(&self) -> jetstream::stream::State {
        let stream = self.jetstream.get_stream("PREWARM_TASKS").await.unwrap();
        stream.cached_info().state.clone()
    }

    pub(crate) async fn submit(&self, manifest: &Value) {
        let body = manifest.to_string().into();
        let published = self.jetstream.publish("prewarm.job.submit", body).await;
        published.unwrap().await.unwrap();
    }

    /// What is told of a job from now on.
    pub(crate) async fn job_events(&self, job: &str, kind: &str) -> Subscriber {
        let subject = format!("prewarm.event.job.{job}.{kind}");
        let subscriber = self.client.subscribe(subject).await.unwrap();
        self.client.flush().await.unwrap();
        subscriber
    }

    /// Runs a job to its end.
    pub(crate) async fn run(&self, manifest: &Value, pulls: u64) -> JobTimes {
        let job = manifest["metadata"]["name"].as_str().unwrap();
        let mut completed = self.job_events(job, "completed").await;
        let last = self.tasks().await.last_sequence + pulls;
        let began = Instant::now();
        self.submit(manifest).await;
        let released = async {
            while self.tasks().await.last_sequence < last {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            began.elapsed()
        };
        let done = async {
            let event = completed.next().await.unwrap();
            (began.elapsed(), event)
        };
        let both = async { tokio::join!(released, done) };
        let (released, (completed, event)) = within(LIMIT, "a job to end", both).await;
        let event: Value = serde_json::from_slice(&event.payload).unwrap();
        assert_eq!(event["data"]["outcome"], "Succeeded", "{event:#}");
        assert_eq!(event["data"]["counts"]["succeeded"], pulls, "{event:#}");
        JobTimes {
            released,
            completed,
        }
    }
}

pub(crate) fn dispatcher(nats: &NatsServer) -> Role {
    prewarm(["dispatcher"])
        .env("PREWARM_NATS_URL", nats.url())
        .env("PREWARM_METRICS_LISTEN", "off")
        .spawn("the dispatcher")
}

/// A job of one image, which no registry has to be asked about.
pub(crate) fn job(name: &str, image: &str, parallelism: u32) -> Value {
    let digest = "0123456789abcdef".repeat(4);
    json!({
        "apiVersion": "prewarm.dev/v1",
        "kind": "PrewarmJob",
        "metadata": {"name": name},
        "spec": {
            "images": [format!("bench.invalid/{image}@sha256:{digest}")],
            "parallelism": parallelism,
        },
    })
}

/// CPU time a process has used so far (proc_pid_stat(5): utime and stime, in ticks of 10 ms).
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Megabytes of a number of bytes.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
