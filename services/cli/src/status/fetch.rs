//! What `status` asks the API server. Each question may fail by itself; the answer then says why.

use anyhow::bail;
use holdfast_api::names::Names;
use holdfast_api::{Artifact, labels};
use holdfast_cli_kit::cluster::{self, ARTIFACTS, Listed, PODS, Release, Resource};
use holdfast_core::workload::{condition_is_true, text};
use kube::Client;

use super::diagnose::{Facts, Part, Volume};

const DEPLOYMENTS: Resource = cluster::of("apps", "deployments");
const DAEMON_SETS: Resource = cluster::of("apps", "daemonsets");
/// The port of the parts' metrics.
const ADMIN_PORT: u16 = 9090;

/// Lists the Artifacts of one namespace or of all, with these labels. A selector that the API
/// server cannot parse is [`Usage`](holdfast_cli_kit::exit_status::Usage).
pub(crate) async fn artifacts(
    client: &Client,
    namespace: Option<&str>,
    selector: &str,
) -> anyhow::Result<Vec<Artifact>> {
    match cluster::list_some(client, ARTIFACTS, namespace, selector).await? {
        Listed::Items(items) => Ok(items
            .into_iter()
            .filter_map(|item| serde_json::from_value::<Artifact>(item).ok())
            .collect()),
        Listed::Forbidden => {
            bail!("Artifacts may not be listed; -n limits the question to one namespace")
        }
        Listed::Unknown => {
            bail!("the API server knows no Artifacts: the custom resource definition is missing")
        }
    }
}

/// Asks everything else.
pub(crate) async fn facts(
    client: &Client,
    release: &Release,
    artifacts: Result<Vec<Artifact>, String>,
) -> Facts {
    let names = &release.names;
    let state = release
        .state(client)
        .await
        .map_err(|error| format!("{error:#}"));
    let parts = futures::future::join_all([
        deployment(client, "registry", names, names.registry()),
        deployment(client, "webhook", names, names.webhook()),
        deployment(client, "controller", names, names.controller()),
    ]);
    let (mut parts, agents, volume) =
        tokio::join!(parts, agents(client, names), volume(client, names));
    parts.push(agents);
    Facts {
        release: names.release.clone(),
        namespace: names.namespace.clone(),
        version: release.version.clone(),
        state,
        parts,
        volume,
        artifacts,
    }
}

async fn deployment(client: &Client, part: &'static str, names: &Names, name: String) -> Part {
    let path = format!("{}/{name}", DEPLOYMENTS.path(Some(&names.namespace)));
    counted(
        client,
        part,
        &path,
        "/spec/replicas",
        "/status/readyReplicas",
    )
    .await
}

async fn agents(client: &Client, names: &Names) -> Part {
    let path = format!(
        "{}/{}",
        DAEMON_SETS.path(Some(&names.namespace)),
        names.node_agent()
    );
    counted(
        client,
        "nodes",
        &path,
        "/status/desiredNumberScheduled",
        "/status/numberReady",
    )
    .await
}

async fn counted(
    client: &Client,
    name: &'static str,
    path: &str,
    wanted: &str,
    ready: &str,
) -> Part {
    let number = |object: &serde_json::Value, pointer: &str| {
        object
            .pointer(pointer)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    match cluster::get(client, path).await {
        Ok(Some(object)) => Part {
            name,
            wanted: Some(number(&object, wanted)),
            ready: Some(number(&object, ready)),
            problem: None,
        },
        Ok(None) => Part {
            name,
            wanted: Some(1),
            ready: Some(0),
            problem: Some("it does not exist".to_owned()),
        },
        Err(error) => Part {
            name,
            wanted: None,
            ready: None,
            problem: Some(cluster::error_message(&error)),
        },
    }
}

/// The volume as a registry replica measures it, read from its metrics through the API server.
async fn volume(client: &Client, names: &Names) -> Result<Volume, String> {
    let selector = format!(
        "{}={},{}={}",
        labels::INSTANCE,
        names.release,
        labels::COMPONENT,
        labels::COMPONENT_REGISTRY
    );
    let namespace = Some(names.namespace.as_str());
    let mut pods = match cluster::list_some(client, PODS, namespace, &selector).await {
        Ok(Listed::Items(pods)) => pods,
        Ok(Listed::Forbidden | Listed::Unknown) => {
            return Err(format!("pods in {} may not be listed", names.namespace));
        }
        Err(error) => return Err(format!("{error:#}")),
    };
    // Pods of a lost node still count as running, and asking them takes the API server's time-out.
    pods.sort_by_key(|pod| !condition_is_true(pod, &["Ready"]));
    let mut why = "no registry pod runs".to_owned();
    for pod in pods
        .iter()
        .filter(|pod| text(pod, "/status/phase") == "Running")
    {
        let path = format!(
            "{}/{}:{ADMIN_PORT}/proxy/metrics",
            PODS.path(namespace),
            text(pod, "/metadata/name")
        );
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        match client.request_text(request).await {
            Ok(metrics) => match Volume::of_metrics(&metrics) {
                Some(volume) => return Ok(volume),
                None => "the volume does not answer, or was not measured yet".clone_into(&mut why),
            },
            Err(error) => {
                why = format!("metrics cannot be read: {}", cluster::error_message(&error));
            }
        }
    }
    Err(why)
}
