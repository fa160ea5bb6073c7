//! Reads of the API server that may fail by themselves. The result then says why.

use holdfast_cli_kit::cluster::{self, Listed, Resource};
use kube::Client;
use serde_json::Value;

/// What was read, or why it could not be read.
pub(super) type Fetched<T> = Result<T, String>;

/// One object; nothing where there is none.
pub(super) async fn object(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
    name: &str,
) -> Fetched<Option<Value>> {
    let path = format!("{}/{name}", resource.path(namespace));
    cluster::get(client, &path)
        .await
        .map_err(|error| cluster::error_message(&error))
}

/// All objects of a kind, or why they are not known.
pub(super) async fn listed(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
    selector: &str,
) -> Fetched<Vec<Value>> {
    match cluster::list_some(client, resource, namespace, selector).await {
        Ok(Listed::Items(items)) => Ok(items),
        Ok(Listed::Forbidden | Listed::Unknown) => {
            Err(format!("{} may not be listed", resource.plural))
        }
        Err(error) => Err(format!("{error:#}")),
    }
}
