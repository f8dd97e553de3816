//! The dispatcher: turns jobs into released pulls and events back into finished jobs.
//!
//! [`state`] decides and never does I/O: it takes inputs with the time they were seen at and returns
//! effects. `run` performs them in order. Everything the state knows can be read back from the
//! broker (job records, node records, the tasks in the task stream, the events since a round
//! began), so a dispatcher that starts is fed the same facts as the one that stopped and equals it.
//!
//! - `input`: what can happen and what can be asked for in return;
//! - `fleet`: nodes and whether they are there; `job`: one job's pulls and counts;
//! - `slots`: who may release now, and who waits for what;
//! - `requests`, `nodes`, `pulls`, `rounds`, `rebuild`: the decisions, by what they are about;
//! - `pushes`: which jobs come of pushes of images, and `pushing`, which does it;
//! - `record`: the state as records and events, `census`: as numbers;
//! - `tell`: events; `spans`: what is done, as spans of traces and lines of the log;
//! - [`lease`]: which of several dispatchers leads.

mod arrivals;
mod buckets;
mod census;
mod clock;
mod ends;
mod failed;
mod fleet;
mod follow;
mod input;
mod job;
mod lead;
pub mod lease;
mod load;
pub mod metrics;
mod nodes;
mod observe;
mod perform;
mod pulls;
mod pushes;
mod pushing;
mod rebuild;
mod record;
mod requests;
mod resolve;
mod rounds;
pub mod run;
mod slots;
mod spans;
pub mod state;
mod tell;
#[cfg(test)]
mod tests;
mod timers;
mod welcome;

pub use census::Census;
pub use input::{Effect, Input, Pause, ReplyToken, Request};
pub use observe::{LeaseRequest, Observer, Seen};
