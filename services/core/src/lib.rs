//! The domain of Holdfast, without I/O.
//!
//! - `reference` and `digest` name images; `rewrite` maps them to local names.
//! - `pod` and `workload` find the images of Kubernetes objects, and `meaning` says what their
//!   texts mean; `credentials` reads pull secrets.
//! - `oci` reads manifests.
//! - `delivery` decides which name of an image a pod pulls; `kubelet` says what a node starts
//!   without a pull.
//! - `hash` computes digests of streams.
//! - `fair` schedules clients fairly; `shares` bounds a shared memory fairly.
//!
//! The crate knows nothing of tokio, kube, HTTP and YAML. It reads no clock; time is an argument.

pub mod credentials;
pub mod delivery;
pub mod digest;
pub mod dns;
pub mod fair;
pub mod hash;
pub mod kubelet;
pub mod meaning;
pub mod oci;
pub mod pod;
pub mod quantity;
pub mod reference;
pub mod rewrite;
pub mod secret;
pub mod shares;
mod upstream_filter;
pub mod workload;

pub use digest::{Algorithm, Digest};
pub use fair::{FairQueue, FairSemaphore};
pub use hash::Hasher;
pub use reference::{Host, ManifestRef, Reference, RepositoryName, Tag};
pub use upstream_filter::UpstreamFilter;
