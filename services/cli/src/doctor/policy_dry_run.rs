//! Whether policies refuse pods with the registry's references: asked of the API server itself, by
//! dry runs of one pod with the upstream's image and of the same pod with the registry's. Nothing
//! is created.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use holdfast_api::Artifact;
use holdfast_api::access::ImageAccess;
use holdfast_api::labels;
use holdfast_api::state::EVERY_SOURCE;
use holdfast_cli_kit::cluster::{self, PODS};
use holdfast_cluster_model::{NamespaceFacts, Scope, denied_by};
use holdfast_core::meaning::meaning;
use holdfast_core::workload::text;
use holdfast_core::{Reference, rewrite};
use kube::Client;
use serde_json::{Value, json};

use super::api::Fetched;
use crate::status::diagnose;

/// Upstream hosts that are tried in each namespace: policies match hosts.
const MAX_HOSTS_PER_NAMESPACE: usize = 3;
/// Dry runs at a time.
const PARALLEL: usize = 8;
/// Where the webhook rewrites by label only.
const KUBE_SYSTEM: &str = "kube-system";

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both pods pass.
    Passes,
    /// The upstream's image passes and the registry's does not.
    Refused {
        /// Who refuses.
        by: String,
        /// In its own words.
        message: String,
    },
    /// No answer for either pod.
    Unknown(String),
}

/// One namespace and one image, tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DryRun {
    pub(super) namespace: String,
    pub(super) source: String,
    pub(super) outcome: Outcome,
    /// Whether the API server made `imagePullPolicy` `Always`, which the pod did not ask for.
    pub(super) pulls_always: bool,
}

/// One image of each upstream in each namespace, of those that pods are sent to the registry for:
/// only they meet a policy under the registry's name.
pub(super) fn candidates(
    artifacts: &[Artifact],
    scope: &Scope,
    access: &ImageAccess,
    namespaces: &BTreeMap<String, NamespaceFacts>,
) -> Vec<(String, Reference)> {
    let mut found: BTreeMap<String, BTreeMap<String, Reference>> = BTreeMap::new();
    for artifact in artifacts {
        let namespace = artifact.metadata.namespace.clone().unwrap_or_default();
        let is_in_scope = namespaces
            .get(&namespace)
            .is_some_and(|facts| !facts.terminating && scope.includes(&namespace, facts));
        let Ok(reference) = Reference::parse(&artifact.spec.source_artifact) else {
            continue;
        };
        if is_in_scope
            && scope.includes_source(reference.host())
            && access.permits(&namespace, &reference)
        {
            let hosts = found.entry(namespace).or_default();
            hosts
                .entry(reference.host().to_string())
                .or_insert(reference);
        }
    }
    found
        .into_iter()
        .flat_map(|(namespace, hosts)| {
            let few = hosts.into_values().take(MAX_HOSTS_PER_NAMESPACE);
            few.map(move |reference| (namespace.clone(), reference))
        })
        .collect()
}

/// Tries them all; and whether the webhook rewrites a pod where nothing is to keep it from that.
pub(super) async fn run(
    client: &Client,
    address: &str,
    status: &diagnose::Facts,
    candidates: Vec<(String, Reference)>,
) -> (Vec<DryRun>, Option<Fetched<bool>>) {
    let tried: Vec<DryRun> = futures::stream::iter(&candidates)
        .map(|(namespace, reference)| attempt(client, address, namespace, reference))
        .buffered(PARALLEL)
        .collect()
        .await;
    let state = status.state.as_ref().ok().and_then(Option::as_ref);
    let excluded = |namespace: &str, source: &str| {
        state.is_none_or(|state| {
            !state.rewrite
                || state.excluded.iter().any(|entry| {
                    entry.namespace == namespace
                        && [EVERY_SOURCE, source].contains(&entry.source.as_str())
                })
        })
    };
    let chosen = candidates
        .iter()
        .zip(&tried)
        .find(|((namespace, reference), dry_run)| {
            dry_run.outcome == Outcome::Passes
                && namespace != KUBE_SYSTEM
                && !excluded(namespace, &reference.to_string())
        });
    let rewrites = match chosen {
        Some(((namespace, reference), _)) => {
            Some(is_rewritten(client, address, namespace, reference).await)
        }
        None => None,
    };
    (tried, rewrites)
}

async fn attempt(client: &Client, address: &str, namespace: &str, reference: &Reference) -> DryRun {
    let source = reference.to_string();
    let mut pulls_always = false;
    let outcome = match rewrite::rewrite(reference, address) {
        None => Outcome::Unknown("its name is too long for the registry".to_owned()),
        Some(local) => {
            // The webhook is to have no part in it.
            let local = dry_run(client, namespace, &pod(&local, true)).await;
            match local {
                Ok(stored) => {
                    let policy = text(&stored, "/spec/containers/0/imagePullPolicy");
                    pulls_always = policy == "Always";
                    Outcome::Passes
                }
                Err(refusal) => {
                    let original = dry_run(client, namespace, &pod(&source, true)).await;
                    compare(&refusal, original.err().as_deref())
                }
            }
        }
    };
    DryRun {
        namespace: namespace.to_owned(),
        source,
        outcome,
        pulls_always,
    }
}

