//! Artifacts for the wanted images: created once, and followed until they are local.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use holdfast_api::{Artifact, artifact_name, labels};
use holdfast_cli_kit::artifact_status::{self, copy_status};
use holdfast_cli_kit::cluster::{self, ARTIFACTS, Listed};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

/// Artifacts that are created at a time.
const PARALLEL: usize = 8;
/// Time between two reads of the Artifacts.
const POLL: Duration = Duration::from_secs(2);
/// How long images that their upstreams refuse are waited for, once nothing else is waited for.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The field manager.
const FIELD_MANAGER: &str = "holdfast-preload";

/// One image in one namespace.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Image {
    pub(super) namespace: String,
    pub(super) source: String,
    /// Where it is named.
    pub(super) from: Vec<String>,
    pub(super) local: bool,
    pub(super) reason: String,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    pub(super) size_bytes: u64,
}

impl Image {
    pub(super) fn new(namespace: &str, source: &str, from: &BTreeSet<String>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            source: source.to_owned(),
            from: from.iter().cloned().collect(),
            local: false,
            reason: artifact_status::WAITING.to_owned(),
            message: "no Artifact yet".to_owned(),
            digest: None,
            size_bytes: 0,
        }
    }

    fn refuse(&mut self, why: String) {
        "Refused".clone_into(&mut self.reason);
        self.message = why;
    }

    /// Whether the API server refused its Artifact.
    pub(super) fn is_refused(&self) -> bool {
        self.reason == "Refused"
    }
}

/// Makes the Artifacts that are missing. One whose namespace does not exist is made in `fallback`.
pub(super) async fn create(client: &Client, images: &mut [Image], fallback: &str) {
    stream::iter(images.iter_mut())
        .for_each_concurrent(PARALLEL, |image| async move {
            let mut outcome = ensure(client, &image.namespace, &image.source).await;
            if image.namespace != fallback
                && matches!(&outcome, Err(kube::Error::Api(status)) if status.code == 404)
            {
                fallback.clone_into(&mut image.namespace);
                outcome = ensure(client, fallback, &image.source).await;
            }
            match outcome {
                Ok(true) => {}
                Ok(false) => {
                    image.refuse("an Artifact of that name belongs to another image".to_owned());
                }
                Err(error) => image.refuse(cluster::error_message(&error)),
            }
        })
        .await;
}

