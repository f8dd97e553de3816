//! What a worker sees, for whoever counts it.

use std::time::SystemTime;

use crate::wire::event::TaskEvent;

/// One thing a worker saw or did.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A dispatcher answered: the node has its consumer.
    Registered,
    /// The broker delivered a task.
    Delivered {
        /// How often, this time included.
        deliveries: u32,
        /// When the broker stored it, by the broker's clock.
        stored_at: Option<SystemTime>,
    },
    /// Something about a pull is about to be told; once for every fact, however often it is sent.
    Told(&'a TaskEvent),
}

/// Hears what a worker sees. It is called from the worker's main loop, so it must not wait.
pub trait Observer: Send + Sync {
    /// Hears one thing.
    fn saw(&self, seen: Seen<'_>);
}

/// Nobody.
impl Observer for () {
    fn saw(&self, _: Seen<'_>) {}
}
