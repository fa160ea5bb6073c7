//! Finds pods, reads their owners, evicts and patches. Evictions respect disruption
//! budgets, because the API server decides on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::bail;
use holdfast_api::labels;
use holdfast_cli_kit::cluster::{self, Listed, PODS};
use holdfast_core::workload::controller_of;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};

use super::eviction_queue::{EvictionQueue, Step};
use super::plan::{self, Owner, Remedy, RewrittenPod};

/// Time between two lists of pods that are recreated.
const POLL: Duration = Duration::from_secs(2);

/// Rate and end of a restoration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pacing {
    /// Pods a minute.
    pub(crate) per_minute: u32,
    /// Whether the successors of the last pods are waited for.
    pub(crate) wait: bool,
    /// When it ends, also if pods are left.
    pub(crate) deadline: Instant,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Pods that have their original images again, or whose owners recreate them.
    pub(crate) restored: Vec<RewrittenPod>,
    /// Pods, or references of them, that stay as they are, and why. Where new pods are waited for,
    /// also those whose successor does not become ready.
    pub(crate) left: Vec<(RewrittenPod, String)>,
}

/// Every pod with rewritten references, in one namespace or in all. `rewriting` says whether a
/// webhook may exist.
pub(crate) async fn find(
    client: &Client,
    namespace: Option<&str>,
    addresses: &[String],
    rewriting: bool,
) -> anyhow::Result<Vec<RewrittenPod>> {
    match cluster::list(client, PODS, namespace).await? {
        Listed::Items(pods) => Ok(pods
            .iter()
            .filter_map(|pod| plan::find(pod, addresses, rewriting))
            .collect()),
        Listed::Forbidden | Listed::Unknown => bail!(
            "pods may not be listed{}",
            if namespace.is_none() {
                "; --namespace limits the work to one namespace"
            } else {
                ""
            }
        ),
    }
}

/// Reads each owner, and replaces the remedy of pods that are left by the reason.
pub(crate) async fn ask_owners(
    client: &Client,
    pods: &mut [RewrittenPod],
    addresses: &[String],
) -> anyhow::Result<()> {
    let mut known: BTreeMap<(String, Owner), Option<String>> = BTreeMap::new();
    for pod in pods.iter_mut().filter(|pod| pod.remedy == Remedy::Recreate) {
        let Some(owner) = pod.owner.clone() else {
            continue;
        };
        let Some(path) = plan::path_of_owner(&pod.namespace, &owner) else {
            continue;
        };
        let key = (pod.namespace.clone(), owner.clone());
        let objection = if let Some(objection) = known.get(&key) {
            objection.clone()
        } else {
            let objection = match cluster::get(client, &path).await {
                Ok(object) => plan::objection(&owner, object.as_ref(), addresses),
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    Some(format!("{}/{} may not be read", owner.kind, owner.name))
                }
                Err(error) => return Err(error.into()),
            };
            known.insert(key, objection.clone());
            objection
        };
        if let Some(why) = objection {
            pod.remedy = Remedy::Leave(why);
        }
    }
    Ok(())
}

/// Restores the pods, one after the other. `on_restored` gets a line for each, and how many wait.
pub(crate) async fn execute(
    client: &Client,
    pods: Vec<RewrittenPod>,
    pacing: Pacing,
    mut on_restored: impl FnMut(&str, usize),
) -> Outcome {
    let events = Recorder::new(
        client.clone(),
        Reporter {
            controller: "holdfast-restore".to_owned(),
            instance: None,
        },
    );
    let namespaces: BTreeMap<String, String> = pods
        .iter()
        .filter_map(|pod| Some((pod.owner.as_ref()?.uid.clone(), pod.namespace.clone())))
        .collect();
    let mut ready = ready(client, &namespaces.values().cloned().collect()).await;
    let mut queue = EvictionQueue::new(pods, pacing.per_minute, &ready);
    let mut outcome = Outcome::default();
    while now() < pacing.deadline {
        match queue.next(&ready, now(), pacing.wait) {
            Step::Done => break,
            Step::Wait(time) => {
                let rest = pacing.deadline.saturating_duration_since(now());
                tokio::time::sleep(time.min(POLL).min(rest)).await;
            }
            Step::Take(pod) => {
                let applied = apply_remedy(client, &pod).await;
                let now = now();
                match applied {
                    Applied::Evicted => {
                        on_restored(
                            &format!(
                                "{}/{}: evicted; {} recreates it",
                                pod.namespace,
                                pod.name,
                                pod.owned_by()
                            ),
                            queue.waiting(),
                        );
                        record_event(
                            &events,
                            &pod,
                            "evicted; its owner recreates it with its original images",
                        )
                        .await;
                        queue.evicted(&pod, now);
                        outcome.restored.push(*pod);
                    }
                    Applied::Patched(left) => {
                        on_restored(
                            &format!(
                                "{}/{}: has its original images again",
                                pod.namespace, pod.name
                            ),
                            queue.waiting(),
                        );
                        record_event(&events, &pod, "its original images were restored").await;
                        if !left.is_empty() {
                            queue.leave((*pod).clone(), left.join(", "));
                        }
                        outcome.restored.push(*pod);
                    }
                    Applied::Gone => {}
                    Applied::Held(why) => queue.held(*pod, why, now),
                    Applied::Failed(why) => queue.leave(*pod, why),
                }
            }
        }
        let settling: BTreeSet<String> = queue
            .settling()
            .filter_map(|owner| namespaces.get(owner).cloned())
            .collect();
        if !settling.is_empty() {
            ready = self::ready(client, &settling).await;
        }
    }
    outcome.left = queue.end(pacing.wait);
    outcome
}

