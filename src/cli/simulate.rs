//! `simulate`: many workers that only pretend to pull, for sizing and load tests.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::args::SimulateArgs;
use super::exit::Failure;
use super::output::{document, print, tell};
use super::settings::Check;
use super::settings::labels::labels;
use super::{Invocation, signals, text};
use crate::bus::Bus;
use crate::bus::connect::{ConnectSettings, connect_role};
use crate::domain::node::{MAX_CAPACITY, ZONE_LABEL};
use crate::domain::selector::{check_label_key, check_label_value};
use crate::simulate::figures::Percentiles;
use crate::simulate::plan::Plan;
use crate::simulate::{MAX_CONNECTIONS, MAX_NODES, Report, Simulation, SimulationError, Tally};

/// Between two lines on how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// `prewarm simulate`.
///
/// # Errors
/// Bad settings, or a broker that refuses the login.
pub async fn run(invocation: &Invocation, args: &SimulateArgs) -> Result<(), Failure> {
    let mut check = invocation.check();
    let broker = invocation.broker(&mut check);
    let simulation = simulation(args, &mut check);
    let connections = check.number("connections", Some(&args.connections), (1, MAX_CONNECTIONS));
    let ((broker, simulation), connections) =
        check.done(broker.zip(simulation).zip(connections))?;
    if let Err(error) = simulation.names() {
        return Err(Failure::input(format!("--node-prefix: {error}")));
    }
    let shutdown = signals::shutdown_on_signals()?;
    let buses = connect(&broker, connections.min(simulation.nodes), &shutdown).await?;
    if let Some(duration) = args.duration {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration.0).await;
            shutdown.cancel();
        });
    }
    let tally = Arc::new(Tally::default());
    let telling = tokio::spawn(tell_on(Arc::clone(&tally)));
    let ended = crate::simulate::run(&buses, &simulation, &tally, shutdown).await;
    telling.abort();
    let report = tally.report();
    match args.output {
        Some(format) => print(&document(format, &report)?)?,
        None => print(&table(&report))?,
    }
    ended.map_err(|error| match error {
        SimulationError::Worker(error) => Failure::from(error),
        SimulationError::Prefix(_) | SimulationError::Defect(_) => {
            Failure::unreachable(error.to_string())
        }
    })
}

async fn connect(
    broker: &ConnectSettings,
    connections: u32,
    shutdown: &CancellationToken,
) -> Result<Vec<Bus>, Failure> {
    let mut buses = Vec::new();
    for number in 1..=connections {
        let name = format!("prewarm simulate {number}");
        buses.push(connect_role(broker, &name, shutdown).await?);
    }
    Ok(buses)
}

fn simulation(args: &SimulateArgs, check: &mut Check<'_>) -> Option<Simulation> {
    let nodes = check.number("nodes", Some(&args.nodes), (1, MAX_NODES));
    let zones = check.number("zones", args.zones.as_deref().or(Some("0")), (0, MAX_NODES));
    let capacity = check.number("capacity", Some(&args.capacity), (1, MAX_CAPACITY));
    let mut spread = spread(&args.spread, check);
    if let Some(zones) = zones.filter(|zones| *zones > 0) {
        let names = (1..=zones).map(|zone| format!("zone-{zone}")).collect();
        spread.push((ZONE_LABEL.to_owned(), names));
    }
    let labels = labels("labels", args.labels.as_deref(), check);
    let runtime = args.simulated.check(check);
    let plan = Plan {
        join_rate: rate("join-rate", args.join_rate.as_deref(), check).filter(|rate| *rate > 0.0),
        leave_rate: rate("leave-rate", args.leave_rate.as_deref(), check).unwrap_or(0.0),
        flapping: share("flapping", args.flapping.as_deref(), check),
        flap_up: args.flap_up.0,
        flap_away: args.flap_away.0,
    };
    Some(Simulation {
        prefix: args.node_prefix.clone(),
        nodes: nodes?,
        labels,
        spread,
        capacity: capacity?,
        runtime: runtime?,
        plan,
    })
}

fn rate(name: &str, text: Option<&str>, check: &mut Check<'_>) -> Option<f64> {
    let rate: f64 = check.parsed(name, text)?;
    if rate.is_finite() && rate >= 0.0 {
        return Some(rate);
    }
    check.problem(name, format!("{rate} is no number of nodes a second"));
    None
}

