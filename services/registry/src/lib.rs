//! The registry: distribution API, access control, and the process that serves both.
//!
//! Owns what a client may do and how it is answered. Knows nothing of pods, owners and Artifacts;
//! bytes on the volume are the store's, copies from upstream the fill crate's.

mod access;
mod access_log;
mod api;
mod body;
mod conditional;
mod delete;
mod error;
pub mod gate;
pub mod limits;
mod lists;
mod metrics;
pub mod notify;
#[doc(hidden)]
pub mod parsers;
pub mod probe;
mod pull;
mod push;
mod put_manifest;
mod range;
mod referrers;
pub mod route;
mod run;
pub mod scrub;
pub mod session;
pub mod volume;

pub use api::{Api, Observers, Parts};
pub use error::{Code, Error};
pub use metrics::Metrics;
pub use run::{Error as RunError, run, run_on, run_until};
