//! OpenKruise's own scenarios for ImagePullJob and what its users asked for, on real brokers.
//!
//! The dispatcher and the workers are real and run in this process; the runtimes are simulated. A test that is named
//! after one of Kruise's says which: `pullimages.go`, `imagelistpulljobs.go` and `cloneset.go` are its end-to-end tests.
//! A test for what a user asked names the issue of openkruise/kruise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../support/mod.rs"]
mod support;

mod absent;
mod carried;
mod cell;
mod edits;
mod failures;
mod guarded;
mod image_lists;
mod images;
mod limits;
mod manifests;
mod newcomers;
mod node;
mod parallelism;
mod pull_images;
mod read;
mod status;
mod turns;
