//! Content store on the layout of the CNCF distribution registry, so that either program can take
//! over a volume of the other.
//!
//! Owns the paths, the durability of writes, upload sessions, incoming blobs, locks on the volume,
//! the limits that refuse writes on a full volume, and the check of content. Knows nothing of HTTP
//! and Kubernetes. `docs/design/durability.md` and `docs/design/deletes.md` describe its protocols.
//!
//! Every call that may block runs on a bounded share of the blocking pool ([`Pool`]), so a hung
//! volume costs no more than that share.

pub mod archive;
mod blobs;
mod buffers;
pub mod check;
mod deletes;
mod durable;
mod error;
mod hashing_writer;
mod health;
mod ingest;
mod layout;
mod links;
mod locks;
mod manifests;
mod notes;
mod partial;
mod pool;
mod referrers;
mod repositories;
mod space;
mod store;
mod tags;
mod uploads;
pub mod volume;

pub use blobs::BlobFile;
pub use buffers::READ_CHUNK_BYTES;
pub use error::{Error, Result};
pub use hashing_writer::Progress;
pub use health::{SpaceLevel, VolumeHealth};
pub use holdfast_core::Hasher;
pub use ingest::{BlobIngest, PartialBlob};
pub use layout::Layout;
pub use locks::{Lock, LockAttempt, LockHolder};
pub use manifests::MAX_MANIFEST_BYTES;
pub use pool::{Pool, spawn_low_priority};
pub use space::{Space, WriteGate, WriteLimits};
pub use store::{Options, Store};
pub use uploads::{CarriedHash, UploadId, UploadStatus, UploadWriter};

/// What a link file's bytes name, for the fuzz targets alone.
#[doc(hidden)]
pub fn parse_link(bytes: &[u8]) -> Option<holdfast_core::Digest> {
    links::parse(bytes)
}
