//! The registry: distribution API, access control, and the process that serves both.
//!
//! Owns what a client may do and how it is answered. Knows nothing of pods, owners and Artifacts;
//! bytes on the volume are the store's, copies from upstream the fill crate's.

pub mod access_control;
mod access_log;
mod api;
mod authn;
mod body;
mod call;
mod conditional;
mod content_types;
mod delete;
mod error;
pub mod limits;
mod listing;
mod metrics;
pub mod notify;
#[doc(hidden)]
pub mod parsers;
pub mod probe;
mod process;
mod pull;
mod push;
mod push_memory;
mod put_manifest;
mod range;
mod received;
mod referrers;
mod response;
pub mod route;
pub mod scrub;
pub mod session;
pub mod volume_watch;

pub use api::{Api, Observers, Parts};
pub use error::{Code, Error};
pub use metrics::Metrics;
pub use process::{Error as RunError, run, run_on, run_until};
