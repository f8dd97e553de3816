//! The receiver: what registries tell over HTTP becomes pushes on the broker.
//!
//! [`source`] reads payloads, [`auth`] and [`oidc`] prove who sent them, [`admit`](mod@admit) checks what they
//! claim (all pure); [`settings`] says which sources there are, [`server`] does the rest.

pub mod admit;
pub mod auth;
mod body;
mod connections;
mod keys;
pub mod metrics;
pub mod oidc;
pub mod openapi;
pub mod server;
pub mod settings;
pub mod source;
mod tls;
mod warnings;
