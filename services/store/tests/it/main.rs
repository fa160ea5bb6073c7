//! The tests of the store from outside, in one binary. The simulator is a binary of its own.

mod growing;
mod manifests;
mod silent;
mod syncs;
mod tags;
mod uploads;
mod vanished;
mod volume;
