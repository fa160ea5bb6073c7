//! Content store on the layout of the CNCF distribution registry, so that either program can take
//! over a volume of the other.
//!
//! Owns the paths, the durability of writes, upload sessions, incoming blobs, locks on the volume,
//! the limits that refuse writes on a full volume, and the check of content. What works on a whole
//! volume beside running registries is public, too: [`View`] reads it, [`survey`] takes stock of
//! it, [`Maintenance`] repairs it. Knows nothing of HTTP and Kubernetes.
//! `docs/design/durability.md` and `docs/design/deletes.md` describe its protocols.
//!
//! Every call that may block runs on a bounded share of the blocking pool ([`Pool`]), so a hung
//! volume costs no more than that share.

mod blobs;
mod buffers;
mod deletes;
mod durable;
mod error;
pub mod files;
mod hashing_writer;
mod health;
mod ingest;
mod layout;
mod links;
mod locks;
mod maintenance;
mod manifests;
mod partial;
mod pool;
mod referrers;
mod repositories;
mod space;
mod state_files;
mod store;
pub mod survey;
mod tags;
mod uploads;
mod view;
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
pub use maintenance::Maintenance;
pub use manifests::MAX_MANIFEST_BYTES;
pub use pool::{Pool, spawn_low_priority};
pub use space::{Space, WriteGate, WriteLimits};
pub use store::{Options, Store};
pub use uploads::{CarriedHash, UploadId, UploadStatus, UploadWriter};
pub use view::View;

/// What a link file's bytes name, for the fuzz targets alone.
#[doc(hidden)]
pub fn parse_link(bytes: &[u8]) -> Option<holdfast_core::Digest> {
    links::parse(bytes)
}
