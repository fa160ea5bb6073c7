//! Writes the objects that the controller owns: only when they differ, and never over a newer write
//! of another client.

use holdfast_api::labels;
use holdfast_api::names::Names;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, PostParams};
use std::collections::BTreeMap;

/// The labels of everything that the controller makes.
pub fn labels(names: &Names) -> BTreeMap<String, String> {
    [
        (labels::MANAGED_BY, labels::MANAGED_BY_CONTROLLER),
        (labels::INSTANCE, names.release.as_str()),
        (labels::NAME, labels::HOLDFAST),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn metadata(names: &Names, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(names.namespace.clone()),
        labels: Some(labels(names)),
        ..ObjectMeta::default()
    }
}

/// Makes the Secret hold exactly `data`; true when something was written. `existing` is what was
/// read before: a write by another client in between is a conflict, an error, and the caller reads
/// it again.
pub async fn secret(
    client: &kube::Client,
    names: &Names,
    name: &str,
    existing: Option<Secret>,
    data: BTreeMap<String, Vec<u8>>,
) -> Result<bool, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &names.namespace);
    let data: BTreeMap<String, ByteString> = data
        .into_iter()
        .map(|(key, value)| (key, ByteString(value)))
        .collect();
    match existing {
        None => {
            let secret = Secret {
                metadata: metadata(names, name),
                data: Some(data),
                type_: Some("Opaque".to_owned()),
                ..Secret::default()
            };
            api.create(&PostParams::default(), &secret).await?;
            Ok(true)
        }
        Some(existing) if existing.data.as_ref() == Some(&data) => Ok(false),
        Some(mut existing) => {
            existing.data = Some(data);
            existing
                .metadata
                .labels
                .get_or_insert_default()
                .append(&mut labels(names));
            existing.metadata.managed_fields = None;
            api.replace(name, &PostParams::default(), &existing).await?;
            Ok(true)
        }
    }
}

/// As [`secret`], for a ConfigMap.
pub async fn config_map(
    client: &kube::Client,
    names: &Names,
    name: &str,
    existing: Option<ConfigMap>,
    data: BTreeMap<String, String>,
) -> Result<bool, kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &names.namespace);
    match existing {
        None => {
            let map = ConfigMap {
                metadata: metadata(names, name),
                data: Some(data),
                ..ConfigMap::default()
            };
            api.create(&PostParams::default(), &map).await?;
            Ok(true)
        }
        Some(existing) if existing.data.as_ref() == Some(&data) => Ok(false),
        Some(mut existing) => {
            existing.data = Some(data);
            existing
                .metadata
                .labels
                .get_or_insert_default()
                .append(&mut labels(names));
            existing.metadata.managed_fields = None;
            api.replace(name, &PostParams::default(), &existing).await?;
            Ok(true)
        }
    }
}

/// The text of one key of a Secret.
pub fn text(secret: Option<&Secret>, key: &str) -> Option<String> {
    String::from_utf8(secret?.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// The first line of one key of a Secret: the one in use where several are accepted
/// (`certificates::auth`).
pub fn first_line(secret: Option<&Secret>, key: &str) -> Option<String> {
    Some(text(secret, key)?.lines().next()?.trim_end().to_owned())
}
