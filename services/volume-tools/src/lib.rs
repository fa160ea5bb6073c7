//! Tools for the volume of a registry, beside running registries or without one: [`fsck`] checks
//! and repairs it, [`archive`] exports and imports images.
//!
//! Owns what a damage means and which repair is certain, and the format of archives. Knows nothing
//! of the protocols on the volume, which are the store's, nor of HTTP and Kubernetes. Paths come
//! from the store's `Layout`.
//! `docs/design/volume-tools.md` describes the tools.

pub mod archive;
pub mod fsck;
