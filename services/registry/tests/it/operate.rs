//! The process of the registry as its operator sees it: start, probes, metrics, a volume that hangs
//! or is swapped.

mod distribution;
mod harness;
mod listeners;
mod metrics;
mod notifications;
mod permitted;
mod pulled;
mod upstreams;
mod volume;
