//! Adoption both ways: a volume goes from CNCF distribution to Holdfast and back, and nothing is
//! lost.
//!
//! Against the real programs: `HOLDFAST_DISTRIBUTION` names distribution 3's `registry`,
//! `HOLDFAST_DOCKER_REGISTRY` the `docker-registry` 2.8 of Debian. `cargo xtask test` fetches both
//! and sets the variables.

mod collector;
mod content;
mod damage;
mod ours;
mod theirs;
mod tree;
mod uploads;
mod volumes;
