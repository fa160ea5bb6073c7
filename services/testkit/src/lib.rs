//! An upstream registry with faults, and builders of images, for tests only.
//!
//! [`Upstream`] runs in the test's process; [`proxy`] is the same fault engine in front of a real
//! registry, as the binary `holdfast-upstream`. Both are controlled by [`Faults`]: by method calls,
//! or over HTTP through [`control`]. [`hostile`] is what hostile clients and upstreams send.
//! Nothing here knows the services under test.

pub mod control;
pub mod faults;
pub mod hostile;
pub mod image;
pub mod proxy;
pub mod raw;
pub mod requests;
pub mod server;
pub mod tls;
pub mod upstream;

use std::time::Duration;

pub use faults::{Fault, Faults};
pub use image::{Image, ImageBuilder};
pub use requests::{Request, Requests};
pub use upstream::{Auth, Upstream};

/// Waits until `condition` holds, looking every 5 ms of the runtime's clock; panics with `what`
/// after `limit`.
///
/// # Panics
/// When `limit` has passed and the condition still does not hold.
#[allow(clippy::panic, reason = "a failed expectation of a test")]
pub async fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < end,
            "not within {limit:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
