//! The interfaces between the parts of Holdfast and to the API server: the custom resource
//! `Artifact`, labels and annotations, names of shared objects, the shared state documents, and the
//! types of the fill API.
//!
//! Types and pure functions only, no I/O (see `docs/ARCHITECTURE.md`).

pub mod access;
pub mod artifact;
pub mod delivery;
pub mod fill;
pub mod history;
pub mod labels;
pub mod names;
pub mod questions;
pub mod report;
pub use holdfast_core::secret;
pub mod space;
pub mod state;

pub use artifact::{Artifact, ArtifactSpec, ArtifactStatus, artifact_name};
