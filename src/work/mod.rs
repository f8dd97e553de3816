//! The worker: one per node. It takes the node's tasks, pulls, and says what became of them.
//!
//! - [`state`] decides: pure, synchronous, handed the time; [`input`] goes in, [`effect`] comes out.
//! - [`run`] performs: the broker, the runtime, the clock; [`metrics`] counts what it sees.

pub mod effect;
mod hand;
pub mod input;
pub mod memory;
pub mod metrics;
pub mod pins;
pub mod registration;
pub mod retry;
pub mod run;
pub mod state;
