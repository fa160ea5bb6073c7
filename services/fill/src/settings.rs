//! The settings of fills.

use std::time::Duration;

use holdfast_core::UpstreamFilter;

use crate::metrics::Metrics;

/// The settings of fills.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Platforms that a pull alone copies of an index (`os/architecture`); others come when they
    /// are asked for.
    pub platforms: Vec<String>,
    /// How long a pull of something that nothing names yet waits for the controller.
    pub hold: Duration,
    /// First pause before a broken copy is continued; doubles.
    pub retry: Duration,
    /// Whether a pull of a tag that is local asks the upstream whether it moved.
    pub revalidate_pulls: bool,
    /// How long a tag counts as fresh after it was copied or compared.
    pub tag_fresh: Duration,
    /// Whether fill requests may come: then what nothing names yet may be named a moment later.
    pub has_controller: bool,
    /// Whether a pull alone may copy from an upstream that the settings list; otherwise only what a
    /// fill request named is copied.
    pub pull_through: bool,
    /// The upstreams that may be copied; `None`: every one.
    pub permitted: Option<UpstreamFilter>,
    /// How long what came with a fill request serves pulls of what it named: longer than the
    /// controller's rounds.
    pub grant: Duration,
    /// The metrics.
    pub metrics: Metrics,
}

impl Default for Settings {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            platforms: vec![format!("linux/{architecture}")],
            hold: Duration::from_secs(10),
            retry: Duration::from_millis(200),
            revalidate_pulls: false,
            tag_fresh: Duration::from_secs(300),
            has_controller: true,
            pull_through: true,
            permitted: None,
            grant: Duration::from_secs(30 * 60),
            metrics: Metrics::default(),
        }
    }
}
