//! A real Kubernetes cluster on one machine, for tests and demonstrations.
//!
//! [`Cluster::up`] gives a kind cluster. Where a container engine answers and can pull kind's node
//! image, it uses both as they are. [`ApiServer`] is the small sibling: an API server and its etcd
//! without nodes, ready in seconds.
//!
//! # Why it can build kind's node image
//!
//! Holdfast is for sites that cannot reach image registries, and its tests run on such machines,
//! too: continuous integration often has mirrors of package registries and nothing else. There,
//! `kindest/node` cannot be pulled and no container engine runs. So this crate builds what is
//! missing: the root file system of a node from Debian packages ([`mod@packages`], `node_image`),
//! Kubernetes, containerd, runc, the network plug-ins and the engine itself from pinned Go modules
//! ([`mod@programs`]). The first cluster on a machine takes some minutes to build; the results lie
//! in the cache folder ([`mod@cache`]). None of it is used where Docker and `kindest/node` are.
//!
//! This crate knows nothing of Holdfast itself.

pub mod apiserver;
pub mod cache;
mod cluster;
mod command;
mod engine;
mod kind;
mod node_image;
pub mod oci;
pub mod packages;
mod process;
pub mod programs;
pub mod progress;

pub use apiserver::ApiServer;
pub use cluster::{Cluster, Options, SharedVolume, Status, joining};
pub use kind::SHARED_FOLDER;
pub use programs::Program;
