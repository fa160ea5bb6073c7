//! Manifests and indexes of the OCI image specification and of Docker: the one reader for all
//! parts.
//!
//! A push, a copy from an upstream, an import, an export, the check of a volume and the list of
//! referrers read a manifest with [`Manifest::parse`], so what one of them takes all of them take.
//! Bytes in, facts out: the bytes stay the truth and are never written from these types.
//!
//! The types of the crate `oci-spec` are not used here. They demand `layers`, `manifests` and
//! `mediaType` where Go's clients write `null` or nothing, they know no Docker types and no other
//! digest than their own type, and they keep every annotation of every descriptor: 4 MiB of
//! hostile annotations take more than 60 MiB there.

mod json;
mod manifest;
mod media_type;
mod platform;

pub use self::{
    manifest::{Descriptor, Error, Manifest, annotations},
    media_type::{ACCEPT, ManifestType, content_type, is_media_type},
    platform::Platform,
};

/// Largest manifest that anything reads, in bytes. `registry.limits.manifestBytes` may lower what
/// is taken, and never exceeds this: what was accepted once can be read for ever.
pub const MANIFEST_BYTES: u64 = 16 << 20;

/// Most layers of an image, and most manifests that an index lists.
pub const MANIFEST_DESCRIPTORS: usize = 10_000;

/// Levels of objects and lists in a manifest.
pub const JSON_DEPTH: usize = 32;

/// Levels of indexes below the index that names an image.
pub const IMAGE_DEPTH: usize = 4;

/// Most manifests of one image: more than one index can list.
pub const IMAGE_MANIFESTS: usize = 16_384;

/// Most bytes of all manifests of one image together.
pub const IMAGE_MANIFEST_BYTES: u64 = 64 << 20;
