//! What healing needs of a pod: the images for which its containers wait, which of them are
//! rewritten, and its owner.

use crate::owner::Owner;
use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_core::delivery::PullPolicy;
use holdfast_core::kubelet::Credentials;
use holdfast_core::meaning::{self, MAX_SOURCE_BYTES};
use holdfast_core::pod::{self, Kind, PodImage};
use holdfast_core::reference::Reference;
use holdfast_core::workload;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;

/// Reasons by which a container waits for an image that cannot be pulled, or that must not be.
const STUCK: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"];
/// Reasons of a container that waits before its start.
const BEFORE: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// A pod that healing may have to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StuckPod {
    /// The pod's UID.
    pub uid: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// The controller that would recreate it.
    pub owner: Option<Owner>,
    /// Whether the webhook would rewrite it now.
    pub wanted: bool,
    /// Whether all its containers were started once, and one still runs.
    pub running: bool,
    /// The node to which it is bound.
    pub node: Option<String>,
    /// What it brings to use private images of its node.
    pub credentials: Credentials,
    /// Its images of upstreams.
    pub images: Vec<Image>,
    /// What happened to its images so far.
    pub history: ImageHistory,
}

/// One image of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it is declared.
    pub kind: Kind,
    /// The name of its container or volume.
    pub name: String,
    /// JSON pointer to the reference.
    pub pointer: String,
    /// The reference as it stands in the pod.
    pub written: String,
    /// The upstream's reference, canonical.
    pub source: String,
    /// What the author of the pod wrote, where the pod remembers it.
    pub original: Option<String>,
    /// Whether Holdfast wrote the reference, here or in another cluster.
    pub rewritten: bool,
    /// Whether it is pulled from this cluster's registry.
    pub local: bool,
    /// The pull policy.
    pub policy: PullPolicy,
    /// The progress of its container.
    pub progress: Progress,
}

/// The progress of an image's container; of an image volume, of the containers that mount it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// It ran, or fails for another reason than its image.
    Settled,
    /// It ended, and the kubelet waits before it starts it again (`CrashLoopBackOff`). That hides
    /// whether the last start failed for its image.
    Crashing,
    /// It has not started yet.
    NotStarted,
    /// The kubelet cannot pull.
    Stuck,
}

impl Image {
    /// `containers/NAME`, as the annotations name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind.field(), self.name)
    }

    /// Whether the API server lets the reference be changed.
    pub fn can_change(&self) -> bool {
        matches!(self.kind, Kind::Container | Kind::Init)
    }
}

/// Reads a pod, given the registry's addresses, its sources in scope, and whether the match
/// condition holds. `None` for a healthy pod, which then uses no memory.
pub fn stuck_pod(
    document: &Value,
    addresses: &[String],
    sources: &BTreeSet<String>,
    wanted: impl FnOnce() -> bool,
) -> Option<StuckPod> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    if sources.is_empty() || untouchable(document) {
        return None;
    }
    let waiting = Waiting::of(document);
    let images: Vec<Image> = meaning::of_pod(document, addresses)
        .into_iter()
        .filter(|found| found.image.kind != Kind::Ephemeral)
        .filter_map(|found| Some((found.meaning.source()?.to_string(), found)))
        .filter(|(source, _)| sources.contains(source))
        .map(|(source, found)| Image {
            kind: found.image.kind,
            progress: waiting.progress(&found.image, &source),
            original: found
                .annotated_text()
                .filter(|text| text.len() <= MAX_SOURCE_BYTES)
                .map(str::to_owned),
            rewritten: found.meaning.is_rewritten(),
            local: found.meaning.is_at_registry(),
            pointer: found.image.pointer,
            written: found.image.image,
            source,
            policy: PullPolicy::of(found.image.pull_policy.as_deref()),
            name: found.image.name,
        })
        .collect();
    let history = ImageHistory::of(document);
    let needs_help = images.iter().any(|image| match image.progress {
        Progress::Stuck => true,
        Progress::NotStarted => !image.local,
        Progress::Crashing => image.policy != PullPolicy::Always,
        Progress::Settled => false,
    });
    if !needs_help {
        return None;
    }
    let wanted = wanted();
    Some(StuckPod {
        uid: text("/metadata/uid").unwrap_or_default().to_owned(),
        created: text("/metadata/creationTimestamp")
            .and_then(|text| text.parse::<Timestamp>().ok())
            .map_or(0, Timestamp::as_second),
        owner: Owner::above(document),
        wanted,
        running: text("/status/phase") == Some("Running") && runs(document),
        node: text("/spec/nodeName").map(str::to_owned),
        credentials: Credentials {
            namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
            pull_secrets: pod::pull_secret_names(document).into_iter().collect(),
            service_account: pod::service_account_name(document).to_owned(),
        },
        images,
        history,
    })
}

/// Whether a container of the pod runs.
fn runs(document: &Value) -> bool {
    let statuses = ["containerStatuses", "initContainerStatuses"]
        .into_iter()
        .filter_map(|list| document.pointer(&format!("/status/{list}"))?.as_array());
    statuses
        .flatten()
        .any(|status| status.pointer("/state/running").is_some())
}

