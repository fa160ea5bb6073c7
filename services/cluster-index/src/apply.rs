//! Writes the objects that the controller owns, if they differ, and never over a newer write of
//! another client.

use holdfast_api::labels;
use holdfast_api::names::Names;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use kube::api::{Api, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// The name under which the controller's server-side applies are recorded.
pub const FIELD_MANAGER: &str = "holdfast-controller";

/// The labels of the controller's objects.
pub fn labels(names: &Names) -> BTreeMap<String, String> {
    [
        (labels::MANAGED_BY, labels::MANAGED_BY_CONTROLLER),
        (labels::INSTANCE, names.release.as_str()),
        (labels::NAME, labels::HOLDFAST),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Parameters of a patch that is recorded as the controller's.
pub fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Makes the Secret hold exactly `data`. True if something was written. `existing` was read before:
/// a write of another client in between is a conflict, after which the caller reads it again.
pub async fn secret(
    client: &kube::Client,
    names: &Names,
    name: &str,
    existing: Option<Secret>,
    data: BTreeMap<String, Vec<u8>>,
) -> Result<bool, kube::Error> {
    let data: BTreeMap<String, ByteString> = data
        .into_iter()
        .map(|(key, value)| (key, ByteString(value)))
        .collect();
    let exists = existing.is_some();
    let mut secret = existing.unwrap_or_else(|| Secret {
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    });
    if exists && secret.data.as_ref() == Some(&data) {
        return Ok(false);
    }
    secret.data = Some(data);
    write(client, names, name, exists, secret).await?;
    Ok(true)
}

/// As [`secret`], for a ConfigMap with texts and bytes.
pub async fn config_map(
    client: &kube::Client,
    names: &Names,
    name: &str,
    existing: Option<ConfigMap>,
    (data, binary_data): (BTreeMap<String, String>, BTreeMap<String, ByteString>),
) -> Result<bool, kube::Error> {
    let exists = existing.is_some();
    let mut map = existing.unwrap_or_default();
    let bytes = map.binary_data.clone().unwrap_or_default();
    if exists && map.data.as_ref() == Some(&data) && bytes == binary_data {
        return Ok(false);
    }
    map.data = Some(data);
    map.binary_data = (!binary_data.is_empty()).then_some(binary_data);
    write(client, names, name, exists, map).await?;
    Ok(true)
}

/// Creates or replaces an object of the release, with the labels of everything that the controller
/// makes.
pub async fn write<K>(
    client: &kube::Client,
    names: &Names,
    name: &str,
    exists: bool,
    mut object: K,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &names.namespace);
    let metadata = object.meta_mut();
    metadata.name = Some(name.to_owned());
    metadata.namespace = Some(names.namespace.clone());
    let all = metadata.labels.get_or_insert_default();
    all.append(&mut labels(names));
    metadata.managed_fields = None;
    if exists {
        api.replace(name, &PostParams::default(), &object).await?;
    } else {
        api.create(&PostParams::default(), &object).await?;
    }
    Ok(())
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
