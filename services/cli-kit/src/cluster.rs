//! Access to the cluster: a client by the caller's kubeconfig, the release, the state that the
//! controller publishes, and lists of raw objects. Decides nothing. What the caller may not see is
//! reported as such, never as absent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_api::delivery::Delivery;
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_api::state::{ClusterState, KEY};
use holdfast_cluster_model::NamespaceFacts;
use holdfast_config::{Config, yaml};
use holdfast_core::workload::{WorkloadKind, text};
use kube::Client;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use serde_json::Value;

use crate::duration;
use crate::exit_status::{Unreachable, Usage};

/// Objects a page.
const PAGE_SIZE: u32 = 500;
/// Where a release is searched when the caller may not list all namespaces.
const USUAL_NAMESPACE: &str = "holdfast-system";
/// How long the connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The flags of kubectl that select the API server and the user.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct KubeArgs {
    /// Kubeconfig file [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// Group to impersonate; may be given several times
    #[arg(long, value_name = "GROUP", requires = "as_user")]
    as_group: Vec<String>,
    /// How long the API server may be silent during a request
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    request_timeout: Duration,
}

/// Which cluster, and which release in it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    #[command(flatten)]
    kube: KubeArgs,
    /// Namespace of the release [default: it is searched]
    #[arg(long, value_name = "NAMESPACE", env = "HOLDFAST_RELEASE_NAMESPACE")]
    release_namespace: Option<String>,
}

/// Which namespaces a command is about.
#[derive(Debug, Clone, clap::Args)]
pub struct NamespaceArgs {
    /// One namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// A release of Holdfast.
#[derive(Debug)]
pub struct Release {
    /// The names of its objects.
    pub names: Names,
    /// Its version.
    pub version: String,
    /// Its configuration; text for people where this binary cannot read it.
    pub config: Result<Config, String>,
}

/// What a list gave.
#[derive(Debug)]
pub enum Listed {
    /// The objects.
    Items(Vec<Value>),
    /// The caller may not list it.
    Forbidden,
    /// The API server does not know the kind.
    Unknown,
}

/// A kind of objects as paths name it.
#[derive(Debug, Clone, Copy)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version of the group.
    pub version: &'static str,
    /// The plural of the kind, in lower case.
    pub plural: &'static str,
}

impl From<&WorkloadKind> for Resource {
    fn from(kind: &WorkloadKind) -> Self {
        Self {
            group: kind.group,
            version: kind.version,
            plural: kind.plural,
        }
    }
}

/// The Artifacts.
pub const ARTIFACTS: Resource = Resource {
    group: "holdfast.dev",
    version: "v1alpha1",
    plural: "artifacts",
};
/// The namespaces.
pub const NAMESPACES: Resource = core("namespaces");
/// The nodes.
pub const NODES: Resource = core("nodes");
/// The configurations of mutating webhooks.
pub const WEBHOOKS: Resource = of(
    "admissionregistration.k8s.io",
    "mutatingwebhookconfigurations",
);
/// The pods.
pub const PODS: Resource = core("pods");
/// The Secrets.
pub const SECRETS: Resource = core("secrets");
const CONFIG_MAPS: Resource = core("configmaps");

/// A kind of the core group.
pub const fn core(plural: &'static str) -> Resource {
    of("", plural)
}

/// A kind of a group's version `v1`.
pub const fn of(group: &'static str, plural: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        plural,
    }
}

impl Resource {
    /// The path of the list, in one namespace or in all.
    pub fn path(self, namespace: Option<&str>) -> String {
        let Self {
            group,
            version,
            plural,
        } = self;
        let root = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{plural}"),
        }
    }
}

impl KubeArgs {
    /// A client by the caller's kubeconfig, or by the pod's service account. It never retries a
    /// request by itself: a disruption budget answers an eviction with 429, which is a result.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.build_client(false).await
    }

    /// As [`Self::client`]. It retries requests that the API server refuses for the moment.
    pub async fn retrying_client(&self) -> anyhow::Result<Client> {
        self.build_client(true).await
    }

    async fn build_client(&self, retry: bool) -> anyhow::Result<Client> {
        let mut config = self.config().await?;
        if let Some(user) = &self.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(self.as_group.clone());
        }
        // As for kubectl, zero means no limit.
        let limit = Some(self.request_timeout).filter(|limit| !limit.is_zero());
        config.connect_timeout = Some(limit.map_or(CONNECT_TIMEOUT, |it| CONNECT_TIMEOUT.min(it)));
        config.read_timeout = limit;
        // A connection that was idle between two checks must not count as silent.
        config.reset_reader_on_write = true;
        config.default_retry = retry;
        Ok(Client::try_from(config)?)
    }

    async fn config(&self) -> anyhow::Result<kube::Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let names_nothing =
            options.context.is_none() && options.cluster.is_none() && options.user.is_none();
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?,
            None if names_nothing => {
                return kube::Config::infer().await.context(
                    "no cluster is configured; --kubeconfig or KUBECONFIG names the kubeconfig",
                );
            }
            None => Kubeconfig::read().context("cannot read the kubeconfig")?,
        };
        kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig has no usable context")
    }
}

