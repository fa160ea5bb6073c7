//! Every limit of the distribution API as a client sees it, over a real listener. What one
//! connection may cost is tested with the listener itself (`services/runtime/tests/limits.rs`).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of test functions"
)]

mod bodies;
#[allow(
    dead_code,
    reason = "this target needs a part of what the other one has"
)]
#[path = "../api/harness.rs"]
mod harness;
mod internal;
mod lists;
mod names;
mod pages;
mod room;
mod uploads;
