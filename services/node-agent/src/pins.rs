//! Keeps the images that Holdfast itself starts from on the node: its own and the sandbox's
//! ("pause"). The kubelet collects images when a disk fills, and a node that lost these could not
//! boot without its uplink.
//!
//! A pin is a label on containerd's record of the image. A second label says whose pin it is, so
//! nothing has to be remembered elsewhere, and pins of others are neither taken over nor taken
//! away.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cri::Runtime;
use crate::cri::containerd::Image;
use crate::cri::grpc;

/// The label by which containerd's CRI knows a pinned image, and its value.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// The label that says which release pinned it.
const OWNER: &str = "holdfast.dev/pinned-by";
/// containerd takes over a changed label by an event of its own, a moment later.
const LABEL_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the images are not pinned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer, or one that is an error.
    #[error("{}", words(.0))]
    Runtime(#[from] grpc::Error),
    /// The agent's own pod is not among the runtime's.
    #[error(
        "containerd shows no container of the agent's own pod, so its images are not known here"
    )]
    NoContainers,
    /// A container runs from an image that has no record any more.
    #[error("the image {0} has no name in containerd any more, so it cannot be pinned")]
    Gone(String),
    /// The label is there and the CRI does not heed it.
    #[error("containerd does not heed the pin of {0}: it does so from 1.7 on")]
    NotHeeded(String),
}

fn words(error: &grpc::Error) -> String {
    match error {
        grpc::Error::Status {
            code: grpc::CODE_UNIMPLEMENTED,
            ..
        } => {
            "the runtime has no image service of containerd, so images cannot be pinned".to_owned()
        }
        other => other.to_string(),
    }
}

impl Error {
    /// Whether the runtime broke off: it may have died of what it was asked, so it is not asked
    /// again soon.
    pub fn broke_off(&self) -> bool {
        matches!(
            self,
            Self::Runtime(grpc::Error::Connect(..) | grpc::Error::Protocol(_))
        )
    }
}

/// Whose pod this is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Namespace of the agent's pod.
    pub namespace: String,
    /// Name of the agent's pod.
    pub pod: String,
    /// The release, as other releases in the cluster are not called: `NAMESPACE.FULLNAME`.
    pub release: String,
}

/// One change of an image's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Pins it as ours.
    Pin(Image),
    /// Takes our pin away.
    Unpin(Image),
}

/// From the images that are to be pinned, and the records of these and of what is pinned as ours,
/// to what is to be done.
pub fn plan(wanted: &BTreeSet<String>, records: &[Image], release: &str) -> Vec<Step> {
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

/// Pins the images of the agent's own pod, which are those of all of Holdfast's pods and the
/// sandbox's, and takes away the pins of a former version. Answers with the names.
pub async fn keep(runtime: &Runtime, own: &Own) -> Result<BTreeSet<String>, Error> {
    let wanted = runtime.images_of_pod(&own.namespace, &own.pod).await?;
    if wanted.is_empty() {
        return Err(Error::NoContainers);
    }
    let mut records = runtime.images_labelled(OWNER, &own.release).await?;
    for name in &wanted {
        let record = runtime.image(name).await?;
        records.push(record.ok_or_else(|| Error::Gone(name.clone()))?);
    }
    apply(runtime, plan(&wanted, &records, &own.release), own).await?;
    for name in &wanted {
        heeded(runtime, name).await?;
    }
    Ok(wanted)
}

/// Takes all our pins away; answers how many. A runtime that cannot pin has none.
pub async fn release(runtime: &Runtime, own: &Own) -> Result<usize, grpc::Error> {
    let records = match runtime.images_labelled(OWNER, &own.release).await {
        Err(grpc::Error::Status {
            code: grpc::CODE_UNIMPLEMENTED,
            ..
        }) => return Ok(0),
        result => result?,
    };
    let steps = plan(&BTreeSet::new(), &records, &own.release);
    let count = steps.len();
    apply(runtime, steps, own).await?;
    Ok(count)
}

async fn apply(runtime: &Runtime, steps: Vec<Step>, own: &Own) -> Result<(), grpc::Error> {
    for step in steps {
        match step {
            Step::Pin(record) => {
                let labels = [PINNED, (OWNER, own.release.as_str())];
                runtime.label_image(&record, &labels).await?;
                tracing::info!(image = %record.name, "pinned against the kubelet's collection of images");
            }
            Step::Unpin(record) => {
                match runtime
                    .label_image(&record, &[(PINNED.0, ""), (OWNER, "")])
                    .await
                {
                    // It went in between.
                    Err(grpc::Error::Status {
                        code: grpc::CODE_NOT_FOUND,
                        ..
                    }) => {}
                    result => result?,
                }
                tracing::info!(image = %record.name, "no longer pinned");
            }
        }
    }
    Ok(())
}

async fn heeded(runtime: &Runtime, name: &str) -> Result<(), Error> {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(100);
    loop {
        if runtime.is_pinned(name).await? == Some(true) {
            return Ok(());
        }
        if waited >= LABEL_TIMEOUT {
            return Err(Error::NotHeeded(name.to_owned()));
        }
        tokio::time::sleep(step).await;
        waited += step;
    }
}

#[cfg(test)]
mod tests;
