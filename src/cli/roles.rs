//! The roles: settings become what `dispatch` and `work` take, and the process runs until it is stopped.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::{DispatcherRoleArgs, WorkerRoleArgs};
use super::exit::Failure;
use super::health::{self, Link};
use super::settings::Check;
use super::settings::registry::{RegistrySettings, home};
use super::settings::worker::{NodeSettings, RuntimeChoice};
use super::{Invocation, signals};
use crate::bus::Bus;
use crate::bus::connect::{ConnectSettings, connect_role};
use crate::dispatch;
use crate::dispatch::run::{DispatcherError, DispatcherSettings};
use crate::domain::name::NodeName;
use crate::domain::node::NodeStanding;
use crate::image::Runtime;
use crate::image::containerd::{Containerd, ContainerdConfig, PullLimits};
use crate::image::registry::{Registry, RegistryConfig};
use crate::image::simulated::{Simulated, SimulatedConfig};
use crate::kubernetes::follow::Following;
use crate::kubernetes::pod::Pod;
use crate::telemetry::health::{Condition, Liveness, Readiness};
use crate::telemetry::serve::Served;
use crate::telemetry::{process, serve};
use crate::work;
use crate::work::run::{WorkerError, WorkerSettings, fixed};

/// `prewarm dispatcher`.
///
/// # Errors
/// Bad settings, or a broker that cannot hold a cell.
pub async fn dispatcher(invocation: &Invocation, args: &DispatcherRoleArgs) -> Result<(), Failure> {
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let settings = dispatcher_settings(args, &mut check);
    let (broker, settings) = check.done(broker.zip(settings))?;
    let shutdown = signals::shutdown_on_signals()?;
    let mut role = Role::new()?;
    let metrics = role.dispatcher_metrics()?;
    role.needs(role.link.broker());
    role.needs(role.link.topology(settings.topology));
    role.serve(invocation, &shutdown).await?;
    let name = format!("prewarm dispatcher {}", settings.instance);
    let bus = role.connect(&broker, &name, &shutdown).await?;
    tracing::info!(instance = settings.instance, "the dispatcher starts");
    dispatch(bus, settings, metrics, shutdown).await?;
    tracing::info!("the dispatcher has ended");
    Ok(())
}

/// The dispatcher and its request/reply service, until the token is cancelled or one of them cannot go on.
///
/// # Errors
/// Why it cannot.
pub async fn dispatch(
    bus: Bus,
    settings: DispatcherSettings,
    metrics: Arc<dispatch::metrics::Metrics>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let service = async {
        let served = crate::api::run(bus.clone(), shutdown.clone()).await;
        served
            .map_err(|error| Failure::unreachable(error.to_string()))
            .inspect_err(|_| shutdown.cancel())
    };
    let dispatcher = async {
        let ran = dispatch::run::run_observed(bus.clone(), settings, metrics, shutdown.clone());
        ran.await
            .map_err(Failure::from)
            .inspect_err(|_| shutdown.cancel())
    };
    let (dispatcher, service) = tokio::join!(dispatcher, service);
    dispatcher.and(service)
}

/// `prewarm worker`.
///
/// # Errors
/// Bad settings, or a runtime that does not answer.
pub async fn worker(invocation: &Invocation, args: &WorkerRoleArgs) -> Result<(), Failure> {
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let node = node(args, Pod::look().as_ref(), &mut check);
    let (broker, node) = check.done(broker.zip(node))?;
    let shutdown = signals::shutdown_on_signals()?;
    let runtime = node.runtime()?;
    // Asked before the broker, which may be waited for: a wrong socket is told at once.
    runtime.probe().await.map_err(WorkerError::Runtime)?;
    let mut role = Role::new()?;
    let listener = work::metrics::Metrics::listener(&role.worker_metrics()?);
    role.needs(role.link.broker());
    role.watches_workers(vec![Arc::clone(&listener)]);
    role.needs(health::runtime(vec![runtime.clone()]));
    let (tell, told) = watch::channel(Err("it is asked".to_owned()));
    if node.node.kubernetes.is_some() {
        role.needs(health::kubernetes(told));
    }
    role.serve(invocation, &shutdown).await?;
    let Some(standing) = node.standing(tell, &shutdown).await? else {
        return Ok(());
    };
    let settings = node.settings(standing);
    let broker = for_node(broker, &settings.node);
    let bus = role
        .connect(
            &broker,
            &format!("prewarm worker {}", settings.node),
            &shutdown,
        )
        .await?;
    tracing::info!(node = %settings.node, "the worker starts");
    work::run::run_observed(bus, runtime, settings, listener, shutdown).await?;
    tracing::info!("the worker has ended");
    Ok(())
}

