//! The receiver: what registries tell over HTTP becomes pushes on the broker.
//!
//! [`source`] reads payloads, purely.

pub mod source;
