//! The keys of the Network Function Operator's cluster registry, word for word, and
//! their older spellings.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Cron, StorageSize};

/// The match condition of the webhook when none is given: everything but kube-system,
/// and there only what carries one of three labels.
pub const DEFAULT_MATCH_CONDITION: &str = r#"((object.metadata.namespace != "kube-system") || (object.metadata.namespace == "kube-system" && has(object.metadata.labels) && (has(object.metadata.labels.app) && (object.metadata.labels.app == "commissioning") || (has(object.metadata.labels.name) && object.metadata.labels.name == "cert-exporter") || (has(object.metadata.labels.app) && object.metadata.labels.app == "descheduler"))))"#;

/// Values that Helm shares with every chart of a release; all but one key belong to others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Global {
    /// The cluster registry, with the keys of the Network Function Operator extension.
    pub networkfunctionextension: Extension,
    /// Keys of other charts. A misspelt neighbour of a key above is refused.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// The cluster registry, with the keys of the Network Function Operator extension.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Extension {
    /// Install the registry and let pods use it. While this is off, only the custom resource
    /// definitions are installed.
    pub enable_cluster_registry: bool,
    /// Load images into the cluster registry before a component is installed or upgraded. Needs
    /// `enableClusterRegistry`.
    pub enable_early_loading: bool,
    /// Side loading: images reach the site on a drive. Independent of `enableClusterRegistry`.
    pub enable_local_registry: bool,
    /// The registry itself.
    pub cluster_registry: ClusterRegistry,
    /// The webhook that rewrites the images of pods to the registry.
    pub webhook: ExtensionWebhook,
}

/// The registry itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterRegistry {
    /// Several replicas of the registry. Needs a storage class that can do ReadWriteMany.
    pub high_availability: HighAvailability,
    /// A `HorizontalPodAutoscaler` for the registry, while high availability is on.
    pub auto_scaling: AutoScaling,
    /// Storage class of the registry's volume. The class must exist. It cannot change after
    /// installation.
    pub storage_class_name: String,
    /// Size of the registry's volume in `Gi` or `Ti`. It can grow on upgrade where the class allows
    /// expansion, and cannot shrink.
    pub storage_size: StorageSize,
    /// When to collect images that nothing uses: a crontab line of five fields, in UTC. Empty:
    /// never.
    #[serde(rename = "clusterRegistryGCCadence")]
    pub gc_cadence: Cron,
    /// Collect only when more than this percentage of the volume is used.
    #[serde(rename = "clusterRegistryGCThreshold")]
    #[schemars(range(min = 0, max = 100))]
    pub gc_threshold: u8,
    /// How the registry is sized.
    pub registry_service: RegistryService,
}

impl Default for ClusterRegistry {
    fn default() -> Self {
        Self {
            high_availability: HighAvailability::default(),
            auto_scaling: AutoScaling::default(),
            storage_class_name: "nexus-shared".to_owned(),
            storage_size: StorageSize::gibibytes(100),
            gc_cadence: Cron::parse("0 0 * * *").expect("a valid crontab line"),
            gc_threshold: 0,
            registry_service: RegistryService::default(),
        }
    }
}

/// Several replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HighAvailability {
    /// Run three to five replicas that survive the loss of a node. Off: one replica.
    pub enabled: bool,
}

impl Default for HighAvailability {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Replicas by load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AutoScaling {
    /// Scale between three and five replicas at 80 % of the requested CPU or memory. Off: always
    /// three.
    pub enabled: bool,
}

impl Default for AutoScaling {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// How the registry is sized.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryService {
    /// CPU and memory of a registry replica: `small` 100m/250Mi up to 100m/2Gi, `medium`
    /// 250m/500Mi up to 500m/2Gi, `large` 500m/1Gi up to 1/4Gi.
    pub scale: Scale,
}

/// A preset of CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Scale {
    #[allow(missing_docs, reason = "the name says it")]
    Small,
    #[default]
    #[allow(missing_docs, reason = "the name says it")]
    Medium,
    #[allow(missing_docs, reason = "the name says it")]
    Large,
}

/// The webhook that rewrites the images of pods to the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ExtensionWebhook {
    /// Several replicas of the webhook.
    pub high_availability: HighAvailability,
    /// A `HorizontalPodAutoscaler` for the webhook, while high availability is on.
    pub auto_scaling: AutoScaling,
    /// Changes to pods.
    pub pod: MutationPod,
}

/// Changes to pods.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MutationPod {
    /// How pods are changed.
    pub mutation: Mutation,
}

/// How pods are changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Mutation {
    /// CEL expression over the pod (`object`): only pods for which it is true are changed.
    #[schemars(length(min = 1))]
    pub match_condition_expression: String,
}

impl Default for Mutation {
    fn default() -> Self {
        Self {
            match_condition_expression: DEFAULT_MATCH_CONDITION.to_owned(),
        }
    }
}

/// Older spellings, still honoured. A newer key that says something else is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LegacyExtension {
    /// Older spelling of `global.networkfunctionextension.enableClusterRegistry`.
    #[serde(rename = "EnableManagedInClusterEdgeRegistry")]
    pub enable: Option<bool>,
    /// Older spelling of `global.networkfunctionextension.clusterRegistry.storageSize`, as a
    /// number of Gi.
    #[serde(rename = "EdgeRegistrySizeInGB")]
    #[schemars(range(min = 1, max = 999_999))]
    pub size_gibibytes: Option<u32>,
}

/// What the Arc extension manager passes to every extension.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Microsoft {
    /// The custom location of the cluster.
    #[serde(rename = "CustomLocation")]
    pub custom_location: CustomLocation,
}

/// The custom location of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CustomLocation {
    /// Service account of the custom location; accepted so that the documented installation
    /// command works, not used.
    #[serde(rename = "ServiceAccount")]
    pub service_account: String,
}