/// A worker's answers come under its own node's name, so that permissions can say so.
#[must_use]
pub fn for_node(mut broker: ConnectSettings, node: &NodeName) -> ConnectSettings {
    let own = || format!("_INBOX.{}", node.token());
    broker.inbox_prefix.get_or_insert_with(own);
    broker
}

/// What every role has beside its work: metrics, health, and the broker they depend on.
pub struct Role {
    /// The role's metrics.
    pub registry: prometheus::Registry,
    /// Its connection to the broker.
    pub link: Link,
    needs: Vec<Condition>,
    lives: Vec<Liveness>,
}

impl Role {
    /// A role that has no metrics of its own yet, and needs nothing.
    ///
    /// # Errors
    /// A defect: a metric's name is taken.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self {
            registry: process::registry().map_err(defect)?,
            link: Link::default(),
            needs: Vec::new(),
            lives: Vec::new(),
        })
    }

    /// Is not ready while this does not hold.
    pub fn needs(&mut self, condition: Condition) {
        self.needs.push(condition);
    }

    /// Is not ready while one of these is not registered, and not alive while one of them stands.
    pub fn watches_workers(&mut self, listeners: Vec<Arc<work::metrics::Listener>>) {
        let watched = listeners.clone();
        let live = move || watched.iter().try_for_each(|worker| worker.liveness());
        self.lives.push(Arc::new(live));
        self.needs(health::registration(listeners));
    }

    /// The metrics of a dispatcher, which is not alive while it stands.
    ///
    /// # Errors
    /// A defect: a metric's name is taken.
    pub fn dispatcher_metrics(&mut self) -> Result<Arc<dispatch::metrics::Metrics>, Failure> {
        let metrics = dispatch::metrics::Metrics::new(&self.registry).map_err(defect)?;
        let metrics = Arc::new(metrics);
        let watched = Arc::clone(&metrics);
        self.lives.push(Arc::new(move || watched.liveness()));
        Ok(metrics)
    }

    /// The metrics of workers.
    ///
    /// # Errors
    /// A defect: a metric's name is taken.
    pub fn worker_metrics(&self) -> Result<Arc<work::metrics::Metrics>, Failure> {
        let metrics = work::metrics::Metrics::new(&self.registry).map_err(defect)?;
        Ok(Arc::new(metrics))
    }

    /// Serves metrics and health, if a port was asked for.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve(
        &mut self,
        invocation: &Invocation,
        shutdown: &CancellationToken,
    ) -> Result<(), Failure> {
        let Some(address) = invocation.telemetry.metrics else {
            return Ok(());
        };
        let needs = std::mem::take(&mut self.needs);
        let lives = std::mem::take(&mut self.lives);
        let served = Served {
            registry: self.registry.clone(),
            ready: Readiness::new(needs, &self.registry).map_err(defect)?,
            live: Arc::new(move || lives.iter().try_for_each(|live| live())),
        };
        serve::serve(address, served, shutdown.clone())
            .await
            .map_err(|error| Failure::input(format!("{error}: {}", error.source)))?;
        Ok(())
    }

    /// Connects, however long it takes.
    ///
    /// # Errors
    /// A file of the settings cannot be used, or the role was stopped.
    pub async fn connect(
        &self,
        broker: &ConnectSettings,
        name: &str,
        shutdown: &CancellationToken,
    ) -> Result<Bus, Failure> {
        self.link.looks_at(broker.places());
        let bus = connect_role(broker, name, shutdown).await?;
        self.link.found(bus.clone());
        Ok(bus)
    }
}

fn defect(error: prometheus::Error) -> Failure {
    Failure::input(error.to_string())
}

/// Checks the dispatcher's settings.
pub fn dispatcher_settings(
    args: &DispatcherRoleArgs,
    check: &mut Check<'_>,
) -> Option<DispatcherSettings> {
    let choices = args.dispatcher.check(check);
    let registry = registry(args.registries.check(home(), check));
    let choices = choices?;
    let defaults = DispatcherSettings::new(instance());
    Some(DispatcherSettings {
        topology: choices.topology,
        limits: choices.limits,
        lease: choices.lease.unwrap_or(defaults.lease),
        registry: Some(registry),
        ..defaults
    })
}

