//! Who may do what, over real listeners: users, client certificates and tokens as clients bring
//! them, and files that change while the registry runs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

#[allow(
    dead_code,
    reason = "this target needs a part of what the other one has"
)]
#[path = "../api/harness.rs"]
mod harness;
mod process;
mod sessions;
mod tokens;
mod users;
