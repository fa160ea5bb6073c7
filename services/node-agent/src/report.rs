//! The report of what the node holds: read from the runtime, the kubelet's pull records and the
//! folder of registry hosts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use holdfast_api::report::{MAX_NAME_BYTES, MAX_NAMES, NodeReport, ReportedImage};
use holdfast_core::kubelet::listed_name;
use holdfast_core::reference::Reference;
use holdfast_runtime::supervise::Heartbeat;
use tokio::sync::watch;

use crate::cri::grpc;
use crate::cri::wire::Image;
use crate::host::Disk;
use crate::records::Records;
use crate::runtimes::HostRuntime;
use crate::status::Status;

/// Time between two reports when the kubelet pulls nothing.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time between two looks whether the kubelet wrote a record. Changes within it are one.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads what a node holds.
#[derive(Debug)]
pub struct Reporter<R> {
    node: String,
    runtime: R,
    disk: Disk,
    /// The kubelet's folder `image_manager` as mounted here.
    image_manager: PathBuf,
    records: Records,
    reports: watch::Sender<Option<NodeReport>>,
}

impl<R: HostRuntime> Reporter<R> {
    /// A reporter that has read nothing yet. It sends each report that differs from the last one.
    pub fn new(
        node: String,
        runtime: R,
        disk: Disk,
        image_manager: PathBuf,
        reports: watch::Sender<Option<NodeReport>>,
    ) -> Self {
        Self {
            node,
            runtime,
            disk,
            image_manager,
            records: Records::default(),
            reports,
        }
    }

    /// Reads the node every minute, and soon after the kubelet wrote a record. Runs for ever.
    pub async fn run(&mut self, status: &Status, heartbeat: &Heartbeat) -> Result<(), grpc::Error> {
        loop {
            let written = self.written();
            let report = self.read().await?;
            heartbeat.success();
            status.report(&describe(&report));
            self.reports.send_if_modified(|last| {
                let changed = last.as_ref() != Some(&report);
                if changed {
                    tracing::debug!(report = ?report, "what this node holds changed");
                    *last = Some(report);
                }
                changed
            });
            let end = Instant::now() + INTERVAL;
            while Instant::now() < end && self.written() == written {
                tokio::time::sleep(POLL_INTERVAL).await;
                heartbeat.beat();
            }
        }
    }

    /// When the kubelet wrote the last record.
    fn written(&self) -> Option<SystemTime> {
        let folder = std::fs::metadata(self.image_manager.join("pulled")).ok()?;
        folder.modified().ok()
    }

    /// Reads the node once.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn read(&mut self) -> Result<NodeReport, grpc::Error> {
        let (name, version) = self.runtime.cri().version().await?;
        let images = self.runtime.cri().images().await?;
        let ids = images.iter().map(|image| image.id.as_str());
        self.records.refresh(&self.image_manager, ids);
        let runtime = format!("{name} {version}");
        let hosts = self.disk.foreign_hosts();
        Ok(build(&self.node, runtime, images, &self.records, hosts))
    }
}

/// The report of a node.
pub fn build(
    node: &str,
    runtime: String,
    images: Vec<Image>,
    records: &Records,
    foreign_hosts: BTreeSet<String>,
) -> NodeReport {
    let pulling: BTreeSet<String> = records
        .intents()
        .into_iter()
        .filter_map(|name| Some(listed_name(&Reference::parse(name).ok()?)))
        .collect();
    let mut truncated = records.truncated;
    let mut limit = |mut names: Vec<String>| {
        let before = names.len();
        names.retain(|name| name.len() <= MAX_NAME_BYTES);
        names.sort_unstable();
        names.truncate(MAX_NAMES);
        truncated |= names.len() != before;
        names
    };
    let mut image_ids: Vec<ReportedImage> = images
        .into_iter()
        .map(|image| {
            let (names, manifests) = (limit(image.repo_tags), limit(image.repo_digests));
            let mut all = names.iter().chain(&manifests);
            ReportedImage {
                record: records.record(&image.id),
                intent: all.any(|name| pulling.contains(name)),
                id: image.id,
                names,
                manifests,
            }
        })
        .collect();
    image_ids.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let mut report = NodeReport {
        node: node.to_owned(),
        runtime,
        gate: records.gate,
        image_ids,
        foreign_hosts: foreign_hosts.into_iter().collect(),
        truncated,
    };
    report.limit();
    report
}

/// A line about a report, for people. It names no image and no Secret: anybody may read it.
fn describe(report: &NodeReport) -> String {
    let recorded = report
        .image_ids
        .iter()
        .filter(|image| image.record.is_some());
    let records = if report.gate {
        format!("pull records of {}", recorded.count())
    } else {
        "no pull records".to_owned()
    };
    let cut = if report.truncated {
        ", not complete"
    } else {
        ""
    };
    format!(
        "{} images, {records}, {} registry hosts configured by others{cut}",
        report.image_ids.len(),
        report.foreign_hosts.len()
    )
}

#[cfg(test)]
mod tests;
