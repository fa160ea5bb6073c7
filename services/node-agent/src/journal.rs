//! The journal on the host: what was at a path before the agent wrote there, and which contents are
//! the agent's own.
//!
//! The journal is stored before the first change of a file, so everything can be undone after a
//! crash at any point.

use std::collections::{BTreeMap, BTreeSet};

use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The agent's contents that an entry remembers: the one on disk, the one being written, and a
/// margin.
const REMEMBERED: usize = 4;

/// Everything that the agent changed in the folder of registry hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Files by path relative to that folder.
    #[serde(default)]
    pub files: BTreeMap<String, Entry>,
    /// Directories that the agent created.
    #[serde(default)]
    pub directories: BTreeSet<String>,
}

impl Journal {
    /// Whether nothing is left to undo.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.directories.is_empty()
    }
}

/// One file that the agent wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What to restore.
    pub original: Original,
    /// SHA-256 of the contents that the agent wrote, newest last.
    pub written: Vec<String>,
}

impl Entry {
    /// Records `bytes` as written by the agent.
    pub fn remember(&mut self, bytes: &[u8]) {
        let digest = digest(bytes);
        self.written.retain(|known| *known != digest);
        self.written.push(digest);
        let surplus = self.written.len().saturating_sub(REMEMBERED);
        self.written.drain(..surplus);
    }

    /// Whether the agent wrote these bytes here.
    pub fn wrote(&self, bytes: &[u8]) -> bool {
        self.written.contains(&digest(bytes))
    }
}

/// What was at a path before the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Original {
    /// Nothing.
    Absent,
    /// A file, with everything that is needed to restore it.
    File {
        /// Its bytes.
        #[serde(with = "base64_bytes")]
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

mod base64_bytes {
    use super::STANDARD;
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}
