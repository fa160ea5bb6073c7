//! Manifests and indexes of the OCI image specification and of Docker: one reader for all parts.
//!
//! A push, a copy from an upstream, an import, an export, the check of a volume and the list of
//! referrers read a manifest with [`Manifest::parse`], so all of them accept the same manifests.
//! These types are only read: manifests are stored as bytes and never serialized from them.
//!
//! The types of the crate `oci-spec` are not used. They require `layers`, `manifests` and
//! `mediaType`, where Go clients write `null` or nothing; they do not know Docker's types; and they
//! keep every annotation of every descriptor, so that 4 MiB of hostile annotations take more than
//! 60 MiB.

mod json;
mod manifest;
mod media_type;
mod platform;

pub use self::{
    manifest::{Descriptor, Error, Manifest, annotations},
    media_type::{ACCEPT, ManifestType, content_type, is_media_type},
    platform::Platform,
};

/// Largest manifest, in bytes. `registry.limits.manifestBytes` may lower the bound for new
/// manifests and never exceeds this one, so that every stored manifest can be read.
pub const MANIFEST_BYTES: u64 = 16 << 20;

/// Maximum number of layers of an image, and of manifests in an index.
pub const MANIFEST_DESCRIPTORS: usize = 10_000;

/// Levels of objects and lists in a manifest.
pub const JSON_DEPTH: usize = 32;

/// Levels of indexes below the index that names an image.
pub const IMAGE_DEPTH: usize = 4;

/// Maximum number of manifests of one image, more than one index can list.
pub const IMAGE_MANIFESTS: usize = 16_384;

/// Maximum bytes of all manifests of one image together.
pub const IMAGE_MANIFEST_BYTES: u64 = 64 << 20;
