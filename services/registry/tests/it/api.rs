//! The distribution API over a real listener and a real store: what clients see, and what is on the
//! volume.

mod http;
mod lists;
mod manifests;
mod misses;
mod pull;
mod push;
mod refusals;
mod volume;