/// Names this process; no other and no later one has the same.
fn instance() -> String {
    let id: u32 = rand::random();
    format!("{}-{id:08x}", host_name())
}

/// This machine's name.
#[must_use]
pub fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// A client of registries with the node's own set-up.
#[must_use]
pub fn registry(settings: RegistrySettings) -> Registry {
    Registry::new(RegistryConfig {
        hosts_dirs: settings.hosts_dirs,
        docker_config: settings.docker_config,
        secrets_dir: Some(settings.secrets_dir),
        credential_providers: settings.credential_providers,
    })
}

/// A node, its runtime, and how that reaches registries.
#[derive(Clone)]
pub struct Node {
    /// The node.
    pub node: NodeSettings,
    registries: RegistrySettings,
    simulated: SimulatedConfig,
}

/// Checks a worker's settings; `pod` is the one it runs in, if it is to ask Kubernetes.
pub fn node(args: &WorkerRoleArgs, pod: Option<&Pod>, check: &mut Check<'_>) -> Option<Node> {
    let node = args.worker.check(&host_name(), pod, check);
    let registries = args.registries.check(home(), check);
    let simulated = args.simulated.check(check);
    Some(Node {
        node: node?,
        registries,
        simulated: simulated?,
    })
}

impl Node {
    /// Its labels, and whether it takes new pulls: as the settings say, or as Kubernetes says, which is
    /// waited for; `told` says what of. `None`: the role was stopped first.
    ///
    /// # Errors
    /// The files by which a pod asks Kubernetes cannot be used.
    pub async fn standing(
        &self,
        told: watch::Sender<Result<(), String>>,
        shutdown: &CancellationToken,
    ) -> Result<Option<watch::Receiver<NodeStanding>>, Failure> {
        let labels = self.node.labels.clone();
        let Some(choices) = self.node.kubernetes else {
            return Ok(Some(fixed(NodeStanding::labelled(labels))));
        };
        let following = Following {
            node: self.node.node.clone(),
            labels,
            choices,
        };
        let standing = following.begin(told, shutdown.clone()).await;
        standing.map_err(|error| {
            Failure::unreachable(error.to_string())
                .advise("check the files in /var/run/secrets/kubernetes.io/serviceaccount, or set PREWARM_KUBERNETES=off")
        })
    }

    /// What its worker is told.
    #[must_use]
    pub fn settings(&self, standing: watch::Receiver<NodeStanding>) -> WorkerSettings {
        WorkerSettings {
            standing,
            capacity: self.node.capacity,
            state_dir: self.node.state_dir.clone(),
            ..WorkerSettings::new(self.node.node.clone())
        }
    }

    /// Where its images go.
    ///
    /// # Errors
    /// The runtime's address cannot be one.
    pub fn runtime(&self) -> Result<Runtime, Failure> {
        Ok(match &self.node.runtime {
            RuntimeChoice::Simulated => Runtime::Simulated(Simulated::new(SimulatedConfig {
                node: self.node.node.to_string(),
                ..self.simulated.clone()
            })),
            RuntimeChoice::Containerd(containerd) => {
                let config = ContainerdConfig {
                    address: containerd.address.clone(),
                    namespace: containerd.namespace.clone(),
                    snapshotter: containerd.snapshotter.clone(),
                    min_free_disk: self.node.min_free_disk,
                    registry: registry(self.registries.clone()),
                    limits: PullLimits {
                        bandwidth: self.node.bandwidth_limit,
                        memory: self.node.memory_limit,
                        sync_filesystem: self.node.sync_filesystem,
                        nice: self.node.nice,
                    },
                };
                Runtime::Containerd(Containerd::connect(config).map_err(WorkerError::Runtime)?)
            }
        })
    }
}

impl From<DispatcherError> for Failure {
    fn from(error: DispatcherError) -> Self {
        Self::unreachable(error.to_string())
    }
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        let advice = match &error {
            WorkerError::Runtime(_) => {
                "check --containerd-address and --snapshotter, and that this user may open the socket (root may)"
            }
            WorkerError::Broker { .. } => "",
        };
        Self::unreachable(error.to_string()).advise(advice)
    }
}
