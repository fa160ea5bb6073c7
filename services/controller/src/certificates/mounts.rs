//! Makes kubelets update mounted Secrets at once.
//!
//! A kubelet updates a mounted Secret at its next sync of the pod, a minute or more later; until
//! then the registry would serve a certificate without its new address. A change of the pod itself
//! leads to a sync at once, so the pods that mount the Secret get an annotation. They get it twice,
//! a few seconds apart, because the kubelet may receive the pod's change before the Secret's.

use super::Error;
use crate::Context;
use holdfast_api::labels;
use holdfast_cluster_index::apply::patch_params;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;

/// Notifications of the pods of a part about one change.
const MAX_NOTIFICATIONS: u8 = 2;

/// Parts whose mounted Secrets changed, with the number of notifications that are left.
#[derive(Debug, Default)]
pub struct Changed(Mutex<BTreeMap<&'static str, u8>>);

impl Changed {
    /// Records that a Secret that the pods of this part mount was written.
    pub(super) fn note(&self, component: &'static str) {
        self.0.lock().insert(component, MAX_NOTIFICATIONS);
    }

    /// Whether notifications are left.
    pub(super) fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

/// Notifies the pods of all parts whose Secrets changed. The next round retries failures.
pub(super) async fn notify(context: &Context) -> Result<(), Error> {
    let changed: Vec<&'static str> = context.issued.mounts.0.lock().keys().copied().collect();
    for component in changed {
        annotate(context, component).await?;
        let mut left = context.issued.mounts.0.lock();
        let times = left.entry(component).or_default();
        *times = times.saturating_sub(1);
        if *times == 0 {
            left.remove(component);
        }
    }
    Ok(())
}

async fn annotate(context: &Context, component: &str) -> Result<(), kube::Error> {
    let names = &context.names;
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &names.namespace);
    let selector = format!(
        "{}={},{}={component}",
        labels::INSTANCE,
        names.release,
        labels::COMPONENT
    );
    let now = jiff::Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {labels::SECRETS_CHANGED: now}}});
    let params = patch_params();
    let pods = ListParams::default().labels(&selector);
    for pod in api.list_metadata(&pods).await? {
        let name = pod.name_any();
        match api
            .patch_metadata(&name, &params, &Patch::Merge(&patch))
            .await
        {
            Ok(_) => tracing::debug!(
                pod.name = name,
                "asked the kubelet to refresh the pod's mounted Secrets"
            ),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
