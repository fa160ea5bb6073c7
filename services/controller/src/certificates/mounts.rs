//! Makes kubelets renew mounted Secrets at once.
//!
//! A kubelet updates a mounted Secret at its next sync of the pod, a minute or more later; until
//! then the registry would serve a certificate without its new address. A change of the pod itself
//! leads to a sync at once, so the pods that mount the Secret get an annotation. They get it twice,
//! a few seconds apart, because the kubelet may receive the pod's change before the Secret's.

use super::Error;
use crate::Context;
use holdfast_api::labels;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How often the pods of a part are told of one change.
const MAX_NOTIFICATIONS: u8 = 2;

/// Parts whose mounted Secrets changed, and how often their pods are still to be told.
#[derive(Debug, Default)]
pub struct Changed(Mutex<BTreeMap<&'static str, u8>>);

impl Changed {
    /// A Secret that the pods of this part mount was written.
    pub(super) fn note(&self, component: &'static str) {
        self.lock().insert(component, MAX_NOTIFICATIONS);
    }

    /// Whether pods are still to be told.
    pub(super) fn any(&self) -> bool {
        !self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the pods of all parts whose Secrets changed, once. What fails is tried again in the next
/// round.
pub(super) async fn tell(context: &Context) -> Result<(), Error> {
    let changed: Vec<&'static str> = context.issued.mounts.lock().keys().copied().collect();
    for component in changed {
        annotate(context, component).await?;
        let mut left = context.issued.mounts.lock();
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
    let params = PatchParams {
        field_manager: Some(crate::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
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
