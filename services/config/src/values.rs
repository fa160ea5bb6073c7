//! The top of the values and the keys that no part owns.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ControllerPart, Global, LegacyExtension, Microsoft, NetworkPolicyValues, NodeAgentPart, Proxy,
    RegistryPart, StorageSize, Uplink, Upstream, WebhookPart,
};

/// Values of the Holdfast chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Values {
    /// Install Holdfast. `false` installs nothing, for charts that depend on this one.
    pub enabled: bool,
    /// Values that Helm shares with every chart of a release.
    pub global: Global,
    /// Older spellings, still honoured.
    pub network_function_extension: LegacyExtension,
    /// What the Arc extension manager passes to every extension.
    #[serde(rename = "Microsoft")]
    pub microsoft: Microsoft,
    /// Replaces `holdfast` in the names of objects.
    #[schemars(
        length(max = 40),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name_override: String,
    /// Replaces the whole prefix of the names of objects.
    #[schemars(
        length(max = 40),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub fullname_override: String,
    /// The image of all parts.
    pub image: Image,
    /// Upstream hosts whose images are rewritten and copied: `registry.example`,
    /// `registry.example:5000` or `*.example`. Empty: every upstream.
    #[schemars(inner(regex(
        pattern = r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"
    )))]
    pub sources: Vec<String>,
    /// Use only the hosts that `upstreams` lists: images of other hosts are neither rewritten nor
    /// copied. If `sources` is set as well, a host must be in both.
    pub only_listed_upstreams: bool,
    /// Registries that need more than their name: another endpoint, mirrors, a CA, credentials.
    /// Images of these may be filled without an Artifact.
    pub upstreams: Vec<Upstream>,
    /// Which pods may pull which images from the registry.
    pub access: ImageAccess,
    /// Proxy for sites without a direct uplink.
    pub proxy: Proxy,
    /// Limits on the use of the uplink.
    pub uplink: Uplink,
    /// Logs of all parts.
    pub logging: Logging,
    /// Metrics of all parts, on port 9090 under `/metrics`.
    pub metrics: Metrics,
    /// Which peers may connect to Holdfast's pods, where the network plug-in enforces
    /// NetworkPolicies.
    pub network_policy: NetworkPolicyValues,
    /// Nodes for Holdfast's own pods.
    pub system_nodes: SystemNodes,
    /// The registry: stores and serves images.
    pub registry: RegistryPart,
    /// The webhook: rewrites the images of new pods to the registry.
    pub webhook: WebhookPart,
    /// The controller: copies images, keeps certificates and the shared state.
    pub controller: ControllerPart,
    /// The node agent: prepares the container runtime of each node.
    pub node_agent: NodeAgentPart,
    /// Images that the registry always holds, even if no pod uses them.
    pub preload: Preload,
    /// The custom resource definitions.
    pub crds: Crds,
    /// Steps before the release is removed.
    pub uninstall: Uninstall,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            enabled: true,
            global: Global::default(),
            network_function_extension: LegacyExtension::default(),
            microsoft: Microsoft::default(),
            name_override: String::new(),
            fullname_override: String::new(),
            image: Image::default(),
            sources: Vec::new(),
            only_listed_upstreams: false,
            upstreams: Vec::new(),
            access: ImageAccess::default(),
            proxy: Proxy::default(),
            uplink: Uplink::default(),
            logging: Logging::default(),
            metrics: Metrics::default(),
            network_policy: NetworkPolicyValues::default(),
            system_nodes: SystemNodes::default(),
            registry: RegistryPart::default(),
            webhook: WebhookPart::default(),
            controller: ControllerPart::default(),
            node_agent: NodeAgentPart::default(),
            preload: Preload::default(),
            crds: Crds::default(),
            uninstall: Uninstall::default(),
        }
    }
}

impl Values {
    /// Whether the registry, the webhook and all the rest are wanted; the older spelling counts
    /// (SPEC 1).
    pub fn cluster_registry_enabled(&self) -> bool {
        let extension = &self.global.networkfunctionextension;
        extension.enable_cluster_registry || self.network_function_extension.enable.unwrap_or(false)
    }

    /// Whether the registry runs as several replicas on shared storage (SPEC 24).
    pub fn ha(&self) -> bool {
        self.global
            .networkfunctionextension
            .cluster_registry
            .high_availability
            .enabled
    }

    /// Whether the webhook runs as several replicas.
    pub fn webhook_ha(&self) -> bool {
        self.global
            .networkfunctionextension
            .webhook
            .high_availability
            .enabled
    }

    /// The size of the volume; the older spelling counts where the newer key has its default.
    pub fn storage_size(&self) -> StorageSize {
        let legacy = self.network_function_extension.size_gibibytes;
        legacy.map_or(
            self.global
                .networkfunctionextension
                .cluster_registry
                .storage_size,
            |size| StorageSize::gibibytes(u64::from(size)),
        )
    }

    /// Requests and limits of the registry: its own `resources` where given, else the scale's (SPEC
    /// 30).
    pub fn registry_resources(&self) -> ResourceRequirements {
        let own = &self.registry.resources;
        if *own == ResourceRequirements::default() {
            return self
                .global
                .networkfunctionextension
                .cluster_registry
                .registry_service
                .scale
                .resources();
        }
        own.clone()
    }

