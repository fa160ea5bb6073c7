//! What `diff` asks the API server. What the caller may not see is named.

use std::collections::BTreeMap;

use holdfast_api::Artifact;
use holdfast_api::access::ImageAccess;
use holdfast_api::labels;
use holdfast_api::state::EVERY_SOURCE;
use holdfast_cli_kit::cluster::{
    self, ARTIFACTS, Listed, NAMESPACES, NODES, PODS, Release, Resource,
};
use holdfast_cluster_model::{NamespaceFacts, Scope};
use holdfast_core::workload::{KINDS, text};
use kube::Client;
use serde_json::Value;

use crate::answers::{Answers, Basis};
use crate::inventory::Inventory;
use crate::judge::Known;
use crate::own::{Own, OwnPods};

const CLAIMS: Resource = cluster::core("persistentvolumeclaims");
const ACCOUNTS: Resource = cluster::core("serviceaccounts");

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
        basis: Basis::Recorded,
        answers: Answers::default(),
        own: Own {
            registry: Known::Unknown,
            controller: Known::Unknown,
        },
        account_secrets: account_secrets(client, namespace).await?,
        lost: None,
        access,
        delivery: cluster::delivery(client, &release.names).await?,
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

/// Holdfast's own pods, and the claims of their volumes.
pub(crate) async fn own_pods(client: &Client, release: &Release) -> anyhow::Result<OwnPods> {
    let namespace = Some(release.names.namespace.as_str());
    let selector = format!("{}={}", labels::INSTANCE, release.names.release);
    let pods = cluster::list_some(client, PODS, namespace, &selector).await?;
    let claims = cluster::list(client, CLAIMS, namespace).await?;
    let items = |listed| match listed {
        Listed::Items(items) => Some(items),
        Listed::Forbidden | Listed::Unknown => None,
    };
    Ok(OwnPods {
        pods: items(pods),
        claims: items(claims),
    })
}

/// The pull secrets of service accounts; `None` where they may not be listed.
async fn account_secrets(
    client: &Client,
    namespace: Option<&str>,
) -> anyhow::Result<Option<BTreeMap<(String, String), Vec<String>>>> {
    let Listed::Items(items) = cluster::list(client, ACCOUNTS, namespace).await? else {
        return Ok(None);
    };
    let secrets = |account: &Value| {
        let secrets = account.get("imagePullSecrets").and_then(Value::as_array);
        let names = secrets.into_iter().flatten();
        let names = names.filter_map(|secret| secret.get("name")?.as_str());
        names.map(str::to_owned).collect()
    };
    let key = |account: &Value| {
        let text = |pointer| text(account, pointer).to_owned();
        (text("/metadata/namespace"), text("/metadata/name"))
    };
    let accounts = items.iter().map(|account| (key(account), secrets(account)));
    Ok(Some(accounts.collect()))
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
