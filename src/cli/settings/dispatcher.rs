//! What a dispatcher is told.

use std::time::Duration;

use super::Check;
use super::span::Span;
use crate::bus::topology::TopologySettings;
use crate::dispatch::state::{DEFAULT_LOOKAHEAD, Settings};

/// Most a limit across jobs may be.
const MAX_PULLS: u32 = 1_000_000;
/// Most tasks a node may be given beyond its capacity.
const MAX_LOOKAHEAD: u32 = 1_000;
/// The lease times that make sense: below, a busy broker ends leaderships; above, a take-over is late.
const LEASES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The dispatcher's settings.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Dispatcher")]
pub struct DispatcherArgs {
    /// Copies the broker keeps of streams and buckets: 1, 3 or 5
    #[arg(
        long,
        env = "PREWARM_REPLICAS",
        value_name = "NUMBER",
        default_value = "1"
    )]
    pub replicas: String,
    /// Most pulls of all jobs at once from one registry host [default: no limit]
    #[arg(long, env = "PREWARM_MAX_PULLS_PER_REGISTRY", value_name = "NUMBER")]
    pub max_pulls_per_registry: Option<String>,
    /// Most pulls of all jobs at once in one zone, by the label topology.kubernetes.io/zone [default: no limit]
    #[arg(long, env = "PREWARM_MAX_PULLS_PER_ZONE", value_name = "NUMBER")]
    pub max_pulls_per_zone: Option<String>,
    /// Tasks a node is given beyond its capacity, so that a slot that comes free finds work waiting [default: 2]
    #[arg(long, env = "PREWARM_LOOKAHEAD", value_name = "NUMBER")]
    pub lookahead: Option<String>,
    /// Time without a sign of the leader after which another dispatcher leads [default: 5s]
    #[arg(long, env = "PREWARM_LEASE", value_name = "TIME")]
    pub lease: Option<String>,
}

/// What the arguments say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DispatcherChoices {
    /// Streams and buckets.
    pub topology: TopologySettings,
    /// Limits across all jobs.
    pub limits: Settings,
    /// The lease time; `None`: the default.
    pub lease: Option<Duration>,
}

impl DispatcherArgs {
    /// Checks the settings.
    pub fn check(&self, check: &mut Check<'_>) -> Option<DispatcherChoices> {
        let replicas = match self.replicas.trim() {
            "1" => Some(1),
            "3" => Some(3),
            "5" => Some(5),
            other => {
                check.problem("replicas", format!("{other:?} is not 1, 3 or 5"));
                None
            }
        };
        let pulls = (1, MAX_PULLS);
        let per_registry = self.max_pulls_per_registry.as_deref();
        let limits = Settings {
            host_limit: check.number("max-pulls-per-registry", per_registry, pulls),
            zone_limit: check.number(
                "max-pulls-per-zone",
                self.max_pulls_per_zone.as_deref(),
                pulls,
            ),
            lookahead: check
                .number("lookahead", self.lookahead.as_deref(), (0, MAX_LOOKAHEAD))
                .unwrap_or(DEFAULT_LOOKAHEAD),
        };
        let lease = check
            .parsed::<Span>("lease", self.lease.as_deref())
            .map(|span| span.0);
        if lease.is_some_and(|lease| lease < LEASES.0 || lease > LEASES.1) {
            check.problem("lease", "a lease lasts from 1s to 5m");
        }
        Some(DispatcherChoices {
            topology: TopologySettings {
                replicas: replicas?,
            },
            limits,
            lease,
        })
    }
}