impl ClusterArgs {
    /// How long the API server may be silent during a request; zero means no limit.
    pub fn request_timeout(&self) -> Duration {
        self.kube.request_timeout
    }

    /// A client by the caller's kubeconfig, or by the pod's service account.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.kube.client().await
    }

    /// The one release in the cluster; none or several are an error that names the fix.
    pub async fn release(&self, client: &Client) -> anyhow::Result<Release> {
        let mut found = self.releases(client).await?;
        match (found.pop(), found.is_empty()) {
            (Some(release), true) => Ok(release),
            (None, _) => bail!(
                "no release of Holdfast was found{}; --release-namespace names its namespace",
                match &self.release_namespace {
                    Some(namespace) => format!(" in namespace {namespace}"),
                    None => String::new(),
                }
            ),
            (Some(one), false) => {
                found.push(one);
                let namespaces: Vec<_> = found
                    .iter()
                    .map(|release| release.names.namespace.as_str())
                    .collect();
                Err(Usage(format!(
                    "there are several releases of Holdfast, in namespaces {}; \
                     choose with --release-namespace",
                    namespaces.join(", ")
                ))
                .into())
            }
        }
    }

    /// Every release that the caller sees.
    pub async fn releases(&self, client: &Client) -> anyhow::Result<Vec<Release>> {
        let selector = format!(
            "{}={},{}=config",
            labels::NAME,
            labels::HOLDFAST,
            labels::COMPONENT
        );
        let namespace = self.release_namespace.as_deref();
        let mut listed = list_some(client, CONFIG_MAPS, namespace, &selector).await?;
        if matches!(listed, Listed::Forbidden) && namespace.is_none() {
            listed = list_some(client, CONFIG_MAPS, Some(USUAL_NAMESPACE), &selector).await?;
        }
        match listed {
            Listed::Items(maps) => Ok(maps.iter().filter_map(release_of).collect()),
            Listed::Forbidden | Listed::Unknown => bail!(
                "ConfigMaps may not be listed, so the release cannot be found; --release-namespace names a namespace that may be read"
            ),
        }
    }
}

