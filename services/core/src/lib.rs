//! Pure domain of Holdfast: digests, image references, the rewrite of a reference, the images of a
//! pod, the credentials of a pull secret, the templates of workloads, manifests, quantities, and a
//! queue and a gate at which parties take turns. Knows nothing of tokio, kube, HTTP or YAML; time
//! never enters here.

pub mod credentials;
pub mod digest;
pub mod dns;
pub mod hash;
pub mod oci;
pub mod pod;
pub mod quantity;
pub mod reference;
pub mod rewrite;
pub mod secret;
pub mod shares;
pub mod turns;
mod upstream_filter;
pub mod workload;

pub use digest::{Algorithm, Digest};
pub use hash::Hasher;
pub use reference::{Host, ManifestRef, Reference, RepositoryName, Tag};
pub use turns::{Gate, Turns};
pub use upstream_filter::UpstreamFilter;
