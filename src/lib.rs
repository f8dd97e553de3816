//! prewarm puts container images on nodes before pods need them.
//!
//! The map, and who may depend on whom (an arrow reads "uses"; ARCHITECTURE.md has the picture):
//!
//! - [`domain`]: values; uses nothing of ours.
//! - [`wire`]: messages, manifests, subjects, schemas → `domain`.
//! - [`image`]: putting one image on this node → `domain`.
//! - [`kubernetes`]: the node as Kubernetes has it → `domain`.
//! - [`work`]: the worker: takes tasks, pulls, tells → `domain`, `wire`, `bus`, `image`.
//! - [`webhook`]: the receiver of what registries tell → `bus`, `domain`, `wire`.
//! - [`simulate`]: many workers in one process → `work` and what that uses.

pub mod api;
pub mod bus;
pub mod cli;
pub mod dispatch;
pub mod domain;
pub mod image;
pub mod kubernetes;
pub mod simulate;
pub mod telemetry;
pub mod webhook;
pub mod wire;
pub mod work;
