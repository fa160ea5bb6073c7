//! The tests of the registry over real listeners, in one binary. What counts the memory of its own
//! process is a binary of its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

mod access;
mod adoption;
mod api;
mod conformance;
mod fills;
mod harness;
mod hostile;
mod limits;
mod operate;
mod replica;
mod scrub;
