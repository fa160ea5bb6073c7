//! The memory of manifests that clients push.

use bytes::Bytes;
use holdfast_upstream::{Memory, Reserved};
use http::request::Parts;

use crate::{
    access_control,
    error::{Error, Result},
    limits,
    received::Received,
};

/// The memory of manifests that clients push: a budget, and a share of it for each address. Small
/// manifests have a budget of their own, so they never wait for large ones.
#[derive(Debug)]
pub(crate) struct PushMemory {
    small: Memory,
    large: Memory,
}

impl Default for PushMemory {
    fn default() -> Self {
        Self {
            small: Memory::new(
                limits::SMALL_PUSH_MEMORY,
                limits::SMALL_PUSH_MEMORY_PER_ADDRESS,
            ),
            large: Memory::new(limits::PUSH_MEMORY, limits::PUSH_MEMORY_PER_ADDRESS),
        }
    }
}

impl PushMemory {
    /// Reads a body of at most `limit` bytes, once there is room for what it announces.
    ///
    /// # Errors
    /// 503 with `Retry-After` when there is none in time, or when the body comes slowly while
    /// others wait; or what the body ends with.
    pub(crate) async fn receive(
        &self,
        head: &Parts,
        announced: Option<u64>,
        limit: u64,
        body: Received,
    ) -> Result<(Bytes, Reserved)> {
        let most = announced.unwrap_or(limit);
        let budget = if most <= limits::SMALL_MANIFEST_BYTES {
            &self.small
        } else {
            &self.large
        };
        let client = access_control::address(head).to_string();
        let refuse =
            || Error::later("too many manifests are being pushed, or this one came too slowly");
        let wait = limits::PUSH_MEMORY_WAIT;
        let read = body.collect(most);
        budget
            .hold_within(wait, (&client, most), refuse, read)
            .await
    }
}
