//! The webhook's metrics.

use std::time::Duration;

use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::mutate::Mutation;

/// Upper bounds of the duration's buckets, in seconds.
const BUCKETS: [f64; 10] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0,
];

/// Why an image was not rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The outcome of an announcement or of a review.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// The outcome of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// The Artifact was created.
    Created,
    /// It exists already.
    Present,
    /// The queue was full. The controller finds the image by its own watch.
    Dropped,
    /// The rate limit of the namespace, or of all together, was reached. As for `Dropped`.
    Limited,
    /// The API server refused it or did not answer.
    Failed,
}

/// The metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    duration: Histogram,
    reviews: Family<ResultLabel, Counter>,
    rewritten: Counter,
    skipped: Family<ReasonLabel, Counter>,
    restored: Counter,
    kept: Counter,
    announcements: Family<ResultLabel, Counter>,
}

impl Metrics {
    /// Registers all of them under `webhook_`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "webhook");
        Self {
            duration: group.measure(
                "admission_duration",
                "Time from the last byte of a review to its answer",
                Unit::Seconds,
                Histogram::new(BUCKETS),
            ),
            reviews: group.add("reviews", "Admission reviews, by result", Family::default()),
            rewritten: group.add(
                "images_rewritten",
                "Image references rewritten",
                Counter::default(),
            ),
            restored: group.add(
                "references_restored",
                "References restored to the upstream's because the namespace has no access to the \
                 image",
                Counter::default(),
            ),
            skipped: group.add(
                "images_skipped",
                "Image references or whole pods that were not rewritten, by reason",
                Family::default(),
            ),
            kept: group.add(
                "images_kept",
                "Stored references that stayed because an update meant the same image",
                Counter::default(),
            ),
            announcements: group.add(
                "announcements",
                "Announcements of Artifacts, by outcome",
                Family::default(),
            ),
        }
    }

    /// Counts a review that was answered after `elapsed`.
    pub fn answered(&self, mutation: &Mutation, elapsed: Duration) {
        self.duration.observe(elapsed.as_secs_f64());
        let result = if mutation.patch.is_empty() {
            "unchanged"
        } else {
            "patched"
        };
        self.reviews.get_or_create(&ResultLabel { result }).inc();
        self.rewritten
            .inc_by(u64::try_from(mutation.rewritten).unwrap_or(u64::MAX));
        self.kept
            .inc_by(u64::try_from(mutation.kept).unwrap_or(u64::MAX));
        self.restored
            .inc_by(u64::try_from(mutation.restored).unwrap_or(u64::MAX));
        for reason in &mutation.skipped {
            let reason = reason.label();
            self.skipped.get_or_create(&ReasonLabel { reason }).inc();
        }
    }

    /// Counts a request that was not answered with a review, by reason.
    pub fn refused(&self, result: &'static str) {
        self.reviews.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts announcements by outcome.
    pub fn announced(&self, announced: Announced, count: usize) {
        let result = match announced {
            Announced::Created => "created",
            Announced::Present => "present",
            Announced::Dropped => "dropped",
            Announced::Limited => "limited",
            Announced::Failed => "failed",
        };
        self.announcements
            .get_or_create(&ResultLabel { result })
            .inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }
}
