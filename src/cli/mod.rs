//! The command line: parse, build, do, and say how it went.

pub mod accounts;
pub mod apply;
pub mod args;
pub mod check;
pub mod describe;
pub mod descriptors;
pub mod events;
pub mod exit;
pub mod get;
pub mod health;
pub mod heap;
pub mod journal;
pub mod output;
pub mod request;
pub mod roles;
pub mod rules;
pub mod run;
pub mod settings;
pub mod signals;
pub mod simulate;
pub mod submit;
pub mod summary;
pub mod tethered;
pub mod text;
pub mod up;
pub mod verbs;
pub mod watch;
pub mod webhook;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::bus::Bus;
use crate::bus::connect::{ConnectSettings, connect_once};
use crate::domain::time::Timestamp;
use crate::telemetry;
use crate::telemetry::trace::settings::TraceSettings;
use crate::telemetry::trace::{self, Exporter};
use crate::wire::schema;
use crate::wire::subject::JobVerb;
use args::{Cli, Command};
use exit::{Exit, Failure};
use output::print;
use settings::broker::{BrokerArgs, Surroundings};
use settings::file::SettingsFile;
use settings::telemetry::{Life, TelemetrySettings};
use settings::{Check, Sources};

/// The program: does what the command line says and returns what to tell the shell.
#[must_use]
pub fn main() -> ExitCode {
    let done = parse().and_then(|(invocation, command)| {
        if matches!(command, Command::Worker(_) | Command::Up(_)) {
            heap::return_large();
            descriptors::allow_all();
        }
        perform(&invocation, command)
    });
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                output::tell(&text);
            }
            failure.exit.into()
        }
    }
}

/// What every command has: where its settings came from, and those that all share.
pub struct Invocation {
    sources: Sources,
    /// How to reach the broker, unchecked: not every command needs one.
    pub broker: BrokerArgs,
    /// What the environment says of brokers.
    pub around: Surroundings,
    /// Logs and metrics.
    pub telemetry: TelemetrySettings,
}

impl Invocation {
    /// Begins to check settings.
    #[must_use]
    pub fn check(&self) -> Check<'_> {
        Check::new(&self.sources)
    }

    /// Checks how to reach the broker.
    pub fn broker(&self, check: &mut Check<'_>) -> Option<ConnectSettings> {
        self.broker.check(&self.around, check)
    }

    /// A connection for one command.
    async fn connect(&self) -> Result<Bus, Failure> {
        let mut check = self.check();
        let broker = self.broker(&mut check);
        Ok(connect_once(&check.done(broker)?, "prewarm").await?)
    }
}

fn parse() -> Result<(Invocation, Command), Failure> {
    // clap prints usage errors itself and ends with 2, which is our code for bad input, too.
    let first = Cli::command().get_matches();
    let file = match first.get_one::<std::path::PathBuf>("config") {
        Some(path) if !path.as_os_str().is_empty() => {
            Some(SettingsFile::read(path, &Cli::command())?)
        }
        _ => None,
    };
    let command = match &file {
        Some(file) => file.weigh_in(Cli::command()),
        None => Cli::command(),
    };
    let matches = command.clone().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let sources = Sources::of(&command, &matches, file.as_ref());
    let mut check = Check::new(&sources);
    let telemetry = cli.telemetry.check(
        life(&cli.command),
        telemetry::stderr_is_terminal(),
        &mut check,
    );
    let invocation = Invocation {
        telemetry: check.done(telemetry)?,
        broker: cli.broker,
        around: Surroundings::look(),
        sources,
    };
    Ok((invocation, cli.command))
}

fn life(command: &Command) -> Life {
    match command {
        Command::Dispatcher(_) | Command::Worker(_) | Command::Webhook(_) => Life::Role,
        Command::Up(_) => Life::Local,
        _ => Life::Command,
    }
}

/// What the process is called in traces.
const fn service(command: &Command) -> &'static str {
    match command {
        Command::Dispatcher(_) => "prewarm-dispatcher",
        Command::Worker(_) => "prewarm-worker",
        Command::Webhook(_) => "prewarm-webhook",
        _ => "prewarm",
    }
}

fn perform(invocation: &Invocation, command: Command) -> Result<(), Failure> {
    if let Command::Tethered(args) = &command {
        return tethered::run(args);
    }
    let look = |name: &str| std::env::var(name).ok();
    let traces = TraceSettings::read(look, service(&command));
    let is_traced = matches!(traces, Ok(Some(_)));
    telemetry::log_to_stderr(
        invocation.telemetry.filter.clone(),
        invocation.telemetry.format,
        is_traced,
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::input(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        // Whatever is wrong with traces is no reason not to pull.
        let exporter = traces.map_err(|error| error.to_string());
        match exporter.and_then(|traces| {
            let exporter = traces.map(Exporter::start).transpose();
            exporter.map_err(|error| error.to_string())
        }) {
            Ok(exporter) => exporter.into_iter().for_each(trace::begin),
            Err(error) => tracing::warn!(error, "no traces are exported"),
        }
        let outcome = perform_async(invocation, command).await;
        trace::flush().await;
        outcome
    });
    // What still runs in the background has no more to say.
    runtime.shutdown_background();
    outcome
}

