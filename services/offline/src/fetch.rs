//! What `diff` asks the API server. What the caller may not see is named.

use std::collections::BTreeMap;

use holdfast_api::Artifact;
use holdfast_api::access::ImageAccess;
use holdfast_api::delivery::Delivery;
use holdfast_api::state::EVERY_SOURCE;
use holdfast_cli_kit::cluster::{self, ARTIFACTS, Listed, NAMESPACES, NODES, Release};
use holdfast_cluster_model::{NamespaceFacts, Scope};
use holdfast_core::workload::KINDS;
use kube::Client;
use serde_json::Value;

use crate::inventory::Inventory;

/// Fetches what is in one namespace, or in all.
pub(crate) async fn fetch(
    client: &Client,
    release: &Release,
    namespace: Option<&str>,
) -> anyhow::Result<Inventory> {
    let config = release
        .config
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let scope = Scope::new(config)?;
    let state = release.state(client).await?;
    let mut not_judged = Vec::new();
    let mut objects: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
    // Revisions are history: nothing starts from them before a rollback.
    for kind in KINDS
        .iter()
        .filter(|kind| kind.kind != "ControllerRevision")
    {
        match cluster::list(client, kind.into(), namespace).await? {
            Listed::Items(items) => {
                objects.insert(kind.kind, items);
            }
            Listed::Forbidden => not_judged.push(format!("{} may not be listed", kind.plural)),
            Listed::Unknown => {}
        }
    }
    let artifacts = match cluster::list(client, ARTIFACTS, None).await? {
        Listed::Forbidden if namespace.is_some() => {
            cluster::list(client, ARTIFACTS, namespace).await?
        }
        listed => listed,
    };
    let artifacts = match artifacts {
        Listed::Items(items) => items,
        Listed::Forbidden => anyhow::bail!(
            "Artifacts may not be listed, so nothing is known of what is local; -n limits the question to one namespace"
        ),
        Listed::Unknown => anyhow::bail!(
            "the API server knows no Artifacts: the custom resource definition is missing"
        ),
    };
    let namespaces = namespaces(client, namespace, &mut not_judged).await?;
    let not_rewriting = match &state {
        Some(state) if state.rewrite => None,
        Some(state) => Some(state.reason.clone()),
        None => Some("the controller has not said anything yet".to_owned()),
    };
    let excluded = state.iter().flat_map(|state| &state.excluded);
    let excluded = excluded
        .filter(|entry| entry.source == EVERY_SOURCE)
        .map(|entry| (entry.namespace.clone(), entry.reason.clone()))
        .collect();
    let owners = state.iter().flat_map(|state| &state.excluded_owners);
    let excluded_owners = owners
        .filter(|owner| !owner.ended)
        .map(|owner| {
            (
                owner.namespace.clone(),
                owner.kind.clone(),
                owner.name.clone(),
            )
        })
        .collect();
    let listed = state.as_ref().and_then(|state| state.access.as_ref());
    let access = ImageAccess::new(config.values.access.is_by_namespace(), listed);
    Ok(Inventory {
        access,
        delivery: delivery(client, release).await?,
        healing: config.values.controller.healing,
        failure_policy: config.values.webhook.failure_policy,
        objects,
        namespaces,
        artifacts: artifacts
            .into_iter()
            .filter_map(|item| serde_json::from_value::<Artifact>(item).ok())
            .collect(),
        nodes: nodes(client).await?,
        addresses: cluster::addresses(state.as_ref()),
        not_rewriting,
        excluded,
        excluded_owners,
        scope,
        not_judged,
    })
}

/// What the controller knows of nodes; `None` where it has not said it or the caller may not read
/// it.
async fn delivery(client: &Client, release: &Release) -> anyhow::Result<Option<Delivery>> {
    let path = cluster::core("configmaps").path(Some(&release.names.namespace));
    let path = format!("{path}/{}", release.names.delivery());
    match cluster::get(client, &path).await {
        Ok(Some(map)) => {
            let map = serde_json::from_value(map)?;
            Ok(Some(Delivery::of(&map)))
        }
        Ok(None) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The nodes; `None` where they may not be listed.
async fn nodes(client: &Client) -> anyhow::Result<Option<Vec<Value>>> {
    match cluster::list(client, NODES, None).await? {
        Listed::Items(items) => Ok(Some(items)),
        Listed::Forbidden | Listed::Unknown => Ok(None),
    }
}

async fn namespaces(
    client: &Client,
    namespace: Option<&str>,
    not_judged: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<String, NamespaceFacts>> {
    let items = match namespace {
        Some(namespace) => {
            let path = format!("{}/{namespace}", NAMESPACES.path(None));
            match cluster::get(client, &path).await {
                Ok(Some(found)) => vec![found],
                Ok(None) => anyhow::bail!("there is no namespace {namespace}"),
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    not_judged.push(format!(
                        "whether namespace {namespace} opts out: it may not be read"
                    ));
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            }
        }
        None => match cluster::list(client, NAMESPACES, None).await? {
            Listed::Items(items) => items,
            Listed::Forbidden | Listed::Unknown => {
                not_judged.push("which namespaces opt out: they may not be listed".to_owned());
                Vec::new()
            }
        },
    };
    Ok(items.iter().map(cluster::namespace_facts).collect())
}
