//! A real Kubernetes cluster on one machine, for tests and demonstrations.
//!
//! [`Cluster::up`] gives a kind cluster. Where a container engine answers and can pull kind's node
//! image, it uses them as they are. Elsewhere it makes both from Go modules and Debian packages:
//! nothing but package mirrors is needed. [`ApiServer`] is the small sibling: an API server and
//! its etcd without nodes, ready in seconds.
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
pub use cluster::{Cluster, Options, SHARED_FOLDER, Status};
pub use programs::Program;
