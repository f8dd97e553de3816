//! The messages other programs rely on: subjects, manifests, tasks, events, records.
//!
//! Everything here is pure. A message that parses is checked as a whole; what cannot be read becomes
//! a list of problems with their places, never a panic. `schemas/` is generated from these types.

pub mod api;
pub mod asyncapi;
pub mod command;
pub mod event;
pub mod manifest;
pub mod push;
pub mod record;
pub mod schema;
pub mod subject;
pub mod task;
pub mod worker;
