//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::accounts::AccountsArgs;
use super::output::DataFormat;
use super::settings::broker::BrokerArgs;
use super::settings::dispatcher::DispatcherArgs;
use super::settings::kubernetes::KubernetesArgs;
use super::settings::registry::RegistryArgs;
use super::settings::simulated::SimulatedArgs;
use super::settings::span::Span;
use super::settings::telemetry::TelemetryArgs;
use super::settings::webhook::WebhookArgs;
use super::settings::worker::{ContainerdArgs, WorkerArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the job failed, partly failed, or was cancelled
  2  bad input
  3  the broker or the runtime cannot be reached
  4  --timeout passed";

const WEBHOOK_HELP: &str = "\
Sources are posted to /webhooks/SOURCE, or /webhooks/SOURCE/SECRET where the proof is the path:
  distribution harbor quay dockerhub github gitlab acr ecr gar gitea jfrog nexus aliyun cloudevents generic

The file of --webhook-config, for each source:
  proof        header, hmac, path, oidc, or none (anyone may tell)  [default: as the source sends it]
  secret-file  or secret-env: the secret, at least 16 characters
  header       the header of the proof              [default: the source's own, else authorization]
  registries   hosts of image references it may speak of, such as harbor.example.com or *.azurecr.io
  hosts        names in payloads and what they are in image references, such as
               docker-hosted: nexus.example.com:8082
  digest-only  true: pushes without a tag count, though they may be children of an index
  audience, email, jwks-file or jwks-url            for oidc";

/// Puts container images on nodes before pods need them
#[derive(Parser)]
#[command(name = "prewarm", version, after_help = EXIT_CODES, max_term_width = 110, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// File of settings in YAML: their names without dashes before, such as `node: node-1`
    #[arg(long, global = true, env = "PREWARM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the broker is.
    #[command(flatten)]
    pub broker: BrokerArgs,
    /// Logs and metrics.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Run everything in one process on this machine; starts nats-server if no broker is given
    Up(UpArgs),
    /// Run the dispatcher: it makes pull tasks of jobs and keeps the books
    Dispatcher(DispatcherRoleArgs),
    /// Run a node's worker: it pulls the node's images
    Worker(WorkerRoleArgs),
    /// Run the receiver of registries' webhooks: what they tell becomes pushes on the broker
    #[command(after_help = WEBHOOK_HELP)]
    Webhook(WebhookRoleArgs),
    /// Put images on nodes
    Run(RunArgs),
    /// Submit jobs, and keep push rules, from files
    Apply(ApplyArgs),
    /// Try push rules out, or delete one
    Rules(RulesArgs),
    /// Show jobs, nodes or push rules
    Get(GetArgs),
    /// Show one job, node or push rule in detail: failures by reason, slowest nodes, what it waits for
    Describe(DescribeArgs),
    /// Watch jobs live
    Watch(WatchArgs),
    /// Show what happened
    Events(EventsArgs),
    /// End a job; what it has done stays
    Cancel(JobArgs),
    /// Release no more pulls of a job until it is resumed
    Pause(JobArgs),
    /// Go on with a paused job
    Resume(JobArgs),
    /// End a job and forget it
    Delete(JobArgs),
    /// Look at broker, containerd, registries and permissions, and say what to do
    Check(CheckArgs),
    /// Play many nodes that only pretend to pull, for sizing and load tests
    Simulate(SimulateArgs),
    /// Make NATS accounts and users by signed JWTs: one more node changes nothing at the broker
    Accounts(AccountsArgs),
    /// Write the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the JSON Schema of a message
    Schema {
        /// Which one; without a name they are listed
        name: Option<String>,
    },
    /// Become a program that ends with its parent process
    #[command(hide = true)]
    Tethered(TetheredArgs),
}

/// A length of time on the command line.
fn span(text: &str) -> Result<Span, String> {
    text.parse()
        .map_err(|error: super::settings::span::SpanError| error.to_string())
}

/// `prewarm dispatcher`.
#[derive(Args)]
pub struct DispatcherRoleArgs {
    /// Its own settings.
    #[command(flatten)]
    pub dispatcher: DispatcherArgs,
    /// How it resolves tags.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// `prewarm worker`.
#[derive(Args)]
pub struct WorkerRoleArgs {
    /// The node.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// How it reaches registries.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// How it pretends.
    #[command(flatten)]
    pub simulated: SimulatedArgs,
}

/// `prewarm webhook`.
#[derive(Args)]
pub struct WebhookRoleArgs {
    /// Its own settings.
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

/// `prewarm up`.
#[derive(Args)]
pub struct UpArgs {
    /// The node.
    #[command(flatten)]
    pub worker: WorkerRoleArgs,
    /// The dispatcher's settings.
    #[command(flatten)]
    pub dispatcher: DispatcherArgs,
    /// The nats-server to start [default: the one on PATH]
    #[arg(long, value_name = "FILE", help_heading = "Up")]
    pub nats_server: Option<PathBuf>,
    /// Where nats-server keeps its data [default: ~/.local/share/prewarm]
    #[arg(long, value_name = "DIR", help_heading = "Up")]
    pub data_dir: Option<PathBuf>,
    /// With the simulated runtime: how many nodes, node-1 to node-N
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Up")]
    pub nodes: u32,
}

/// `prewarm run`.
#[derive(Args)]
pub struct RunArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The job's name; the same name again edits the job [default: made of the first image and a few random letters]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Labels of the job: k=v,k=v
    #[arg(long, value_name = "LABELS")]
    pub label: Option<String>,
    /// Only nodes with these labels: k=v,k=v
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "node")]
    pub selector: Option<String>,
    /// Only this node; may be given again
    #[arg(long, value_name = "NAME")]
    pub node: Vec<String>,
    /// Pulls at once: a number, or a percentage of the nodes [default: 10]
    #[arg(short, long, value_name = "N|N%")]
    pub parallelism: Option<String>,
    /// Higher first [default: 0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub priority: Option<String>,
    /// IfNotPresent, or Always to ask the registry for a newer image [default: IfNotPresent]
    #[arg(long, value_name = "POLICY")]
    pub pull_policy: Option<String>,
    /// os/architecture[/variant] [default: each node's own]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Credentials in the nodes' secrets directory; may be given again
    #[arg(long, value_name = "NAME")]
    pub pull_secret: Vec<String>,
    /// Longest one attempt may take, in seconds [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub timeout_seconds: Option<String>,
    /// Retries of a pull after its first attempt [default: 3]
    #[arg(long, value_name = "NUMBER")]
    pub backoff_limit: Option<String>,
    /// Fail the job once more nodes than this failed: a number or a percentage
    #[arg(long, value_name = "N|N%")]
    pub max_failed: Option<String>,
    /// Keep nodes warm, new ones too, until the job is deleted
    #[arg(long)]
    pub never: bool,
    /// With --never: how often every node checks again [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub repeat: Option<Span>,
    /// End the job after this time, whatever is unfinished
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub deadline: Option<Span>,
    /// Delete the job this long after its end
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub ttl: Option<Span>,
    /// Keep the images from kubelet's garbage collection while the job lives
    #[arg(long)]
    pub pin: bool,
    /// Write the manifest instead of submitting it
    #[arg(long)]
    pub dry_run: bool,
    /// Waiting and output.
    #[command(flatten)]
    pub submit: SubmitArgs,
}

