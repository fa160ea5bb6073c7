//! The tests of the process shell over real sockets, in one binary.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod admin;
mod limits;
mod requests;
mod serve;
mod unread;
