//! How full the registry's volume is: what a replica tells those who may make room.

use serde::{Deserialize, Serialize};

/// Path of the internal API that answers with [`Space`].
pub const PATH: &str = "/internal/v1/space";

/// What the limits say to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Enough room.
    Enough,
    /// Clients that write are warned; it is time to make room.
    Filling,
    /// Writes are refused; reads go on.
    Full,
}

/// How full the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// Used share, rounded up.
    pub used_percent: u8,
    /// What may still be written.
    pub available_bytes: u64,
    /// Size of the volume.
    pub total_bytes: u64,
    /// What the limits say to it.
    pub level: Level,
}
