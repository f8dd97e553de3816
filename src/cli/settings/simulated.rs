//! How the simulated runtime behaves.

use super::Check;
use crate::image::simulated::{FailureRate, Latency, SimulatedConfig};
use crate::image::size::ByteSize;

/// Settings of the simulated runtime.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Simulated runtime")]
pub struct SimulatedArgs {
    /// How long a pull takes: 250ms, 100ms..2s evenly, or p50=2s,p99=30s with a long tail
    #[arg(
        long,
        env = "PREWARM_SIMULATED_LATENCY",
        value_name = "TIME",
        default_value = "500ms..2s"
    )]
    pub simulated_latency: String,
    /// Share of attempts that fail, 0 to 1
    #[arg(
        long,
        env = "PREWARM_SIMULATED_FAILURE_RATE",
        value_name = "SHARE",
        default_value = "0"
    )]
    pub simulated_failure_rate: String,
    /// Mean size of an image
    #[arg(
        long,
        env = "PREWARM_SIMULATED_IMAGE_SIZE",
        value_name = "BYTES",
        default_value = "100MiB"
    )]
    pub simulated_image_size: String,
    /// The same number makes the same draws
    #[arg(
        long,
        env = "PREWARM_SIMULATED_SEED",
        value_name = "NUMBER",
        default_value = "1"
    )]
    pub simulated_seed: String,
}

impl SimulatedArgs {
    /// Checks the settings.
    pub fn check(&self, check: &mut Check<'_>) -> Option<SimulatedConfig> {
        let latency: Option<Latency> =
            check.parsed("simulated-latency", Some(&self.simulated_latency));
        let rate: Option<FailureRate> =
            check.parsed("simulated-failure-rate", Some(&self.simulated_failure_rate));
        let size: Option<ByteSize> =
            check.parsed("simulated-image-size", Some(&self.simulated_image_size));
        let seed = check.parsed("simulated-seed", Some(&self.simulated_seed));
        Some(SimulatedConfig {
            node: String::new(),
            seed: seed?,
            latency: latency?,
            failure_rate: rate?,
            image_bytes: size?.0,
        })
    }
}
