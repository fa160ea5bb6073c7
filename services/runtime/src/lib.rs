//! The process shell of every part: logs, metrics, admin endpoints, TLS listener, leader election,
//! supervised loops and shutdown.
//!
//! It knows nothing of images, pods or the store; it is the only crate that names rustls.

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
