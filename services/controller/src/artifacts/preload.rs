//! Images of `preload.images`: each has an Artifact in the release's namespace with a label that
//! keeps it. One that left the list loses the label and nothing else.

use crate::Context;
use holdfast_api::{Artifact, artifact_name, labels};
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::apply::patch_params;
use holdfast_core::meaning::meaning;
use holdfast_runtime::supervise::Heartbeat;
use kube::api::{Api, Patch};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Time between two runs; a deleted Artifact comes back with the next one.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Interval of checks whether the Artifacts are known.
const SYNC_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A step that makes the Artifacts agree with the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The Artifact of a source is missing.
    Create(String, String),
    /// It exists without the label that keeps it.
    Keep(String),
    /// It is kept, but no longer on the list.
    Unkeep(String),
}

/// The list by Artifact name. Texts that are no reference are skipped and logged once.
pub fn wanted(images: &[String]) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::new();
    for image in images {
        if let Some(source) = meaning(image, None, &[]).source() {
            let source = source.to_string();
            wanted.insert(artifact_name(&source), source);
        } else {
            tracing::error!(image, "preload.images contains an invalid reference");
        }
    }
    wanted
}

/// The steps that make the Artifacts of the release's namespace agree with the list.
pub fn plan<'a>(
    wanted: &BTreeMap<String, String>,
    existing: impl Iterator<Item = (&'a str, &'a Artifact)>,
) -> Vec<Action> {
    let mut missing = wanted.clone();
    let mut actions = Vec::new();
    for (name, artifact) in existing {
        let kept = artifact
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(labels::KEEP))
            .map(String::as_str);
        match (missing.remove(name), kept) {
            // An Artifact of that name with another image was made by hand and is not marked.
            (Some(source), None) if artifact.spec.source_artifact == source => {
                actions.push(Action::Keep(name.to_owned()));
            }
            (None, Some(labels::KEEP_VALUES)) => actions.push(Action::Unkeep(name.to_owned())),
            _ => {}
        }
    }
    actions.extend(
        missing
            .into_iter()
            .map(|(name, source)| Action::Create(name, source)),
    );
    actions
}

/// Whether an Artifact exists because `preload.images` or a user listed its image, and not because
/// a pod was announced.
pub fn is_listed(artifact: &Artifact) -> bool {
    artifact.spec.service_account_name.is_none() && artifact.is_kept()
}

/// Keeps the Artifacts of the list. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), kube::Error> {
    let wanted = wanted(&context.config.values.preload.images);
    loop {
        let known = ClusterIndex::read(&context.index.artifacts, |artifacts| {
            let own = |namespace: &str| namespace == context.names.namespace;
            artifacts.synced().then(|| -> Vec<(String, Arc<Artifact>)> {
                artifacts
                    .iter()
                    .filter(|((namespace, _), _)| own(namespace))
                    .map(|((_, name), artifact)| (name.clone(), Arc::clone(artifact)))
                    .collect()
            })
        });
        let Some(existing) = known else {
            heart.beat();
            tokio::time::sleep(SYNC_POLL_INTERVAL).await;
            continue;
        };
        let existing = existing
            .iter()
            .map(|(name, artifact)| (name.as_str(), artifact.as_ref()));
        for action in plan(&wanted, existing) {
            heart.beat();
            // The next run retries.
            if let Err(error) = apply(&context, &action).await {
                tracing::warn!(?action, %error, "cannot write an Artifact for preload.images");
            }
        }
        heart.success();
        tokio::time::sleep(RESYNC_INTERVAL).await;
    }
}

async fn apply(context: &Context, action: &Action) -> Result<(), kube::Error> {
    let namespace = &context.names.namespace;
    let (name, label) = match action {
        Action::Create(_, source) => {
            let mut artifact = Artifact::of_source(source);
            let keep = (labels::KEEP.to_owned(), labels::KEEP_VALUES.to_owned());
            artifact.metadata.labels = Some([keep].into());
            if super::create(context, namespace, artifact).await? {
                tracing::info!(image = source, "created an Artifact for preload.images");
            }
            return Ok(());
        }
        Action::Keep(name) => (name, json!(labels::KEEP_VALUES)),
        Action::Unkeep(name) => (name, json!(null)),
    };
    let patch = Patch::Merge(json!({"metadata": {"labels": {labels::KEEP: label}}}));
    let params = patch_params();
    let api: Api<Artifact> = Api::namespaced(context.client.clone(), namespace);
    match api.patch_metadata(name, &params, &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(source: &str, keep: Option<&str>) -> (String, Artifact) {
        let mut artifact = Artifact::of_source(source);
        artifact.metadata.labels =
            keep.map(|value| [(labels::KEEP.to_owned(), value.to_owned())].into());
        (artifact_name(source), artifact)
    }

    fn check(list: &[&str], existing: &[(String, Artifact)], expect: &[Action]) {
        let list: Vec<String> = list.iter().map(|&image| image.to_owned()).collect();
        let existing = existing
            .iter()
            .map(|(name, artifact)| (name.as_str(), artifact));
        assert_eq!(plan(&wanted(&list), existing), expect, "{list:?}");
    }

    #[test]
    fn what_was_listed_and_not_announced_is_copied_ahead() {
        let (_, listed) = artifact("r.io/a:1", Some("asked"));
        let (_, by_hand) = artifact("r.io/a:1", None);
        let mut announced = listed.clone();
        announced.spec.service_account_name = Some("default".to_owned());
        for (artifact, expect) in [(&listed, true), (&by_hand, false), (&announced, false)] {
            assert_eq!(is_listed(artifact), expect, "{artifact:?}");
            let mut young = artifact.clone();
            let now = jiff::Timestamp::now();
            young.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
            let priority = super::super::urgency::priority(&young, None, now);
            assert_eq!(priority == holdfast_api::fill::Priority::Prefetch, expect);
        }
    }

    #[test]
    fn the_list_is_kept_and_nothing_else_is_touched() {
        const IMAGE: &str = "docker.io/library/nginx:1";
        let name = artifact_name(IMAGE);
        let create = Action::Create(name.clone(), IMAGE.to_owned());
        check(&["nginx:1", "not valid", IMAGE], &[], &[create]);
        check(&["nginx:1"], &[artifact(IMAGE, Some("values"))], &[]);
        check(&["nginx:1"], &[artifact(IMAGE, Some("asked"))], &[]);
        check(
            &["nginx:1"],
            &[artifact(IMAGE, None)],
            &[Action::Keep(name.clone())],
        );
        check(
            &[],
            &[artifact(IMAGE, Some("values"))],
            &[Action::Unkeep(name.clone())],
        );
        check(&[], &[artifact(IMAGE, Some("asked"))], &[]);
        check(&[], &[artifact(IMAGE, None)], &[]);
        // A user gave that name to the Artifact of another image.
        let (_, other) = artifact("r.io/other:1", None);
        check(&["nginx:1"], &[(name, other)], &[]);
    }
}
