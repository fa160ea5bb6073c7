//! How full the registry's volume is.

use serde::{Deserialize, Serialize};

/// Path of the internal API that answers with [`Space`].
pub const PATH: &str = "/internal/v1/space";

/// The level with respect to the configured limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Enough room.
    Enough,
    /// Clients that write get a warning.
    Filling,
    /// Writes are refused; reads go on.
    Full,
}

/// How full the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// Used share in percent, rounded up.
    pub used_percent: u8,
    /// Bytes that may still be written.
    pub available_bytes: u64,
    /// Size of the volume.
    pub total_bytes: u64,
    /// The level with respect to the configured limits.
    pub level: Level,
}
