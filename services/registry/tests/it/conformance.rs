//! What the conformance suite of the OCI distribution specification asks of a registry, "dev"
//! additions included, in our own words: every shape of content goes round through push, pull,
//! lists and deletes, in every way that the specification has for it.

mod blobs;
mod lists;
mod manifests;
mod mirror;
mod oci_client;
mod pushes;
mod referrers;
mod round;
mod shapes;
