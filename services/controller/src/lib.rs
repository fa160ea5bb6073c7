//! Artifact controller, certificates.
