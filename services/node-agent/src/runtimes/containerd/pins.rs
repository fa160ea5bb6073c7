//! Pins the images that Holdfast starts from: its own and the sandbox image ("pause"). Otherwise
//! the kubelet may remove them when a disk fills, and the node cannot boot without its uplink.
//!
//! A pin is a label on containerd's record of the image. A second label names the release that set
//! it. So no other state is needed, and pins of other programs are never changed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Containerd;
use super::services::Image;
use crate::cri::grpc;
use crate::runtimes::{self, AgentPod, HostRuntime as _};

/// The label, and its value, by which the CRI plug-in of containerd recognizes a pinned image.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// The label that names the release that pinned the image.
const OWNER: &str = "holdfast.dev/pinned-by";
/// The CRI plug-in learns of a changed label by an event, a moment later.
const LABEL_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the images are not pinned.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A call failed.
    #[error(transparent)]
    Call(grpc::Error),
    /// The runtime is not containerd.
    #[error("the runtime has no image service of containerd, so images cannot be pinned")]
    Unsupported,
    /// containerd knows no container of the agent's pod.
    #[error("containerd shows no container of the agent's own pod, so its images are unknown")]
    NoContainers,
    /// A container runs from an image whose record is gone.
    #[error("the image {0} no longer has a name in containerd, so it cannot be pinned")]
    Gone(String),
    /// The label is set, but the CRI does not report the image as pinned.
    #[error("containerd ignores the pin of {0}; pins need containerd 1.7 or newer")]
    Ignored(String),
}

impl From<grpc::Error> for Error {
    fn from(error: grpc::Error) -> Self {
        match error {
            grpc::Error::Status {
                code: grpc::CODE_UNIMPLEMENTED,
                ..
            } => Self::Unsupported,
            other => Self::Call(other),
        }
    }
}

impl From<Error> for runtimes::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Call(error) => Self::Call(error),
            other => Self::other(other),
        }
    }
}

/// One change of an image's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Set the pin of this release.
    Pin(Image),
    /// Remove the pin of this release.
    Unpin(Image),
}

/// The changes that pin the `wanted` images only. `records` are those of the wanted images and of
/// the images that `release` has pinned.
fn plan(wanted: &BTreeSet<String>, records: &[Image], release: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut seen = BTreeSet::new();
    for record in records.iter().filter(|record| seen.insert(&record.name)) {
        let label = |key: &str| record.labels.get(key).map(String::as_str);
        let ours = label(OWNER) == Some(release);
        if wanted.contains(&record.name) {
            if label(PINNED.0) != Some(PINNED.1) {
                steps.push(Step::Pin(record.clone()));
            }
        } else if ours {
            steps.push(Step::Unpin(record.clone()));
        }
    }
    steps
}

/// Pins the images of the agent's pod and removes pins of other images. All pods of Holdfast have
/// the same image, and the sandbox is part of each pod. Returns the names.
pub(super) async fn pin(runtime: &Containerd, pod: &AgentPod) -> Result<BTreeSet<String>, Error> {
    let wanted = runtime.images_of_pod(&pod.namespace, &pod.name).await?;
    if wanted.is_empty() {
        return Err(Error::NoContainers);
    }
    let mut records = runtime.images_labelled(OWNER, &pod.release).await?;
    for name in &wanted {
        let record = runtime.image(name).await?;
        records.push(record.ok_or_else(|| Error::Gone(name.clone()))?);
    }
    apply(runtime, plan(&wanted, &records, &pod.release), pod).await?;
    for name in &wanted {
        wait_until_pinned(runtime, name).await?;
    }
    Ok(wanted)
}

/// Removes all pins of the release. Returns how many there were; a runtime that cannot pin has
/// none.
pub(super) async fn unpin(runtime: &Containerd, pod: &AgentPod) -> Result<usize, grpc::Error> {
    let records = match runtime.images_labelled(OWNER, &pod.release).await {
        Err(grpc::Error::Status {
            code: grpc::CODE_UNIMPLEMENTED,
            ..
        }) => return Ok(0),
        result => result?,
    };
    let steps = plan(&BTreeSet::new(), &records, &pod.release);
    let count = steps.len();
    apply(runtime, steps, pod).await?;
    Ok(count)
}

async fn apply(runtime: &Containerd, steps: Vec<Step>, pod: &AgentPod) -> Result<(), grpc::Error> {
    for step in steps {
        match step {
            Step::Pin(record) => {
                let labels = [PINNED, (OWNER, pod.release.as_str())];
                runtime.label_image(&record, &labels).await?;
                tracing::info!(image = %record.name, "image pinned");
            }
            Step::Unpin(record) => {
                match runtime
                    .label_image(&record, &[(PINNED.0, ""), (OWNER, "")])
                    .await
                {
                    // Removed in the meantime.
                    Err(grpc::Error::Status {
                        code: grpc::CODE_NOT_FOUND,
                        ..
                    }) => {}
                    result => result?,
                }
                tracing::info!(image = %record.name, "image unpinned");
            }
        }
    }
    Ok(())
}

/// Waits until the CRI reports the image as pinned.
async fn wait_until_pinned(runtime: &Containerd, name: &str) -> Result<(), Error> {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(100);
    loop {
        if runtime.cri().is_pinned(name).await? == Some(true) {
            return Ok(());
        }
        if waited >= LABEL_TIMEOUT {
            return Err(Error::Ignored(name.to_owned()));
        }
        tokio::time::sleep(step).await;
        waited += step;
    }
}

#[cfg(test)]
mod tests;
