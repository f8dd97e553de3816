//! Many workers in one process, for sizing and load tests.
//!
//! Each is the worker that ships, [`crate::work::run`], with a simulated runtime; only the connections
//! are shared, because a machine that plays a fleet should not need a fleet's sockets. Nodes join at a
//! rate, leave for good or come and go, by draws from a seed.

pub mod figures;
pub mod plan;
mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::plan::{Leaving, Plan, Stay};
pub use self::tally::{Report, Tally};
use crate::bus::Bus;
use crate::domain::name::NodeName;
use crate::domain::node::NodeStanding;
use crate::image::Runtime;
use crate::image::simulated::{Simulated, SimulatedConfig};
use crate::work::run::{WorkerError, WorkerSettings, fixed, run_observed};

/// Most nodes of one simulation: what the streams' consumer limit allows a cell.
pub const MAX_NODES: u32 = 100_000;
/// Most connections of one simulation.
pub const MAX_CONNECTIONS: u32 = 1_000;
/// How long pulls go on when a node leaves well: it plays a node that is drained, not one that waits.
const GRACE: Duration = Duration::from_secs(1);

/// A fleet to play.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// What nodes' names begin with; a number follows.
    pub prefix: String,
    /// How many nodes, 1 to [`MAX_NODES`].
    pub nodes: u32,
    /// Labels of every node.
    pub labels: BTreeMap<String, String>,
    /// Labels whose values are dealt out to the nodes in turn.
    pub spread: Vec<(String, Vec<String>)>,
    /// Pulls at once on each node.
    pub capacity: u32,
    /// How pulls go; its seed is the simulation's.
    pub runtime: SimulatedConfig,
    /// When nodes come and go.
    pub plan: Plan,
}

/// A name that cannot be a node's.
#[derive(Debug, thiserror::Error)]
#[error("{prefix:?} cannot begin the names of nodes: {reason}")]
pub struct BadPrefix {
    prefix: String,
    reason: String,
}

impl Simulation {
    /// The names of its nodes, in the order in which they join.
    ///
    /// # Errors
    /// The prefix makes no legal names.
    pub fn names(&self) -> Result<Vec<NodeName>, BadPrefix> {
        let name = |number| {
            let name = format!("{}-{number:05}", self.prefix);
            name.parse().map_err(|error| BadPrefix {
                prefix: self.prefix.clone(),
                reason: format!("{error}"),
            })
        };
        (1..=self.nodes).map(name).collect()
    }

    fn settings(&self, index: usize, node: NodeName) -> WorkerSettings {
        let mut labels = self.labels.clone();
        for (key, values) in &self.spread {
            let dealt = values.get(index % values.len().max(1));
            labels.extend(dealt.map(|value| (key.clone(), value.clone())));
        }
        WorkerSettings {
            standing: fixed(NodeStanding::labelled(labels)),
            capacity: self.capacity,
            grace: GRACE,
            ..WorkerSettings::new(node)
        }
    }
}

/// Plays the fleet over these connections until `shutdown`, or until every node has left for good.
///
/// # Errors
/// A name that cannot be a node's, or a worker that could not begin.
pub async fn run(
    buses: &[Bus],
    simulation: &Simulation,
    tally: &Arc<Tally>,
    shutdown: CancellationToken,
) -> Result<(), SimulationError> {
    let names = simulation.names()?;
    let stays = simulation
        .plan
        .stays(simulation.nodes, simulation.runtime.seed);
    let mut nodes = JoinSet::new();
    for (index, ((name, stay), bus)) in names
        .into_iter()
        .zip(stays)
        .zip(buses.iter().cycle())
        .enumerate()
    {
        let runtime = Runtime::Simulated(Simulated::new(SimulatedConfig {
            node: name.to_string(),
            ..simulation.runtime.clone()
        }));
        let node = Node {
            bus: bus.clone(),
            runtime,
            settings: simulation.settings(index, name),
            tally: Arc::clone(tally),
        };
        nodes.spawn(node.live(stay, shutdown.clone()));
    }
    let mut outcome = Ok(());
    while let Some(ended) = nodes.join_next().await {
        let ended = match ended {
            Ok(ended) => ended.map_err(SimulationError::Worker),
            Err(panic) => Err(SimulationError::Defect(panic.to_string())),
        };
        if ended.is_err() && outcome.is_ok() {
            outcome = ended;
            shutdown.cancel();
        }
    }
    outcome
}

/// Why a simulation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// The prefix of the names.
    #[error(transparent)]
    Prefix(#[from] BadPrefix),
    /// A worker could not begin.
    #[error(transparent)]
    Worker(WorkerError),
    /// A worker broke.
    #[error("a worker ended by a defect of prewarm, please report it: {0}")]
    Defect(String),
}

struct Node {
    bus: Bus,
    /// Outlives the worker, as the images on a node do.
    runtime: Runtime,
    settings: WorkerSettings,
    tally: Arc<Tally>,
}

impl Node {
    async fn live(self, stay: Stay, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let mut away = Some(stay.joins_after);
        for leaving in stay.leavings() {
            let wait = tokio::time::sleep(away.unwrap_or_default());
            if shutdown.run_until_cancelled(wait).await.is_none() {
                return Ok(());
            }
            self.work(leaving.as_ref(), &shutdown).await?;
            away = leaving.and_then(|leaving| leaving.away);
            if away.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One worker process, from its start to its end.
    async fn work(
        &self,
        leaving: Option<&Leaving>,
        shutdown: &CancellationToken,
    ) -> Result<(), WorkerError> {
        let stop = shutdown.child_token();
        let observer = Tally::observer(&self.tally);
        let worker = run_observed(
            self.bus.clone(),
            self.runtime.clone(),
            self.settings.clone(),
            observer,
            stop.clone(),
        );
        let mut worker = Box::pin(worker);
        self.tally.joined();
        let leaves = async {
            match leaving {
                Some(leaving) => tokio::time::sleep(leaving.after).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = &mut worker => ended,
            () = leaves => {
                if leaving.is_some_and(|leaving| leaving.says_so) {
                    stop.cancel();
                    worker.await
                } else {
                    // As if the machine had lost power: whatever it had begun is dropped.
                    drop(worker);
                    Ok(())
                }
            }
        };
        self.tally.left();
        ended
    }
}
