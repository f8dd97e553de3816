//! What a worker sees, for whoever counts it.

use std::time::{Duration, SystemTime};

use crate::wire::event::TaskEvent;
use crate::wire::task::PullTask;

/// One thing a worker saw or did.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The worker begins, with so many slots.
    Began {
        /// Pulls at once.
        capacity: u32,
    },
    /// A dispatcher answered: the node has its consumer.
    Registered,
    /// The node asked for its consumer and did not get it, for this reason.
    NotRegistered(&'a str),
    /// The broker delivered a task.
    Delivered {
        /// The task; `None` if it cannot be read.
        task: Option<&'a PullTask>,
        /// How often, this time included.
        deliveries: u32,
        /// When the broker stored it, by the broker's clock.
        stored_at: Option<SystemTime>,
    },
    /// Something about a pull is about to be told; once for every fact, however often it is sent.
    Told(&'a TaskEvent),
    /// The broker keeps an event, and said so after this time.
    Stored(Duration),
    /// The broker did not keep an event.
    NotStored,
    /// The worker's loop has gone round.
    Turned {
        /// Slots taken now.
        slots: u32,
        /// Whether the node has a consumer that is not known to be gone.
        registered: bool,
    },
}

/// Hears what a worker sees. It is called from the worker's own loops, so it must not wait.
pub trait Observer: Send + Sync {
    /// Hears one thing.
    fn saw(&self, seen: Seen<'_>);
}

/// Nobody.
impl Observer for () {
    fn saw(&self, _: Seen<'_>) {}
}