    /// The CEL expression that selects the pods to change (SPEC 9, SPEC 10).
    pub fn match_condition(&self) -> &str {
        &self
            .global
            .networkfunctionextension
            .webhook
            .pod
            .mutation
            .match_condition_expression
    }
}

/// Which pods may pull which images from the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ImageAccess {
    /// Images whose upstream requires a credential. `node`: every pod pulls them from the registry.
    /// `namespace`: only pods of a namespace with a credential that the upstream accepts for the
    /// image; other pods keep the upstream's reference. Public images, and images that a credential
    /// of `upstreams` opens, are available to all pods in both cases.
    pub private_images: PrivateImages,
}

impl ImageAccess {
    /// Whether it depends on a pod's namespace which images it is given.
    pub fn is_by_namespace(self) -> bool {
        self.private_images == PrivateImages::Namespace
    }
}

/// Whose pods may have private images from the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the field that has this type says it")]
pub enum PrivateImages {
    #[default]
    Node,
    Namespace,
}

/// The image of all parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Image {
    /// Repository with its host.
    #[schemars(length(min = 1))]
    pub repository: String,
    /// Tag; empty: the version of the chart.
    #[schemars(regex(pattern = r"^$|^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"))]
    pub tag: String,
    /// Digest; if set, it takes precedence over the tag.
    #[schemars(regex(pattern = r"^$|^sha256:[0-9a-f]{64}$"))]
    pub digest: String,
    /// When nodes pull the image.
    pub pull_policy: PullPolicy,
    /// Names of Secrets in the release's namespace with credentials for the image.
    pub pull_secrets: Vec<String>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            repository: "ghcr.io/holdfast/holdfast".to_owned(),
            tag: String::new(),
            digest: String::new(),
            pull_policy: PullPolicy::IfNotPresent,
            pull_secrets: Vec::new(),
        }
    }
}

/// When nodes pull an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum PullPolicy {
    IfNotPresent,
    Always,
    Never,
}

/// What the API server does when the webhook cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum FailurePolicy {
    Ignore,
    Fail,
}

/// Logs of all parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: LogLevel,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: LogLevel::Info,
        }
    }
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogFormat {
    Json,
    Text,
}

/// The least severe level that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as log filters spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Metrics of all parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Metrics {
    /// Give the pods `prometheus.io/*` annotations.
    pub scrape_annotations: bool,
    /// A `PodMonitor` for the Prometheus operator.
    pub pod_monitor: PodMonitor,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            scrape_annotations: true,
            pod_monitor: PodMonitor::default(),
        }
    }
}

/// A `PodMonitor` for the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PodMonitor {
    /// Create it; its custom resource definition must exist.
    pub enabled: bool,
    /// Labels by which the operator finds it.
    pub labels: BTreeMap<String, String>,
}

/// Nodes for Holdfast's own pods; the node agent runs on all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SystemNodes {
    /// Labels of system nodes.
    pub selector: BTreeMap<String, String>,
    /// Run on system nodes only; else they are preferred.
    pub required: bool,
    /// Taints of system nodes that are tolerated.
    pub tolerations: Vec<Toleration>,
}

impl Default for SystemNodes {
    fn default() -> Self {
        let exists = |key: &str, effect: Option<&str>| Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: effect.map(str::to_owned),
            ..Toleration::default()
        };
        Self {
            selector: BTreeMap::from([(
                "kubernetes.azure.com/mode".to_owned(),
                "system".to_owned(),
            )]),
            required: false,
            tolerations: vec![
                exists("CriticalAddonsOnly", None),
                exists("node-role.kubernetes.io/control-plane", Some("NoSchedule")),
            ],
        }
    }
}

/// The custom resource definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Crds {
    /// Install them with the release.
    pub install: bool,
    /// Keep them when the release is uninstalled. Their Artifacts are deleted in any case.
    pub keep: bool,
}

impl Default for Crds {
    fn default() -> Self {
        Self {
            install: true,
            keep: true,
        }
    }
}

/// Images that the registry always holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Preload {
    /// References as a pod would name them. Each gets an Artifact in the release's namespace.
    /// Private ones need credentials in `upstreams`: pull secrets are only taken from pods and
    /// owners that use the image.
    #[schemars(inner(
        length(max = 512),
        regex(
            pattern = r"^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?/)?[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?$"
        )
    ))]
    pub images: Vec<String>,
}

/// Steps before the release is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Uninstall {
    /// Seconds to wait until nodes are restored to their original configuration. Nodes that are not
    /// ready are skipped.
    #[schemars(range(min = 10, max = 1800))]
    pub timeout_seconds: u32,
    /// Restore the original images of running pods before the registry is removed: pods with an
    /// owner are evicted one at a time and recreated, pods without an owner are patched. Needs the
    /// uplink; without it pods keep their current references.
    pub restore: bool,
    /// Seconds that `restore` may take; pods that are not restored by then are reported. Helm needs
    /// a longer `--timeout`.
    #[schemars(range(min = 30, max = 7200))]
    pub restore_timeout_seconds: u32,
}

impl Default for Uninstall {
    fn default() -> Self {
        Self {
            timeout_seconds: 120,
            restore: false,
            restore_timeout_seconds: 600,
        }
    }
}