/// What `run` and `apply` share.
#[derive(Args)]
pub struct SubmitArgs {
    /// Wait until the job ends; of a job that never ends, until every node is warm
    #[arg(short, long)]
    pub wait: bool,
    /// With --wait: for at most this long
    #[arg(long, value_name = "TIME", value_parser = span, requires = "wait")]
    pub timeout: Option<Span>,
    /// Write the job's last event (with --dry-run: the manifest) as data
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<DataFormat>,
}

/// `prewarm apply`.
#[derive(Args)]
pub struct ApplyArgs {
    /// Manifest of jobs, native or Kruise, and push rules, JSON or YAML; `-` is standard input; may be given again
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    /// Waiting and output.
    #[command(flatten)]
    pub submit: SubmitArgs,
}

/// `prewarm rules`.
#[derive(Args)]
pub struct RulesArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: RulesCommand,
}

/// What can be done with push rules, beside `apply` and `get rules`.
#[derive(Subcommand)]
pub enum RulesCommand {
    /// Say which jobs would come of a payload; nothing is published
    Test(RulesTestArgs),
    /// Delete a rule; its jobs stay
    Delete {
        /// The rule
        name: String,
    },
}

/// `prewarm rules test`.
#[derive(Args)]
pub struct RulesTestArgs {
    /// What a webhook would get, as a file; `-` is standard input
    pub payload: PathBuf,
    /// Who sends such payloads, such as harbor [default: the payload is a push as prewarm.push takes it]
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Pushes without a tag count, as with the receiver's setting of this name
    #[arg(long, requires = "source")]
    pub digest_only: bool,
    /// Rules from this file instead of the broker's; may be given again
    #[arg(short, long = "filename", value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    /// Write pushes and jobs as data
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<DataFormat>,
}

