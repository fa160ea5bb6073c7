//! What the uninstaller does to the cluster, one method a step. An object that does not exist
//! counts as deleted.

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_api::Artifact;
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_api::state::{ClusterState, KEY};
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cli_kit::terminal;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt as _};
use serde_json::json;

use super::nodes::{self, Survey};
use super::report::Report;
use crate::restore;

/// Objects a page.
const PAGE_SIZE: u32 = 500;
/// Deletions at a time.
const PARALLEL: usize = 8;

/// The cluster and the names of the release in it.
pub(crate) struct Cluster {
    client: Client,
    /// Does not retry what the API server refuses for the moment.
    evicting: Client,
    names: Names,
}

/// Whether the pod is bound to one of these nodes.
fn is_on(pod: &Pod, nodes: &[String]) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    node.is_some_and(|node| nodes.contains(node))
}

/// An object that does not exist is a success.
fn ignore_not_found<T>(result: kube::Result<T>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Cluster {
    pub(crate) fn new(client: Client, names: Names) -> Self {
        Self {
            evicting: client.clone(),
            client,
            names,
        }
    }

    /// Restores pods by another client.
    pub(crate) fn evicting_by(self, evicting: Client) -> Self {
        Self { evicting, ..self }
    }

    fn own<K: Resource<Scope = NamespaceResourceScope>>(&self) -> Api<K>
    where
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    fn of_component(&self, component: &str) -> ListParams {
        let selector = format!(
            "{}={},{}={component}",
            labels::INSTANCE,
            self.names.release,
            labels::COMPONENT
        );
        ListParams::default().labels(&selector)
    }

    /// Writes an event about the release's namespace with the report.
    pub(crate) async fn record(&self, report: &Report) -> anyhow::Result<()> {
        let reporter = Reporter {
            controller: "holdfast-uninstall".to_owned(),
            instance: None,
        };
        let event = Event {
            type_: if report.is_clean() {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: "Uninstalled".to_owned(),
            note: Some(report.summary()),
            action: "Uninstall".to_owned(),
            secondary: None,
        };
        let namespace = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            name: Some(self.names.namespace.clone()),
            namespace: Some(self.names.namespace.clone()),
            ..ObjectReference::default()
        };
        let events = Recorder::new(self.client.clone(), reporter);
        Ok(events.publish(&event, &namespace).await?)
    }

    pub(crate) async fn delete_webhook(&self) -> anyhow::Result<()> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        ignore_not_found(
            api.delete(&self.names.webhook(), &DeleteParams::default())
                .await,
        )?;
        Ok(())
    }

    pub(crate) async fn scale_controller_to_zero(&self) -> anyhow::Result<()> {
        self.scale_to_zero(&self.names.controller()).await
    }

    /// An autoscaler leaves a Deployment of zero replicas alone.
    pub(crate) async fn scale_registry_to_zero(&self) -> anyhow::Result<()> {
        self.scale_to_zero(&self.names.registry()).await
    }

    async fn scale_to_zero(&self, deployment: &str) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
        let api = self.own::<Deployment>();
        ignore_not_found(
            api.patch_scale(deployment, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(())
    }

    /// Deletes the registry's pods on nodes that are not Ready without waiting for their kubelets.
    /// Returns how many.
    pub(crate) async fn delete_registry_pods_on_lost_nodes(&self) -> anyhow::Result<usize> {
        let api = self.own::<Pod>();
        let pods = api
            .list(&self.of_component(labels::COMPONENT_REGISTRY))
            .await?;
        let lost = self.lost_nodes().await?;
        let mut count = 0;
        for pod in pods.iter().filter(|pod| is_on(pod, &lost)) {
            let at_once = DeleteParams::default().grace_period(0);
            ignore_not_found(api.delete(&pod.name_any(), &at_once).await)?;
            count += 1;
        }
        Ok(count)
    }

    /// The nodes that are not Ready: their kubelets do not report.
    async fn lost_nodes(&self) -> anyhow::Result<Vec<String>> {
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await?;
        Ok(nodes
            .iter()
            .filter(|node| !nodes::is_ready(node))
            .map(kube::ResourceExt::name_any)
            .collect())
    }

    /// Removes the startup taint from all nodes, because the controller no longer does. Returns how
    /// many had it.
    pub(crate) async fn remove_startup_taints(&self) -> anyhow::Result<usize> {
        let api = Api::<Node>::all(self.client.clone());
        let mut count = 0;
        for node in api.list(&ListParams::default()).await? {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            let Some(kept) = nodes::without_startup_taint(taints) else {
                continue;
            };
            let change = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": kept},
            });
            ignore_not_found(
                api.patch(
                    &node.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(change),
                )
                .await,
            )
            .with_context(|| {
                format!(
                    "node {}, by hand: kubectl taint nodes --all {}-",
                    node.name_any(),
                    labels::NOT_READY_TAINT
                )
            })?;
            count += 1;
        }
        Ok(count)
    }

    /// Controller pods that can still act: those on nodes that are not Ready cannot be waited for.
    pub(crate) async fn controller_pods(&self) -> anyhow::Result<Vec<String>> {
        let pods = self
            .own::<Pod>()
            .list(&self.of_component(labels::COMPONENT_CONTROLLER))
            .await?;
        if pods.items.is_empty() {
            return Ok(Vec::new());
        }
        let lost = self.lost_nodes().await?;
        Ok(pods
            .iter()
            .filter(|pod| !is_on(pod, &lost))
            .map(kube::ResourceExt::name_any)
            .collect())
    }

    /// Asks the node agents to restore their hosts: writes `desired: removed` into the nodes'
    /// Secret. False when there is no such Secret: then no node was ever prepared.
    pub(crate) async fn request_node_cleanup(&self) -> anyhow::Result<bool> {
        let api = self.own::<Secret>();
        let Some(secret) = api.get_opt(&self.names.node()).await? else {
            return Ok(false);
        };
        let bytes = secret.data.as_ref().and_then(|data| data.get(KEY));
        let mut state: serde_json::Value = match bytes {
            Some(bytes) => serde_json::from_slice(&bytes.0).unwrap_or_else(|_| json!({})),
            None => json!({}),
        };
        if !state.is_object() {
            state = json!({});
        }
        state["desired"] = json!("removed");
        let patch = json!({"stringData": {KEY: state.to_string()}});
        api.patch(
            &self.names.node(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
        Ok(true)
    }

    /// Which originals nodes pull again if pods are restored, and why they should not be restored.
    pub(crate) async fn pulls(
        &self,
        leader: &LeaderArgs,
    ) -> anyhow::Result<(Vec<String>, Option<String>)> {
        let pods = self.rewritten().await?;
        let known = restore::known(&self.client, leader, Some(&self.names), &pods).await?;
        let pulls = restore::pulls(&pods, &known);
        Ok((restore::lines(&pulls, &known), restore::objection(&pulls)))
    }

    /// Restores the original images of pods of all namespaces. The pods of Holdfast have none.
    pub(crate) async fn restore_pods(
        &self,
        pacing: restore::Pacing,
    ) -> anyhow::Result<restore::Outcome> {
        let pods = self.rewritten().await?;
        Ok(
            restore::execute(&self.evicting, pods, pacing, |line, waiting| {
                terminal::progress(&format!("{line} ({waiting} wait)"));
            })
            .await,
        )
    }

    /// The pods with rewritten references.
    async fn rewritten(&self) -> anyhow::Result<Vec<restore::RewrittenPod>> {
        let state = self
            .own::<ConfigMap>()
            .get_opt(&self.names.state())
            .await?
            .and_then(|map| map.data?.remove(KEY));
        let state: Option<ClusterState> = state.and_then(|text| serde_json::from_str(&text).ok());
        let addresses = holdfast_cli_kit::cluster::addresses(state.as_ref());
        let mut pods = restore::find(&self.client, None, &addresses, false).await?;
        restore::ask_owners(&self.client, &mut pods, &addresses).await?;
        Ok(pods)
    }

    pub(crate) async fn survey(&self) -> anyhow::Result<Survey> {
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await?;
        let agents = self
            .own::<Pod>()
            .list(&self.of_component(labels::COMPONENT_NODE_AGENT))
            .await?;
        Ok(nodes::survey(&nodes.items, &agents.items))
    }

    pub(crate) async fn rewritten_pods(&self) -> anyhow::Result<Vec<String>> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE_SIZE);
        loop {
            let pods = api.list_metadata(&page).await?;
            for pod in &pods.items {
                if pod.annotations().contains_key(labels::ORIGINAL_IMAGES) {
                    found.push(format!(
                        "{}/{}",
                        pod.namespace().unwrap_or_default(),
                        pod.name_any()
                    ));
                }
            }
            match pods.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// `Secret`s and `ConfigMap`s that carry the controller's labels, in the release's namespace
    /// only.
    pub(crate) async fn delete_made_objects(&self) -> anyhow::Result<usize> {
        let selector = format!(
            "{}={},{}={}",
            labels::MANAGED_BY,
            labels::MANAGED_BY_CONTROLLER,
            labels::INSTANCE,
            self.names.release
        );
        let params = ListParams::default().labels(&selector);
        let secrets = self.own::<Secret>();
        let mut count = 0;
        for secret in secrets
            .list_metadata(&params)
            .await
            .context("Secrets")?
            .items
        {
            ignore_not_found(
                secrets
                    .delete(&secret.name_any(), &DeleteParams::default())
                    .await,
            )?;
            count += 1;
        }
        let maps = self.own::<ConfigMap>();
        for map in maps
            .list_metadata(&params)
            .await
            .context("ConfigMaps")?
            .items
        {
            ignore_not_found(maps.delete(&map.name_any(), &DeleteParams::default()).await)?;
            count += 1;
        }
        Ok(count)
    }

    pub(crate) async fn delete_lease(&self) -> anyhow::Result<()> {
        ignore_not_found(
            self.own::<Lease>()
                .delete(&self.names.controller(), &DeleteParams::default())
                .await,
        )?;
        Ok(())
    }

    /// All Artifacts of all namespaces, page by page.
    pub(crate) async fn delete_artifacts(&self) -> anyhow::Result<usize> {
        let all: Api<Artifact> = Api::all(self.client.clone());
        let mut count = 0;
        let mut page = ListParams::default().limit(PAGE_SIZE);
        loop {
            // Without the CRD there are no Artifacts.
            let Some(artifacts) = ignore_not_found(all.list_metadata(&page).await)? else {
                return Ok(count);
            };
            count += artifacts.items.len();
            stream::iter(artifacts.items)
                .map(|artifact| async move {
                    let namespace = artifact.namespace().unwrap_or_default();
                    let api: Api<Artifact> = Api::namespaced(self.client.clone(), &namespace);
                    let name = artifact.name_any();
                    if !artifact.finalizers().is_empty() {
                        // The controller, which would remove it, is gone.
                        let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                        ignore_not_found(
                            api.patch_metadata(&name, &PatchParams::default(), &patch)
                                .await,
                        )?;
                    }
                    ignore_not_found(api.delete(&name, &DeleteParams::default()).await).map(|_| ())
                })
                .buffer_unordered(PARALLEL)
                .try_collect::<()>()
                .await?;
            match artifacts
                .metadata
                .continue_
                .filter(|token| !token.is_empty())
            {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(count),
            }
        }
    }
}
