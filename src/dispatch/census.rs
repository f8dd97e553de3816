//! The state in numbers.

use super::state::Dispatcher;
use crate::domain::status::{Counts, JobPhase};

/// How many of everything there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Jobs in each phase, in the order of [`JobPhase::ALL`].
    pub jobs: [u32; JobPhase::ALL.len()],
    /// Pulls of all jobs that have not ended, added up.
    pub pulls: Counts,
    /// Nodes that are heard of.
    pub nodes_present: u32,
    /// Nodes that are known, and not heard of.
    pub nodes_absent: u32,
}

impl Dispatcher {
    /// Counts everything.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for job in self.jobs.values() {
            let phase = job.phase();
            for (known, number) in JobPhase::ALL.iter().zip(&mut census.jobs) {
                *number += u32::from(*known == phase);
            }
            if job.is_finished() {
                continue;
            }
            let (sum, counts) = (&mut census.pulls, job.counts);
            sum.desired = sum.desired.saturating_add(counts.desired);
            sum.pending = sum.pending.saturating_add(counts.pending);
            sum.active = sum.active.saturating_add(counts.active);
            sum.succeeded = sum.succeeded.saturating_add(counts.succeeded);
            sum.failed = sum.failed.saturating_add(counts.failed);
            sum.cancelled = sum.cancelled.saturating_add(counts.cancelled);
        }
        (census.nodes_present, census.nodes_absent) = self.fleet.presence();
        census
    }
}