/// Makes one Artifact, or marks the one that is there as one to keep; false when its name is taken
/// by another image.
async fn ensure(client: &Client, namespace: &str, source: &str) -> kube::Result<bool> {
    let api: Api<Artifact> = Api::namespaced(client.clone(), namespace);
    let name = artifact_name(source);
    let mut artifact = Artifact::of_source(source);
    artifact.metadata.labels = Some(
        [
            (labels::MANAGED_BY, labels::MANAGED_BY_PRELOAD),
            (labels::KEEP, labels::KEEP_ASKED),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    );
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match api.create(&params, &artifact).await {
        Ok(_) => return Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    let existing = api.get(&name).await?;
    if existing.spec.source_artifact != source {
        return Ok(false);
    }
    let kept = existing
        .metadata
        .labels
        .as_ref()
        .is_some_and(|all| all.contains_key(labels::KEEP));
    if !kept {
        let patch =
            Patch::Merge(json!({"metadata": {"labels": {labels::KEEP: labels::KEEP_ASKED}}}));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch_metadata(&name, &params, &patch).await?;
    }
    Ok(true)
}

/// Reads the statuses of the images.
pub(super) async fn refresh(client: &Client, images: &mut [Image]) -> anyhow::Result<()> {
    let namespaces: BTreeSet<String> = images
        .iter()
        .filter(|image| !image.is_refused())
        .map(|image| image.namespace.clone())
        .collect();
    let mut found: BTreeMap<(String, String), Artifact> = BTreeMap::new();
    for namespace in namespaces {
        match cluster::list(client, ARTIFACTS, Some(&namespace)).await? {
            Listed::Items(items) => {
                for item in items {
                    if let Ok(artifact) = serde_json::from_value::<Artifact>(item) {
                        let name = artifact.metadata.name.clone().unwrap_or_default();
                        found.insert((namespace.clone(), name), artifact);
                    }
                }
            }
            Listed::Forbidden => {
                anyhow::bail!("Artifacts in namespace {namespace} may not be listed")
            }
            Listed::Unknown => anyhow::bail!(
                "the API server knows no Artifacts: is Holdfast installed in this cluster?"
            ),
        }
    }
    for image in images.iter_mut().filter(|image| !image.is_refused()) {
        let key = (image.namespace.clone(), artifact_name(&image.source));
        if let Some(artifact) = found
            .get(&key)
            .filter(|artifact| artifact.spec.source_artifact == image.source)
        {
            let status = copy_status(artifact);
            image.digest = artifact.status.as_ref().and_then(|it| it.digest.clone());
            image.size_bytes = status.size_bytes;
            (image.local, image.reason, image.message) =
                (status.local, status.reason, status.message);
        }
    }
    Ok(())
}

/// Waits until every image is local, until all that is missing was refused, or until
/// `deadline`. `on_local` gets each image that became local, with how many are.
pub(super) async fn follow(
    client: &Client,
    images: &mut [Image],
    deadline: Instant,
    mut on_local: impl FnMut(&Image, usize),
) -> anyhow::Result<()> {
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut failed_since: Option<Instant> = None;
    let mut failures = 0;
    loop {
        match refresh(client, images).await {
            Ok(()) => failures = 0,
            // An API server that restarts is waited for.
            Err(error) if failures >= 5 => return Err(error),
            Err(_) => failures += 1,
        }
        for image in images.iter().filter(|image| image.local) {
            if known.insert((image.namespace.clone(), image.source.clone())) {
                on_local(image, known.len());
            }
        }
        let now = Instant::now();
        match outlook(images) {
            Outlook::Done => return Ok(()),
            Outlook::Failed => {
                let since = *failed_since.get_or_insert(now);
                if now.duration_since(since) >= REFUSAL_TIMEOUT {
                    return Ok(());
                }
            }
            Outlook::Pending => failed_since = None,
        }
        if now >= deadline {
            return Ok(());
        }
        tokio::time::sleep(POLL.min(deadline.duration_since(now))).await;
    }
}

/// What to expect of the images that are not local.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// There are none.
    Done,
    /// Their upstreams refused each of them.
    Failed,
    /// Some may become local.
    Pending,
}

fn outlook(images: &[Image]) -> Outlook {
    let mut absent = images
        .iter()
        .filter(|image| !image.local && !image.is_refused())
        .peekable();
    if absent.peek().is_none() {
        Outlook::Done
    } else if absent.all(|image| artifact_status::is_lasting(&image.reason)) {
        Outlook::Failed
    } else {
        Outlook::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reasons: &[&str], expect: &Outlook) {
        let images: Vec<_> = reasons
            .iter()
            .map(|reason| Image {
                local: *reason == "Copied",
                reason: (*reason).to_owned(),
                ..Image::new("a", "r.io/a:1", &BTreeSet::new())
            })
            .collect();
        assert_eq!(outlook(&images), *expect, "{reasons:?}");
    }

    #[test]
    fn waiting_ends_when_nothing_more_can_come() {
        check(&[], &Outlook::Done);
        check(&["Copied", "Refused"], &Outlook::Done);
        check(&["Copied", "NotFound"], &Outlook::Failed);
        check(&["NotFound", "Unauthorized", "Invalid"], &Outlook::Failed);
        check(&["NotFound", "UpstreamUnavailable"], &Outlook::Pending);
        check(&["Waiting"], &Outlook::Pending);
        check(&["Copied", "Copying"], &Outlook::Pending);
    }
}
