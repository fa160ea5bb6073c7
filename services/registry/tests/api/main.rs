//! The distribution API over a real listener and a real store: what clients see, and what is on the
//! volume.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of test functions"
)]

mod harness;
mod http;
mod lists;
mod manifests;
mod misses;
mod pull;
mod push;
mod refusals;
mod volume;