/// What it means that the registry's image is refused, and the upstream's too or not.
fn compare(local: &str, original: Option<&str>) -> Outcome {
    match original {
        Some(original) => Outcome::Unknown(original.to_owned()),
        None => Outcome::Refused {
            by: denied_by(local).unwrap_or_else(|| "the API server".to_owned()),
            message: local.to_owned(),
        },
    }
}

async fn is_rewritten(
    client: &Client,
    address: &str,
    namespace: &str,
    reference: &Reference,
) -> Fetched<bool> {
    let stored = dry_run(client, namespace, &pod(&reference.to_string(), false)).await?;
    let image = text(&stored, "/spec/containers/0/image");
    Ok(meaning(image, None, &[address.to_owned()]).is_at_registry())
}

/// A pod that restricted Pod Security and quotas let pass; it is never made.
fn pod(image: &str, opts_out: bool) -> Value {
    let mut labels = serde_json::Map::new();
    if opts_out {
        labels.insert(labels::REWRITE.to_owned(), json!(labels::REWRITE_DISABLED));
    }
    let minimal_resources = json!({"cpu": "1m", "memory": "1Mi"});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "holdfast-doctor-", "labels": labels},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "doctor",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "resources": {"requests": minimal_resources, "limits": minimal_resources},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// What the API server would store, or why not, in its words.
async fn dry_run(client: &Client, namespace: &str, pod: &Value) -> Result<Value, String> {
    let path = format!("{}?dryRun=All", PODS.path(Some(namespace)));
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(pod.to_string().into_bytes())
        .map_err(|error| error.to_string())?;
    client
        .request(request)
        .await
        .map_err(|error| cluster::error_message(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::Config;

    fn artifact(namespace: &str, source: &str) -> Artifact {
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
            "metadata": {"name": "a", "namespace": namespace}, "spec": {"sourceArtifact": source},
        }))
        .unwrap()
    }

    /// With these values, what is tried of these images in these namespaces.
    fn check(values: &Value, expect: &[&str]) {
        let artifacts = [
            artifact("apps", "r.io/a:1"),
            artifact("apps", "r.io/b:1"),
            artifact("apps", "other.io/a:1"),
            artifact("out", "r.io/a:1"),
            artifact("gone", "r.io/a:1"),
            artifact("ending", "r.io/a:1"),
        ];
        let out = (
            labels::REWRITE.to_owned(),
            labels::REWRITE_DISABLED.to_owned(),
        );
        let facts = |labels: Option<(String, String)>, terminating| NamespaceFacts {
            labels: labels.into_iter().collect(),
            terminating,
        };
        let namespaces = BTreeMap::from([
            ("apps".to_owned(), facts(None, false)),
            ("out".to_owned(), facts(Some(out), false)),
            ("ending".to_owned(), facts(None, true)),
        ]);
        let document = json!({
            "release": {"name": "h", "namespace": "sys", "fullname": "h", "version": "1"},
            "values": values,
        });
        let config = Config::parse(&document.to_string()).unwrap();
        let scope = Scope::new(&config).unwrap();
        let found: Vec<_> = candidates(&artifacts, &scope, &ImageAccess::Every, &namespaces)
            .into_iter()
            .map(|(namespace, reference)| format!("{namespace} {reference}"))
            .collect();
        assert_eq!(found, expect, "{values}");
    }

    #[test]
    fn one_image_of_each_upstream_is_tried_where_pods_are_rewritten() {
        check(&json!({}), &["apps other.io/a:1", "apps r.io/a:1"]);
    }

    #[test]
    fn images_that_the_values_leave_alone_are_not_tried() {
        check(&json!({"sources": ["other.io"]}), &["apps other.io/a:1"]);
        let listed = json!({"onlyListedUpstreams": true, "upstreams": [{"host": "r.io"}]});
        check(&listed, &["apps r.io/a:1"]);
    }

    #[test]
    fn only_what_the_registrys_image_alone_meets_is_a_policys_doing() {
        let policy = "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'ours' with binding 'b' denied request: no";
        let refused = compare(policy, None);
        assert!(
            matches!(refused, Outcome::Refused { by, .. } if by == "ValidatingAdmissionPolicy ours")
        );
        assert_eq!(
            compare(policy, Some("exceeded quota")),
            Outcome::Unknown("exceeded quota".to_owned())
        );
    }
}
