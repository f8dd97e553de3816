//! Pulls into real containerd, of every generation that is supported: what is left there is what CRI needs.
#![allow(unreachable_pub, reason = "a test binary has no users")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(clippy::print_stdout, reason = "for the reader of a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod cri_reserve;
mod direct;
mod elsewhere;
mod faulty;
mod full;
mod hostile;
mod hosts;
mod hosts_tls;
mod interrupted;
mod killed;
mod layers;
mod limited;
mod matrix;
mod memory;
mod nasty;
mod node;
mod pinned;
mod provided;
mod refused;
mod repaired;
mod reserve;
mod resumed;
mod rootfs;
mod runtime_classes;
mod shared;
mod through_cri;
mod usable;
