//! Clients and contents that lie or are merely odd, against a real registry over a real listener:
//! whatever they send, nothing wrong is stored, and nobody else notices.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

mod bomb;
mod child;
mod connections;
mod copies;
mod everything;
mod fills;
#[allow(
    dead_code,
    reason = "this target needs a part of what the other one has"
)]
#[path = "../api/harness.rs"]
mod harness;
mod logins;
mod memory;
mod mirror;
mod names;
mod pulls;
#[allow(
    dead_code,
    reason = "this target needs a part of what the other one has"
)]
#[path = "../fills/replica.rs"]
mod replica;
mod uploads;