async fn perform_async(invocation: &Invocation, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(invocation, args).await,
        Command::Dispatcher(args) => roles::dispatcher(invocation, &args).await,
        Command::Worker(args) => roles::worker(invocation, &args).await,
        Command::Webhook(args) => webhook::run(invocation, &args).await,
        Command::Check(args) => check::run(invocation, &args).await,
        Command::Accounts(args) => {
            let mut check = invocation.check();
            let broker = invocation.broker(&mut check);
            accounts::run(&check.done(broker)?.prefix, &args.command)
        }
        Command::Completions { shell } => completions(shell),
        Command::Schema { name } => write_schema(name.as_deref()),
        Command::Simulate(args) => simulate::run(invocation, &args).await,
        Command::Tethered(args) => tethered::run(&args),
        Command::Run(args) => {
            let manifest = run::manifest(&args, &run::random_suffix())?;
            if args.dry_run {
                let format = args.submit.output.unwrap_or(output::DataFormat::Yaml);
                return print(&output::document(format, &manifest.document)?);
            }
            submit::submit(&invocation.connect().await?, vec![manifest], &args.submit).await
        }
        Command::Apply(args) => {
            let loaded = apply::load(&args.filename)?;
            let bus = invocation.connect().await?;
            rules::store(&bus, &loaded.rules).await?;
            if loaded.jobs.is_empty() {
                return Ok(());
            }
            submit::submit(&bus, loaded.jobs, &args.submit).await
        }
        Command::Rules(args) => {
            let bus = match rules::needs_broker(&args) {
                true => Some(invocation.connect().await?),
                false => None,
            };
            rules::run(bus.as_ref(), &args).await
        }
        Command::Get(args) => get::run(&invocation.connect().await?, &args).await,
        Command::Describe(args) => describe::run(&invocation.connect().await?, &args).await,
        Command::Watch(args) => watch::run(&invocation.connect().await?, &args).await,
        Command::Events(args) => events::run(&invocation.connect().await?, &args).await,
        Command::Cancel(args) => {
            verbs::run(&invocation.connect().await?, JobVerb::Cancel, &args).await
        }
        Command::Pause(args) => {
            verbs::run(&invocation.connect().await?, JobVerb::Pause, &args).await
        }
        Command::Resume(args) => {
            verbs::run(&invocation.connect().await?, JobVerb::Resume, &args).await
        }
        Command::Delete(args) => {
            verbs::run(&invocation.connect().await?, JobVerb::Delete, &args).await
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "prewarm", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn write_schema(name: Option<&str>) -> Result<(), Failure> {
    let schemas = schema::all();
    let names: Vec<&str> = schemas.iter().map(|(name, _)| *name).collect();
    let Some(name) = name else {
        return print(&format!("{}\n", names.join("\n")));
    };
    match schemas.iter().find(|(known, _)| *known == name) {
        Some((_, schema)) => print(&output::document(output::DataFormat::Json, schema)?),
        None => Err(Failure::input(format!(
            "there is no schema {name}; there are {}",
            names.join(", ")
        ))),
    }
}

/// The time of day.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_of_the_contract_is_there_under_its_name() {
        let names = settings::file::names(&Cli::command());
        for name in [
            "nats-url",
            "nats-creds",
            "nats-nkey",
            "nats-ca",
            "nats-cert",
            "nats-key",
            "nats-context",
            "subject-prefix",
            "replicas",
            "node",
            "labels",
            "runtime",
            "containerd-address",
            "containerd-namespace",
            "snapshotter",
            "registry-config-dir",
            "docker-config",
            "credential-provider-config",
            "credential-provider-bin-dir",
            "secrets-dir",
            "capacity",
            "bandwidth-limit",
            "memory-limit",
            "sync-filesystem",
            "nice",
            "state-dir",
            "min-free-disk",
            "metrics-listen",
            "log-format",
            "log",
            "listen",
            "webhook-config",
        ] {
            assert!(names.iter().any(|known| known == name), "{name} is missing");
        }
    }

    #[test]
    fn every_variable_is_named_after_its_setting() {
        fn look(command: &clap::Command) {
            for argument in command.get_arguments() {
                if let (Some(name), Some(variable)) = (argument.get_long(), argument.get_env()) {
                    let expected = format!("PREWARM_{}", name.replace('-', "_").to_uppercase());
                    assert_eq!(variable.to_str(), Some(expected.as_str()));
                }
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }
}