/// The runtime's clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The ready pods of each owner that has any pods, by its UID, in these namespaces. What cannot be
/// listed counts as none, which waits.
async fn ready(client: &Client, namespaces: &BTreeSet<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for namespace in namespaces {
        let pods = match cluster::list(client, PODS, Some(namespace)).await {
            Ok(Listed::Items(pods)) => pods,
            Ok(Listed::Forbidden | Listed::Unknown) | Err(_) => continue,
        };
        for pod in &pods {
            if let Some((_, _, uid)) = controller_of(pod) {
                let count = counts.entry(uid.to_owned()).or_insert(0);
                *count += usize::from(plan::is_ready(pod));
            }
        }
    }
    counts
}

enum Applied {
    Evicted,
    /// With what could not be restored.
    Patched(Vec<String>),
    /// It was deleted or changed meanwhile.
    Gone,
    Held(String),
    Failed(String),
}

async fn apply_remedy(client: &Client, pod: &RewrittenPod) -> Applied {
    let path = format!("{}/{}", PODS.path(Some(&pod.namespace)), pod.name);
    let (request, left) = match &pod.remedy {
        Remedy::Recreate => {
            let eviction = json!({
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod.name, "namespace": pod.namespace},
                "deleteOptions": {"preconditions": {"uid": pod.uid}},
            });
            let request = http::Request::post(format!("{path}/eviction"))
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(eviction.to_string().into_bytes());
            (request, None)
        }
        Remedy::Patch(operations, left) => {
            let request = http::Request::patch(format!("{path}?fieldManager=holdfast-restore"))
                .header(http::header::CONTENT_TYPE, "application/json-patch+json")
                .body(Value::Array(operations.clone()).to_string().into_bytes());
            (request, Some(left.clone()))
        }
        Remedy::Leave(why) => return Applied::Failed(why.clone()),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return Applied::Failed(error.to_string()),
    };
    match client.request::<Value>(request).await {
        Ok(_) => left.map_or(Applied::Evicted, Applied::Patched),
        Err(kube::Error::Api(status)) if status.code == 404 => Applied::Gone,
        // The pod of that name is another one by now.
        Err(kube::Error::Api(status)) if status.code == 409 && left.is_none() => Applied::Gone,
        Err(kube::Error::Api(status)) if status.code == 429 => {
            Applied::Held(status.message.clone())
        }
        Err(error) => Applied::Failed(cluster::error_message(&error)),
    }
}

async fn record_event(events: &Recorder, pod: &RewrittenPod, what: &str) {
    let images: Vec<_> = pod
        .images
        .iter()
        .map(|image| image.original.as_str())
        .collect();
    let note: String = format!("{what}: {}", images.join(", "))
        .chars()
        .take(1000)
        .collect();
    let event = Event {
        type_: EventType::Normal,
        reason: "Restored".to_owned(),
        note: Some(note),
        action: "Restore".to_owned(),
        secondary: None,
    };
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    };
    if let Err(error) = events.publish(&event, &regarding).await {
        tracing::debug!(%error, "cannot write an event");
    }
}

/// Namespaces of pods that are about to be restored and would be rewritten again: those that do not
/// opt out while a webhook of Holdfast is there.
pub(super) async fn rewriting_namespaces(
    client: &Client,
    pods: &[RewrittenPod],
    own_namespaces: &[String],
) -> anyhow::Result<BTreeSet<String>> {
    let selector = format!(
        "{}={},{}={}",
        labels::NAME,
        labels::HOLDFAST,
        labels::COMPONENT,
        labels::COMPONENT_WEBHOOK
    );
    // Who may not see whether there is one is careful.
    if let Listed::Items(items) =
        cluster::list_some(client, cluster::WEBHOOKS, None, &selector).await?
        && items.is_empty()
    {
        return Ok(BTreeSet::new());
    }
    let mut rewriting = BTreeSet::new();
    let namespaces: BTreeSet<&String> = pods
        .iter()
        .filter(|pod| !matches!(pod.remedy, Remedy::Leave(_)))
        .map(|pod| &pod.namespace)
        .collect();
    for namespace in namespaces {
        if own_namespaces.contains(namespace) {
            continue;
        }
        let path = format!("{}/{namespace}", cluster::NAMESPACES.path(None));
        let object = match cluster::get(client, &path).await {
            Ok(object) => object.unwrap_or_default(),
            Err(kube::Error::Api(status)) if status.code == 403 => Value::Null,
            Err(error) => return Err(error.into()),
        };
        if !labels::opts_out(&object) {
            rewriting.insert(namespace.clone());
        }
    }
    Ok(rewriting)
}

/// Labels a namespace as opted out.
pub(super) async fn opt_out(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let path = format!(
        "{}/{namespace}?fieldManager=holdfast-restore",
        cluster::NAMESPACES.path(None)
    );
    let patch = json!({"metadata": {"labels": {labels::REWRITE: labels::REWRITE_DISABLED}}});
    let request = http::Request::patch(path)
        .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
        .body(patch.to_string().into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "namespace {namespace} cannot be labelled: {}",
            cluster::error_message(&error)
        ),
    }
}

#[cfg(test)]
mod tests;
