//! Pulls through replicas whose misses come from an upstream: real listeners, one volume, an
//! upstream with faults.

mod claims;
mod herd;
mod pulls;
mod slow;
