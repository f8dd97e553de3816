//! Real servers, images and clients for the tests: every test starts what it needs and everything ends with it.
//!
//! A test binary includes this with `#[path = "../support/mod.rs"] mod support;`. Every server is a process of its own on
//! a free loopback port or a private socket, with its data in a temporary folder; dropping its value kills it, and so
//! does the end of the test process, however it comes. A server that cannot start, or a part that is missing, fails
//! the test with a message that says why.
#![allow(dead_code, reason = "every test binary uses another part of this")]
#![allow(unreachable_pub, reason = "a module shared by several test crates")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for the reader of a failed test"
)]

pub mod authority;
pub mod collector;
pub mod containerd;
pub mod cri;
pub mod cri_only;
pub mod distance;
pub mod gate;
pub mod heartbeats;
pub mod images;
pub mod kubernetes;
pub mod nats;
pub mod nats_cluster;
pub mod operator;
pub mod parts;
pub mod prewarm;
pub mod process;
pub mod prometheus;
pub mod registry;
pub mod run_container;
pub mod shipped;
pub mod wait;
