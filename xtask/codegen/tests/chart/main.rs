//! What holds between the types, the generated files and the chart.
//!
//! The renders need a real helm: `HOLDFAST_HELM` names one, or several joined by `:` (Helm 3 and
//! Helm 4); `cargo xtask test` sets it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this is tests")]

mod availability;
mod documents;
mod generated;
mod helm;
mod keys;
mod network;
mod renders;
mod rights;
mod security;
mod table;
