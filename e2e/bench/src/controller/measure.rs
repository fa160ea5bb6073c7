//! What the controller used and did within an interval.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::audit::{Audit, Calls};
use crate::{
    http::{self, Target},
    process::Process,
    upstream::Upstream,
};

/// An interval.
#[derive(Debug, Serialize)]
pub(super) struct Interval {
    /// How long it was.
    pub(super) seconds: f64,
    /// CPU seconds of the controller, user and system.
    pub(super) cpu_seconds: f64,
    /// Highest resident memory of the controller, bytes.
    pub(super) peak_rss_bytes: u64,
    /// Resident memory of the controller at its end, bytes.
    pub(super) rss_bytes: u64,
    /// What it asked of the API server.
    pub(super) calls: Calls,
    /// Copies that it asked of the registry and got.
    pub(super) copied: u64,
    /// What it asked of the registry and did not get.
    pub(super) not_copied: u64,
    /// What it did for pods, or tried.
    pub(super) healing_actions: u64,
    /// Requests to the upstream.
    pub(super) upstream_requests: u64,
}

impl Interval {
    /// Requests to the API server a second.
    pub(super) fn calls_per_second(&self) -> f64 {
        self.calls.total() as f64 / self.seconds
    }

    /// Requests of a kind.
    pub(super) fn count(&self, kind: &str) -> u64 {
        self.calls.by_kind.get(kind).copied().unwrap_or(0)
    }

    /// Share of one processor, in percent.
    pub(super) fn cpu_percent(&self) -> f64 {
        self.cpu_seconds / self.seconds * 100.0
    }

    /// Highest memory in 10^6 bytes.
    pub(super) fn peak_megabytes(&self) -> f64 {
        self.peak_rss_bytes as f64 / 1e6
    }
}

/// The state at the start of an interval.
pub(super) struct Snapshot {
    at: Instant,
    cpu_seconds: f64,
    counts: ControllerCounts,
    upstream_requests: u64,
}

impl Snapshot {
    /// Before the controller starts.
    pub(super) fn start() -> Self {
        Self {
            at: Instant::now(),
            cpu_seconds: 0.0,
            counts: ControllerCounts::default(),
            upstream_requests: 0,
        }
    }

    /// How long ago that was.
    pub(super) fn seconds(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }
}

/// Where the figures come from.
pub(super) struct Meter<'a> {
    /// The process.
    pub(super) controller: &'a Process,
    /// Its metrics.
    pub(super) admin: SocketAddr,
    /// The upstream of all images.
    pub(super) upstream: &'a Upstream,
    /// The audit log of the API server.
    pub(super) audit: &'a mut Audit,
}

impl Meter<'_> {
    /// Starts an interval.
    pub(super) async fn snapshot(&mut self) -> Result<Snapshot> {
        let counts = self.counts().await?;
        self.audit.since()?;
        self.controller.reset_peak()?;
        Ok(Snapshot {
            at: Instant::now(),
            cpu_seconds: self.controller.usage()?.cpu_seconds,
            counts,
            upstream_requests: self.upstream_requests(),
        })
    }

    /// Ends an interval.
    pub(super) async fn since(&mut self, start: &Snapshot) -> Result<Interval> {
        let (seconds, usage, calls) = (
            start.seconds(),
            self.controller.usage()?,
            self.audit.since()?,
        );
        let counts = self.counts().await?;
        Ok(Interval {
            seconds,
            cpu_seconds: usage.cpu_seconds - start.cpu_seconds,
            peak_rss_bytes: usage.peak_rss_bytes,
            rss_bytes: usage.rss_bytes,
            calls,
            copied: counts.copied - start.counts.copied,
            not_copied: counts.not_copied - start.counts.not_copied,
            healing_actions: counts.healing_actions - start.counts.healing_actions,
            upstream_requests: self.upstream_requests() - start.upstream_requests,
        })
    }

    async fn counts(&self) -> Result<ControllerCounts> {
        let target = Target {
            address: self.admin,
            tls: None,
        };
        let (head, body) = http::get(&target, "/metrics").await?;
        ensure!(
            head.status == 200,
            "the controller's metrics: {}",
            head.status
        );
        Ok(ControllerCounts::read(&String::from_utf8_lossy(&body)))
    }

    fn upstream_requests(&self) -> u64 {
        self.upstream.asked().values().sum()
    }
}

/// The counts in the metrics of the controller.
#[derive(Debug, Default, PartialEq, Eq)]
struct ControllerCounts {
    copied: u64,
    not_copied: u64,
    healing_actions: u64,
}

impl ControllerCounts {
    fn read(metrics: &str) -> Self {
        let mut counts = Self::default();
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let value = value.parse().unwrap_or(0);
            if name.starts_with("holdfast_controller_fills_total{") {
                if name.contains("reason=\"Copied\"") {
                    counts.copied += value;
                } else {
                    counts.not_copied += value;
                }
            } else if name.starts_with("holdfast_controller_healing_actions_total{") {
                counts.healing_actions += value;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_from_failures_and_acts() {
        let metrics = "# TYPE holdfast_controller_fills counter\n\
            holdfast_controller_fills_total{reason=\"Copied\"} 500\n\
            holdfast_controller_fills_total{reason=\"RegistryUnavailable\"} 3\n\
            holdfast_controller_fills_total{reason=\"NotFound\"} 4\n\
            holdfast_controller_healing_actions_total{action=\"heal\",outcome=\"done\"} 5\n\
            holdfast_controller_healing_actions_total{action=\"evict\",outcome=\"failed\"} 6\n\
            # EOF\n";
        let expect = ControllerCounts {
            copied: 500,
            not_copied: 7,
            healing_actions: 11,
        };
        assert_eq!(ControllerCounts::read(metrics), expect);
    }
}
