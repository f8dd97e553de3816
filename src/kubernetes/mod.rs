//! The worker's node as Kubernetes has it: its labels, and whether it is Ready and schedulable.
//!
//! `standing` decides what that means for pulls (pure); `pod` says whether we are in a pod and on which
//! node; `api` makes the requests, by the crate `kube`; `follow` lists and watches the one node and tells every change.

mod api;
pub mod follow;
pub mod pod;
pub mod standing;
