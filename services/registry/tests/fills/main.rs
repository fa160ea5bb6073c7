//! Pulls through replicas whose misses come from an upstream: real listeners, one volume, an
//! upstream with faults.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

mod claims;
mod herd;
mod pulls;
mod replica;
mod slow;
