//! What a dispatcher sees and does, for whoever counts it.

use std::time::Duration;

use super::census::Census;
use crate::wire::event::{JobEvent, PullState};

/// A request to the bucket of the lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseRequest {
    /// Who leads?
    Look,
    /// Take, renew or hand over the lease.
    Write,
}

impl LeaseRequest {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Look, Self::Write];

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Write => "write",
        }
    }
}

/// One thing a dispatcher saw or did.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// Whether it leads has changed.
    Leads(bool),
    /// A leadership failed, and everything is read back.
    LeadershipFailed,
    /// Who keeps the lease has gone round.
    KeeperTurned,
    /// Who leads has gone round.
    LeaderTurned,
    /// The broker was asked for the lease; `None`: it did not answer in time.
    Asked(LeaseRequest, Option<Duration>),
    /// How many of everything there are, about once a second while leading.
    Census(&'a Census),
    /// Something about a job is about to be told.
    Told(&'a JobEvent),
    /// A pull is about to be released to its node.
    Released,
    /// A worker has told something about a pull.
    Heard(PullState),
}

/// Hears what a dispatcher sees. It is called from the dispatcher's own loops, so it must not wait.
pub trait Observer: Send + Sync {
    /// Hears one thing.
    fn saw(&self, seen: Seen<'_>);
}

/// Nobody.
impl Observer for () {
    fn saw(&self, _: Seen<'_>) {}
}
