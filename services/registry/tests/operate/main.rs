//! The process of the registry as its operator sees it: start, probes, metrics, a volume that hangs
//! or is swapped.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

mod distribution;
mod harness;
mod listeners;
mod metrics;
mod notifications;
mod permitted;
mod pulled;
mod upstreams;
mod volume;
