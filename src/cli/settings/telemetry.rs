//! What is logged, how, and where metrics are served.

use std::net::SocketAddr;

use tracing_subscriber::EnvFilter;

use super::{Check, given};
use crate::telemetry::{LogFormat, listen};

/// Where roles serve metrics when nobody says.
pub const DEFAULT_METRICS: &str = "0.0.0.0:9090";
/// What roles log when nobody says. What client libraries say of a connection, we say, too, and once.
const ROLE_FILTER: &str = "info,async_nats=off,kube_client=off";
/// What commands log when nobody says: their own words are the report.
const COMMAND_FILTER: &str = "warn,async_nats=off,kube_client=off";

/// Logs, metrics and health.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Logs and metrics")]
pub struct TelemetryArgs {
    /// What to log: a level, or `target=level,…` [default: info for roles, else warn]
    #[arg(long, global = true, env = "PREWARM_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// text or json [default: text on a terminal, else json]
    #[arg(long, global = true, env = "PREWARM_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Where to serve /metrics, /healthz and /readyz; `off` for nowhere [default: 0.0.0.0:9090 for dispatcher, worker and webhook, else off]
    #[arg(
        long,
        global = true,
        env = "PREWARM_METRICS_LISTEN",
        value_name = "ADDRESS"
    )]
    pub metrics_listen: Option<String>,
}

/// Whether a program runs until it is stopped, does one thing, or is everything at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// A role of a fleet: it logs what it does and serves metrics.
    Role,
    /// A role on somebody's own machine: it logs, and opens no port that nobody asked for.
    Local,
    /// One command.
    Command,
}

/// Checked settings.
#[derive(Debug)]
pub struct TelemetrySettings {
    /// What is logged.
    pub filter: EnvFilter,
    /// How.
    pub format: LogFormat,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

impl TelemetryArgs {
    /// Checks the settings; `terminal`: whether logs go to a person.
    pub fn check(
        &self,
        life: Life,
        terminal: bool,
        check: &mut Check<'_>,
    ) -> Option<TelemetrySettings> {
        let default_filter = match life {
            Life::Role | Life::Local => ROLE_FILTER,
            Life::Command => COMMAND_FILTER,
        };
        let filter = check.parsed("log", given(self.log.as_deref()).or(Some(default_filter)));
        let format = match given(self.log_format.as_deref()) {
            None if terminal => Some(LogFormat::Text),
            None => Some(LogFormat::Json),
            text => check.parsed("log-format", text),
        };
        let metrics = match (given(self.metrics_listen.as_deref()), life) {
            (Some("off"), _) | (None, Life::Local | Life::Command) => None,
            (text, _) => listen_address("metrics-listen", text.unwrap_or(DEFAULT_METRICS), check),
        };
        Some(TelemetrySettings {
            filter: filter?,
            format: format?,
            metrics,
        })
    }
}

fn listen_address(name: &str, text: &str, check: &mut Check<'_>) -> Option<SocketAddr> {
    let address = listen::parse(text);
    if address.is_none() {
        check.problem(
            name,
            format!("{text:?} is not an address to listen on, such as 127.0.0.1:9090 or :9090"),
        );
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::Sources;

    fn checked(args: &TelemetryArgs, life: Life) -> Result<TelemetrySettings, Vec<String>> {
        let sources = Sources::default();
        let mut check = Check::new(&sources);
        let settings = args.check(life, true, &mut check);
        check.done(settings).map_err(|bad| bad.0)
    }

    #[test]
    fn only_roles_of_a_fleet_open_a_port_unasked() {
        let args = TelemetryArgs::default();
        assert_eq!(
            checked(&args, Life::Role).unwrap().metrics,
            Some(DEFAULT_METRICS.parse().unwrap())
        );
        assert_eq!(checked(&args, Life::Local).unwrap().metrics, None);
        assert_eq!(checked(&args, Life::Command).unwrap().metrics, None);
        let asked = TelemetryArgs {
            metrics_listen: Some(":1234".to_owned()),
            ..args
        };
        assert_eq!(
            checked(&asked, Life::Command)
                .unwrap()
                .metrics
                .unwrap()
                .port(),
            1234
        );
        let off = TelemetryArgs {
            metrics_listen: Some("off".to_owned()),
            ..asked
        };
        assert_eq!(checked(&off, Life::Role).unwrap().metrics, None);
    }

    #[test]
    fn every_problem_is_told() {
        let args = TelemetryArgs {
            log: Some("prewarm=loud".to_owned()),
            log_format: Some("xml".to_owned()),
            metrics_listen: Some("9090".to_owned()),
        };
        let problems = checked(&args, Life::Role).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("--log: "), "{problems:?}");
        assert_eq!(
            problems[1],
            "--log-format: \"xml\" is neither text nor json"
        );
        assert!(
            problems[2].starts_with("--metrics-listen: \"9090\" is not an address"),
            "{problems:?}"
        );
    }
}
