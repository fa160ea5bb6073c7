//! What every part needs as a process: logs, metrics, admin endpoints, HTTP server, TLS, leader
//! election, supervised loops and shutdown.
//!
//! - `server` is the HTTP server with all bounds on clients; `tls` its certificates.
//! - `admin`, `health`, `metrics` and `logs` are what operators see.
//! - `supervise` runs background loops, `lease` elects a leader, `files` and `reload` follow files.
//!
//! The crate knows nothing of images, pods or the store.

pub mod admin;
pub mod descriptors;
pub mod files;
pub mod health;
pub mod lease;
pub mod logs;
pub mod metrics;
pub mod reload;
pub mod server;
pub mod shutdown;
pub mod supervise;
pub mod time_limit;
pub mod tls;

pub use tokio_util::sync::CancellationToken;