fn share(name: &str, text: Option<&str>, check: &mut Check<'_>) -> f64 {
    match check.parsed::<f64>(name, text) {
        Some(share) if (0.0..=1.0).contains(&share) => share,
        Some(share) => {
            check.problem(name, format!("{share} is no share from 0 to 1"));
            0.0
        }
        None => 0.0,
    }
}

/// Reads `key=v1|v2|v3`.
fn spread(texts: &[String], check: &mut Check<'_>) -> Vec<(String, Vec<String>)> {
    let mut spread = Vec::new();
    for text in texts {
        let Some((key, values)) = text.split_once('=') else {
            let problem = format!("{text:?} is not a label with values: write key=v1|v2|v3");
            check.problem("spread", problem);
            continue;
        };
        let values: Vec<String> = values.split('|').map(str::to_owned).collect();
        let legal = values.iter().try_for_each(|value| check_label_value(value));
        match check_label_key(key).and(legal) {
            Ok(()) => spread.push((key.to_owned(), values)),
            Err(error) => check.problem("spread", error),
        }
    }
    spread
}

async fn tell_on(tally: Arc<Tally>) {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.tick().await;
    let mut before = tally.report();
    loop {
        ticks.tick().await;
        let now = tally.report();
        tell(&line(&before, &now));
        before = now;
    }
}

/// How far it is, and how fast since the line before.
fn line(before: &Report, now: &Report) -> String {
    let span = (now.seconds - before.seconds).max(f64::EPSILON);
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / span;
    format!(
        "{:>5.0}s  {} nodes, {} registrations; received {} ({:.0}/s), started {}, retried {}, succeeded {} ({:.0}/s), failed {}",
        now.seconds,
        now.nodes,
        now.registrations,
        now.received,
        rate(before.received, now.received),
        now.started,
        now.retried,
        now.succeeded,
        rate(before.ended(), now.ended()),
        now.failed,
    )
}

fn table(report: &Report) -> String {
    let number = |name: &str, value: u64| vec![name.to_owned(), value.to_string()];
    let mut rows = vec![vec!["WHAT".to_owned(), "HOW MANY".to_owned()]];
    rows.extend([
        number("nodes joined", report.joined),
        number("nodes left", report.left),
        number("registrations", report.registrations),
        number("tasks received", report.received),
        number("  of them again", report.redelivered),
        number("attempts started", report.started),
        number("attempts retried", report.retried),
        number("pulls succeeded", report.succeeded),
        number("  of them there before", report.already_present),
        number("pulls failed", report.failed),
    ]);
    let rate = format!(
        "{:.0} a second, in {:.1} s",
        report.ended_per_second, report.busy_seconds
    );
    rows.push(vec!["pulls ended".to_owned(), rate]);
    let mut text = text::columns(&rows);
    text.push('\n');
    let heading = ["MILLISECONDS", "COUNT", "P50", "P90", "P99", "MAX"];
    let times = |name: &str, times: Percentiles| {
        let values = [times.p50, times.p90, times.p99, times.max];
        let mut row = vec![name.to_owned(), times.count.to_string()];
        row.extend(values.map(|value| format!("{value:.1}")));
        row
    };
    text.push_str(&text::columns(&[
        heading.map(str::to_owned).to_vec(),
        times("first of a run to release", report.release_millis),
        times("release to delivery", report.delivery_millis),
        times("release to start", report.start_millis),
        times("release to end", report.completion_millis),
        times("start to end", report.execution_millis),
    ]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::Sources;

    #[test]
    fn labels_are_dealt_out_and_bad_ones_told() {
        let sources = Sources::default();
        let mut check = Check::new(&sources);
        let read = spread(&["pool=a|b".to_owned(), "x".to_owned()], &mut check);
        assert_eq!(
            read,
            [("pool".to_owned(), vec!["a".to_owned(), "b".to_owned()])]
        );
        spread(&["pool=a b".to_owned()], &mut check);
        rate("join-rate", Some("-1"), &mut check);
        share("flapping", Some("1.5"), &mut check);
        let problems = check.done(Some(())).unwrap_err().0;
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn the_table_has_every_figure() {
        let report = Report {
            joined: 12,
            succeeded: 34,
            failed: 5,
            ..Report::default()
        };
        let text = table(&report);
        for part in [
            "nodes joined             12",
            "succeeded          34",
            "P99",
            "first of a run to release",
            "release to start",
            "release to end",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let line = line(&Report::default(), &report);
        assert!(line.contains("succeeded 34"), "{line}");
    }
}
