//! The registry: distribution API, access gate, and fills from upstream.
//!
//! Owns what a client may do and how it is answered. Knows nothing of pods, owners and Artifacts; bytes on the volume are
//! the store's.

pub mod fill;
pub mod internal;
pub mod source;
pub mod upstream;
