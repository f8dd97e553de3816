//! `up`: broker, dispatcher and workers in one process, for a first look and for one machine.

mod broker;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::args::{DispatcherRoleArgs, UpArgs};
use super::exit::Failure;
use super::output::tell;
use super::roles::{self, Node, Role};
use super::settings::registry::home;
use super::settings::worker::RuntimeChoice;
use super::{Invocation, health, signals, text};
use crate::bus::connect::ConnectSettings;
use crate::bus::topology;
use crate::dispatch;
use crate::dispatch::run::{DispatcherError, DispatcherSettings};
use crate::domain::node::NodeStanding;
use crate::image::Runtime;
use crate::work;
use crate::work::run::{WorkerError, WorkerSettings, fixed};
use broker::Broker;

/// `prewarm up`.
///
/// # Errors
/// Bad settings, no nats-server, a runtime that does not answer, or a part that ended by itself.
pub async fn run(invocation: &Invocation, args: UpArgs) -> Result<(), Failure> {
    let dispatcher = DispatcherRoleArgs {
        dispatcher: args.dispatcher,
        registries: args.worker.registries.clone(),
    };
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let settings = roles::dispatcher_settings(&dispatcher, &mut check);
    let node = roles::node(&args.worker, None, &mut check);
    let named = args.worker.worker.node.is_some();
    if let Some(node) = &node
        && args.nodes > 1
        && (named || node.node.runtime != RuntimeChoice::Simulated)
    {
        check.problem(
            "nodes",
            "several nodes need --runtime simulated, and no --node",
        );
    }
    let ((mut broker, mut settings), node) = check.done(broker.zip(settings).zip(node))?;
    if node.node.runtime == RuntimeChoice::Simulated {
        // Nothing is really pulled, so no registry has to be asked what tags mean.
        settings.registry = None;
    }
    let nodes = nodes(&node, args.nodes, named);

    let shutdown = signals::shutdown_on_signals()?;
    let workers = workers(&nodes).await?;
    let mut role = Role::new()?;
    let parts = Parts {
        metrics: role.dispatcher_metrics()?,
        workers: listened(&mut role, workers)?,
        settings,
    };
    role.needs(role.link.broker());
    role.needs(role.link.topology(parts.settings.topology));
    role.serve(invocation, &shutdown).await?;
    let started = if invocation.broker.names_a_broker(&invocation.around) {
        None
    } else {
        let directory = args
            .data_dir
            .unwrap_or_else(|| broker::default_directory(home()));
        let started = Broker::start(args.nats_server, &directory).await?;
        broker.servers = vec![started.address()?];
        Some(started)
    };
    let ended = serve(
        &role,
        &broker,
        parts,
        &shutdown,
        (started.as_ref(), &welcome(&broker, &nodes)),
    )
    .await;
    if let Some(started) = started {
        started.stop().await;
    }
    ended
}

/// The nodes of this process: the one that was described, or several that only pretend.
fn nodes(node: &Node, count: u32, named: bool) -> Vec<Node> {
    if named || node.node.runtime != RuntimeChoice::Simulated {
        return vec![node.clone()];
    }
    let numbered = |number| {
        let mut node = node.clone();
        // Digits and a dash make a legal name.
        if let Ok(name) = format!("node-{number}").parse() {
            node.node.node = name;
        }
        node
    };
    (1..=count).map(numbered).collect()
}

async fn workers(nodes: &[Node]) -> Result<Vec<(Runtime, WorkerSettings)>, Failure> {
    let mut workers = Vec::with_capacity(nodes.len());
    for node in nodes {
        let runtime = node.runtime()?;
        if let Err(failure) = runtime.probe().await {
            let failure = Failure::from(WorkerError::Runtime(failure));
            let advice = format!(
                "{}; for a look without containerd: prewarm up --runtime simulated",
                failure.advice
            );
            return Err(failure.advise(advice));
        }
        let standing = fixed(NodeStanding::labelled(node.node.labels.clone()));
        workers.push((runtime, node.settings(standing)));
    }
    Ok(workers)
}

/// What runs, and who listens to it.
struct Parts {
    settings: DispatcherSettings,
    metrics: Arc<dispatch::metrics::Metrics>,
    workers: Vec<(Runtime, WorkerSettings, Arc<work::metrics::Listener>)>,
}

/// Has the role count what the workers do, and watch over them.
fn listened(
    role: &mut Role,
    workers: Vec<(Runtime, WorkerSettings)>,
) -> Result<Vec<(Runtime, WorkerSettings, Arc<work::metrics::Listener>)>, Failure> {
    let metrics = role.worker_metrics()?;
    let listened = workers.into_iter().map(|(runtime, settings)| {
        let listener = work::metrics::Metrics::listener(&metrics);
        (runtime, settings, listener)
    });
    let listened: Vec<_> = listened.collect();
    let listeners = listened.iter().map(|(_, _, listener)| Arc::clone(listener));
    role.watches_workers(listeners.collect());
    let runtimes = listened.iter().map(|(runtime, ..)| runtime.clone());
    role.needs(health::runtime(runtimes.collect()));
    Ok(listened)
}

/// Runs everything until it is stopped or a part of it ends.
async fn serve(
    role: &Role,
    broker: &ConnectSettings,
    Parts {
        settings,
        metrics,
        workers,
    }: Parts,
    shutdown: &CancellationToken,
    (started, welcome): (Option<&Broker>, &str),
) -> Result<(), Failure> {
    let bus = role.connect(broker, "prewarm up", shutdown).await?;
    // Whoever reads that it is up may submit at once.
    topology::ensure(&bus, settings.topology)
        .await
        .map_err(|error| Failure::from(DispatcherError::from(error)))?;
    if let Some(started) = started {
        started.announce()?;
    }
    tell(welcome);
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    parts.spawn(roles::dispatch(
        bus.clone(),
        settings,
        metrics,
        shutdown.clone(),
    ));
    for (runtime, settings, listener) in workers {
        let (bus, token) = (bus.clone(), shutdown.clone());
        parts.spawn(async move {
            work::run::run_observed(bus, runtime, settings, listener, token)
                .await
                .map_err(Failure::from)
        });
    }
    let broker_ended = async {
        match started {
            Some(started) => started.ended().await,
            None => std::future::pending().await,
        }
    };
    let mut outcome = tokio::select! {
        ended = parts.join_next() => flatten(ended),
        failure = broker_ended => Err(failure),
    };
    shutdown.cancel();
    while let Some(ended) = parts.join_next().await {
        outcome = outcome.and(flatten(Some(ended)));
    }
    outcome
}

fn flatten(
    ended: Option<Result<Result<(), Failure>, tokio::task::JoinError>>,
) -> Result<(), Failure> {
    match ended {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(Failure::unreachable(format!("a part of it broke: {error}"))),
    }
}

fn welcome(broker: &ConnectSettings, nodes: &[Node]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| &node.node.node).collect();
    let runtime = match nodes.first().map(|node| &node.node.runtime) {
        Some(RuntimeChoice::Simulated) | None => {
            "a simulated runtime: nothing is really pulled".to_owned()
        }
        Some(RuntimeChoice::Containerd(containerd)) => {
            format!("containerd at {}", containerd.address.display())
        }
    };
    let places = broker.places();
    format!(
        "prewarm is up: the dispatcher and {} ({}), {runtime}
The broker is {places}. In another terminal:

  export NATS_URL={places}
  prewarm get nodes
  prewarm run nginx --wait

Ctrl-C ends it.",
        text::count(nodes.len(), "node"),
        text::some_of(&names, 5),
    )
}