/// What there is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// Jobs
    #[value(name = "jobs", alias = "job")]
    Jobs,
    /// Nodes
    #[value(name = "nodes", alias = "node")]
    Nodes,
    /// Push rules
    #[value(name = "rules", alias = "rule")]
    Rules,
}

/// How a list looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ListFormat {
    /// What matters, in columns
    Table,
    /// More columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// `prewarm get`.
#[derive(Args)]
pub struct GetArgs {
    /// jobs, nodes or rules; job, node and rule do as well
    pub kind: Kind,
    /// Only this one
    pub name: Option<String>,
    /// How it looks
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: ListFormat,
    /// Go on and show every change
    #[arg(short, long)]
    pub watch: bool,
}

/// `prewarm describe`.
#[derive(Args)]
pub struct DescribeArgs {
    /// job, node or rule
    pub kind: Kind,
    /// Its name
    pub name: String,
}

/// `prewarm watch`.
#[derive(Args)]
pub struct WatchArgs {
    /// Only this job, until it ends; else all jobs until interrupted
    pub job: Option<String>,
    /// For at most this long
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub timeout: Option<Span>,
}

/// How events look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EventFormat {
    /// One line an event
    Text,
    /// One JSON object a line
    Json,
}

/// `prewarm events`.
#[derive(Args)]
pub struct EventsArgs {
    /// Only of this job
    #[arg(long, value_name = "JOB")]
    pub job: Option<String>,
    /// Only of these types, such as `task.failed`, `job` or `completed`; may be given again
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only since this time ago (1h), or this time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Go on with what happens from now on; with --since, from then on
    #[arg(short, long)]
    pub follow: bool,
    /// How they look
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: EventFormat,
}

/// `prewarm cancel|pause|resume|delete`.
#[derive(Args)]
pub struct JobArgs {
    /// The job
    pub job: String,
    /// How long to wait for the dispatcher's answer; the request is kept in any case
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "10s")]
    pub timeout: Span,
}

/// `prewarm check`.
#[derive(Args)]
pub struct CheckArgs {
    /// Also look whether this login may do what the worker of this node does, and only that
    #[arg(long, env = "PREWARM_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Whether the node is looked at in Kubernetes.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// Also ask its registry for this image; may be given again
    #[arg(long, value_name = "IMAGE")]
    pub image: Vec<String>,
    /// containerd to look at containerd too, simulated to leave it out
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
    /// How registries are reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// `prewarm simulate`.
#[derive(Args)]
pub struct SimulateArgs {
    /// How many nodes
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    pub nodes: String,
    /// What their names begin with; -00001 and so on follows
    #[arg(long, value_name = "TEXT", default_value = "sim")]
    pub node_prefix: String,
    /// Connections to the broker that they share; the login must be allowed to speak for all of them
    #[arg(long, value_name = "NUMBER", default_value = "8")]
    pub connections: String,
    /// Labels of every node: k=v,k=v
    #[arg(long, value_name = "LABELS")]
    pub labels: Option<String>,
    /// A label whose values the nodes get in turn: pool=a|b|c; may be given again
    #[arg(long, value_name = "LABEL")]
    pub spread: Vec<String>,
    /// Spread them over this many zones (label topology.kubernetes.io/zone)
    #[arg(long, value_name = "NUMBER")]
    pub zones: Option<String>,
    /// Pulls at once on each node
    #[arg(long, value_name = "NUMBER", default_value = "3")]
    pub capacity: String,
    /// Nodes that join a second [default: all at once]
    #[arg(long, value_name = "NUMBER")]
    pub join_rate: Option<String>,
    /// Nodes that leave for good a second, once all have joined
    #[arg(long, value_name = "NUMBER")]
    pub leave_rate: Option<String>,
    /// Share of nodes that come and go, 0 to 1; every other time without a word
    #[arg(long, value_name = "SHARE")]
    pub flapping: Option<String>,
    /// How long such a node stays, give or take half
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "60s")]
    pub flap_up: Span,
    /// How long it is away, give or take half
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "30s")]
    pub flap_away: Span,
    /// End after this time [default: when interrupted]
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub duration: Option<Span>,
    /// How the figures at the end look [default: a table]
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<DataFormat>,
    /// How they pretend.
    #[command(flatten)]
    pub simulated: SimulatedArgs,
}

/// `prewarm tethered`.
#[derive(Args)]
pub struct TetheredArgs {
    /// The process to end with
    #[arg(long)]
    pub parent: u32,
    /// A file that stays locked while the program runs
    #[arg(long)]
    pub lock: PathBuf,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<std::ffi::OsString>,
}
