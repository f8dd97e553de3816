//! What a dispatcher is told.

use super::Check;
use crate::bus::topology::TopologySettings;

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
}

impl DispatcherArgs {
    /// Checks the settings.
    pub fn check(&self, check: &mut Check<'_>) -> Option<TopologySettings> {
        match self.replicas.trim() {
            "1" => Some(TopologySettings { replicas: 1 }),
            "3" => Some(TopologySettings { replicas: 3 }),
            "5" => Some(TopologySettings { replicas: 5 }),
            other => {
                check.problem("replicas", format!("{other:?} is not 1, 3 or 5"));
                None
            }
        }
    }
}