/// Whether a pod is never changed: finished and terminating pods, static pods, those that opt out,
/// and Holdfast's own.
fn untouchable(document: &Value) -> bool {
    let by_a_node = document
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|owner| owner.get("kind").and_then(Value::as_str) == Some("Node"));
    !workload::may_start("Pod", document)
        || pod::is_mirror(document)
        || by_a_node
        || labels::opts_out(document)
        || labels::is_holdfasts(document)
}

/// The progress of each container, and the volumes that it mounts.
struct Waiting<'a> {
    document: &'a Value,
}

impl<'a> Waiting<'a> {
    fn of(document: &'a Value) -> Self {
        Self { document }
    }

    fn progress(&self, image: &PodImage, source: &str) -> Progress {
        match image.kind {
            Kind::Container => self.of_container("containerStatuses", image),
            Kind::Init => self.of_container("initContainerStatuses", image),
            Kind::Ephemeral => Progress::Settled,
            // The runtime may report the full reference.
            Kind::Volume => self.volume(&image.name, [&image.image, source]),
        }
    }

    /// The progress of a container's own image. The kubelet reports the image of a volume at the
    /// containers that mount it, too.
    fn of_container(&self, list: &str, image: &PodImage) -> Progress {
        let (progress, message) = self.container(list, &image.name);
        if progress == Progress::Stuck
            && !names(message, &image.image)
            && self.names_volume(message)
        {
            return Progress::NotStarted;
        }
        progress
    }

    /// Whether a message names the image of a volume. The runtime may report the full reference.
    fn names_volume(&self, message: &str) -> bool {
        let volumes = self.document.pointer("/spec/volumes");
        let volumes = volumes.and_then(Value::as_array).into_iter().flatten();
        let mut texts = volumes.filter_map(|it| it.pointer("/image/reference")?.as_str());
        texts.any(|text| {
            let full = Reference::parse(text).map(|full| full.to_string());
            names(message, text) || full.is_ok_and(|full| names(message, &full))
        })
    }

    /// A container's progress, and what the kubelet says about it.
    fn container(&self, list: &str, name: &str) -> (Progress, &'a str) {
        let Some(status) = self
            .document
            .pointer(&format!("/status/{list}"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|status| status.get("name").and_then(Value::as_str) == Some(name))
        else {
            return (Progress::NotStarted, "");
        };
        let waiting = |field: &str| status.pointer(&format!("/state/waiting/{field}"))?.as_str();
        let reason = waiting("reason");
        let ran = status.pointer("/state/running").is_some()
            || status.pointer("/state/terminated").is_some()
            || status.pointer("/lastState/terminated").is_some()
            || status
                .get("restartCount")
                .and_then(Value::as_i64)
                .unwrap_or(0)
                > 0;
        let progress = match reason {
            Some(reason) if STUCK.contains(&reason) => Progress::Stuck,
            Some("CrashLoopBackOff") => Progress::Crashing,
            Some(reason) if !BEFORE.contains(&reason) => Progress::Settled,
            _ if ran => Progress::Settled,
            _ => Progress::NotStarted,
        };
        (progress, waiting("message").unwrap_or_default())
    }

    /// The kubelet reports a volume's image at the containers that mount it. Its message names the
    /// image that fails.
    fn volume(&self, volume: &str, spellings: [&str; 2]) -> Progress {
        let mut progress = Progress::Settled;
        for (list, statuses) in [
            ("initContainers", "initContainerStatuses"),
            ("containers", "containerStatuses"),
        ] {
            let containers = self
                .document
                .pointer(&format!("/spec/{list}"))
                .and_then(Value::as_array);
            for container in containers.into_iter().flatten() {
                let field = |name: &str| container.get(name).and_then(Value::as_str);
                let mounts = container
                    .get("volumeMounts")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .any(|mount| mount.get("name").and_then(Value::as_str) == Some(volume));
                if !mounts {
                    continue;
                }
                let (state, message) = self.container(statuses, field("name").unwrap_or_default());
                let state = match state {
                    // The container's own image may be the one that fails.
                    Progress::Stuck if spellings.iter().any(|text| names(message, text)) => {
                        Progress::Stuck
                    }
                    Progress::Stuck if field("image").is_some_and(|own| names(message, own)) => {
                        Progress::Settled
                    }
                    Progress::Stuck | Progress::NotStarted => Progress::NotStarted,
                    Progress::Settled | Progress::Crashing => Progress::Settled,
                };
                progress = progress.max(state);
            }
        }
        progress
    }
}

/// Whether a message names exactly this reference, not one with the same prefix.
fn names(message: &str, reference: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    message.match_indices(reference).any(|(at, found)| {
        let before = message.get(..at).and_then(|text| text.chars().next_back());
        let mut after = message.get(at + found.len()..).unwrap_or_default().chars();
        // A colon may be punctuation or begin a tag.
        let ends = match after.next() {
            Some(':') => !after.next().is_some_and(|c| c.is_ascii_alphanumeric()),
            Some(c) => !part(c),
            None => true,
        };
        ends && !before.is_some_and(part)
    })
}

impl StuckPod {
    /// Whether the kubelet cannot pull one of its images, or this one.
    pub fn is_stuck(&self, source: Option<&str>) -> bool {
        self.images.iter().any(|image| {
            image.progress == Progress::Stuck && source.is_none_or(|source| source == image.source)
        })
    }
}

#[cfg(test)]
mod tests;