/// The release that a ConfigMap of the chart describes.
fn release_of(map: &Value) -> Option<Release> {
    let text = map.pointer("/data")?.get("config.yaml")?.as_str()?;
    let document: Value = yaml::from_str(text).ok()?;
    let field = |key: &str| {
        document
            .pointer(&format!("/release/{key}"))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    Some(Release {
        names: Names {
            release: field("name")?,
            fullname: field("fullname")?,
            namespace: field("namespace")?,
        },
        version: field("version").unwrap_or_default(),
        config: Config::parse(text).map_err(|error| {
            format!("the release's configuration is one that this version of holdfast cannot read: {error}")
        }),
    })
}

impl Release {
    /// What the controller says of the cluster; `None` before it has said anything.
    pub async fn state(&self, client: &Client) -> anyhow::Result<Option<ClusterState>> {
        let name = self.names.state();
        let path = format!("{}/{name}", CONFIG_MAPS.path(Some(&self.names.namespace)));
        let Some(map) = get(client, &path)
            .await
            .with_context(|| format!("ConfigMap {name}"))?
        else {
            return Ok(None);
        };
        let text = map.pointer("/data").and_then(|data| data.get(KEY));
        let text = text.and_then(Value::as_str).unwrap_or_default();
        let state = serde_json::from_str(text)
            .with_context(|| format!("ConfigMap {name} holds no state under {KEY}"))?;
        Ok(Some(state))
    }
}

/// Every address by which the registry is known; none before the controller has said one.
pub fn addresses(state: Option<&ClusterState>) -> Vec<String> {
    state.map_or_else(Vec::new, |state| {
        let current = Some(state.registry_address.clone()).filter(|address| !address.is_empty());
        current
            .into_iter()
            .chain(state.aliases.iter().cloned())
            .collect()
    })
}

/// What the controller says of nodes and upstreams; `None` before it said it, and where the caller
/// may not read it.
pub async fn delivery(client: &Client, names: &Names) -> anyhow::Result<Option<Delivery>> {
    let path = CONFIG_MAPS.path(Some(&names.namespace));
    match get(client, &format!("{path}/{}", names.delivery())).await {
        Ok(Some(map)) => Ok(Some(Delivery::of(&serde_json::from_value(map)?))),
        Ok(None) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A namespace's name, and what decides of it.
pub fn namespace_facts(namespace: &Value) -> (String, NamespaceFacts) {
    let labels = namespace
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let facts = NamespaceFacts {
        labels: labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        terminating: namespace
            .pointer("/metadata/deletionTimestamp")
            .is_some_and(|time| !time.is_null()),
    };
    (text(namespace, "/metadata/name").to_owned(), facts)
}

/// One object, raw; nothing where there is none.
pub async fn get(client: &Client, path: &str) -> kube::Result<Option<Value>> {
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    match client.request::<Value>(request).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// All objects of a kind, in one namespace or in all, page by page.
pub async fn list(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
) -> anyhow::Result<Listed> {
    list_some(client, resource, namespace, "").await
}

/// As [`list`], of those that a label selector selects.
pub async fn list_some(
    client: &Client,
    resource: Resource,
    namespace: Option<&str>,
    selector: &str,
) -> anyhow::Result<Listed> {
    let path = resource.path(namespace);
    let mut items = Vec::new();
    let mut params = ListParams::default().limit(PAGE_SIZE);
    if !selector.is_empty() {
        params = params.labels(selector);
    }
    loop {
        let request = Request::new(&path).list(&params)?;
        let mut page = match client.request::<Value>(request).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Listed::Forbidden),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Listed::Unknown),
            // The list took longer than the API server keeps its beginning: once more, in one
            // piece.
            Err(kube::Error::Api(status))
                if status.code == 410 && params.continue_token.is_some() =>
            {
                items = Vec::new();
                (params.limit, params.continue_token) = (None, None);
                continue;
            }
            Err(kube::Error::Api(status)) if status.code == 400 && !selector.is_empty() => {
                let message = &status.message;
                return Err(Usage(format!("wrong label selector {selector:?}: {message}")).into());
            }
            Err(error @ kube::Error::Service(_)) => return Err(Unreachable(error).into()),
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be listed", resource.plural));
            }
        };
        if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
            items.extend(found);
        }
        match page.pointer("/metadata/continue").and_then(Value::as_str) {
            Some(token) if !token.is_empty() => params.continue_token = Some(token.to_owned()),
            _ => return Ok(Listed::Items(items)),
        }
    }
}

/// An API server's refusal in its own words, any other error in ours.
pub fn error_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answered {}", status.code),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_lie_where_the_api_server_keeps_them() {
        assert_eq!(PODS.path(None), "/api/v1/pods");
        assert_eq!(PODS.path(Some("a")), "/api/v1/namespaces/a/pods");
        assert_eq!(
            ARTIFACTS.path(Some("a")),
            "/apis/holdfast.dev/v1alpha1/namespaces/a/artifacts"
        );
    }

    #[test]
    fn a_release_of_another_version_is_still_found() {
        let map = |values: &str| {
            let text = format!(
                "release: {{name: edge, namespace: sys, fullname: edge-holdfast, version: 9.9.9}}\nvalues: {values}"
            );
            json!({"data": {"config.yaml": text}})
        };
        let release = release_of(&map("{}")).unwrap();
        assert_eq!(release.names.state(), "edge-holdfast-state");
        assert!(release.config.is_ok());
        let newer = release_of(&map("{keyOfNextYear: 1}")).unwrap();
        assert_eq!(newer.version, "9.9.9");
        assert!(newer.config.unwrap_err().contains("cannot read"));
        assert!(release_of(&json!({"data": {"config.yaml": "release: 1"}})).is_none());
    }

    #[test]
    fn no_address_is_known_before_the_controller_says_one() {
        assert!(addresses(None).is_empty());
        let state = ClusterState {
            aliases: vec!["10.96.0.9".to_owned()],
            ..ClusterState::default()
        };
        assert_eq!(addresses(Some(&state)), ["10.96.0.9"]);
    }
}
