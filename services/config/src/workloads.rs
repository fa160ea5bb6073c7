//! Configuration of each workload. The keys that place and size a workload are the same for all.

use std::collections::BTreeMap;

use holdfast_core::oci::MANIFEST_BYTES;
use k8s_openapi::api::core::v1::{Affinity, EnvVar, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AccessLog, AccessValues, ByteSize, Notifications, Scale, Scrub};

/// Requests and limits from (CPU, memory) pairs.
fn resources(requests: (&str, &str), limits: (&str, &str)) -> ResourceRequirements {
    let map = |(cpu, memory): (&str, &str)| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    ResourceRequirements {
        claims: None,
        requests: map(requests),
        limits: map(limits),
    }
}

impl Scale {
    /// Requests and limits of a registry replica at this scale.
    pub fn resources(self) -> ResourceRequirements {
        match self {
            Self::Small => resources(("100m", "250Mi"), ("100m", "2Gi")),
            Self::Medium => resources(("250m", "500Mi"), ("500m", "2Gi")),
            Self::Large => resources(("500m", "1Gi"), ("1", "4Gi")),
        }
    }
}

/// Declares a part: its own keys, then the keys that every workload has.
macro_rules! workload {
    ($(#[$meta:meta])* $name:ident, priority: $priority:literal, resources: $resources:expr, { $($(#[$field_meta:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// CPU and memory of a replica.
            pub resources: ResourceRequirements,
            /// Only nodes with all of these labels.
            pub node_selector: BTreeMap<String, String>,
            /// Tolerations in addition to those that Holdfast's pods always have.
            pub tolerations: Vec<Toleration>,
            /// Replaces the default affinity of Holdfast's pods. Empty: keep the default.
            pub affinity: Affinity,
            /// Annotations of the pods.
            pub pod_annotations: BTreeMap<String, String>,
            /// Labels of the pods, in addition to Holdfast's own.
            pub pod_labels: BTreeMap<String, String>,
            /// Priority class of the pods. Empty: none.
            pub priority_class_name: String,
            /// Additional environment variables of the container.
            pub extra_env: Vec<EnvVar>,
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    resources: $resources,
                    node_selector: BTreeMap::new(),
                    tolerations: Vec::new(),
                    affinity: Affinity::default(),
                    pod_annotations: BTreeMap::new(),
                    pod_labels: BTreeMap::new(),
                    priority_class_name: $priority.to_owned(),
                    extra_env: Vec::new(),
                }
            }
        }
    };
}

workload! {
    /// The registry: stores and serves images. Empty `resources` mean what `registryService.scale`
    /// says.
    RegistryPart, priority: "system-cluster-critical", resources: ResourceRequirements::default(), {
        /// Replicas; empty: three with high availability, one without. Ignored while autoscaling is
        /// on.
        #[schemars(range(min = 1, max = 5))]
        replicas: Option<u32> = None,
        /// The Service that nodes pull from.
        service: ServiceValues = ServiceValues::default(),
        /// The volume.
        storage: StorageValues = StorageValues::default(),
        /// Limits on what clients may use.
        limits: Limits = Limits::default(),
        /// Who may pull and push, besides the nodes.
        access: AccessValues = AccessValues::default(),
        /// The access log: one line per request.
        access_log: AccessLog = AccessLog::default(),
        /// Notifications of pushes, pulls, mounts and deletes.
        notifications: Notifications = Notifications::default(),
        /// The background check of the volume for damage.
        scrub: Scrub = Scrub::default(),
    }
}

workload! {
    /// The webhook: rewrites the images of new pods to the registry.
    WebhookPart, priority: "system-cluster-critical", resources: resources(("50m", "64Mi"), ("500m", "256Mi")), {
        /// Replicas; empty: three with high availability, one without. Ignored while autoscaling is
        /// on.
        #[schemars(range(min = 1, max = 5))]
        replicas: Option<u32> = None,
        /// What the API server does with a pod when the webhook cannot be reached. `Fail` stops
        /// every pod then.
        failure_policy: crate::FailurePolicy = crate::FailurePolicy::Ignore,
        /// Seconds the API server waits for the webhook.
        #[schemars(range(min = 1, max = 30))]
        timeout_seconds: u8 = 5,
        /// Secret of the release's namespace whose key `ca.crt` holds the CA of the API servers'
        /// client certificates; the webhook then accepts no other clients. Configure the API
        /// servers to present one (`--admission-control-config-file`). Empty: no client certificate
        /// is required.
        #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
        client_ca_secret: String = String::new(),
        /// When to begin rewriting. `true`: when every node is prepared; `false`: at once; a
        /// number: when every node is prepared, but at the latest after this many seconds.
        wait_for_nodes: WaitForNodes = WaitForNodes::Always(true),
        /// Which pods and nodes are in scope.
        scope: Scope = Scope::default(),
    }
}

workload! {
    /// The controller: copies images, keeps certificates and the shared state.
    ControllerPart, priority: "system-cluster-critical", resources: resources(("50m", "96Mi"), ("500m", "512Mi")), {
        /// Replicas, of which one is active; empty: two with high availability, one without.
        #[schemars(range(min = 1, max = 5))]
        replicas: Option<u32> = None,
        /// Healing of pods that cannot pull their images.
        healing: HealingValues = HealingValues::default(),
        /// Limits on the number of Artifacts and on the lifetime of unused ones.
        artifacts: ArtifactLimits = ArtifactLimits::default(),
        /// Render a `ValidatingAdmissionPolicy` that restricts the controller's patches to images
        /// and Holdfast's annotations of pods, and to its own taint of nodes. Helm then needs
        /// permission to create such policies.
        restrict_patches: bool = false,
    }
}

workload! {
    /// The node agent: prepares the container runtime of each node.
    NodeAgentPart, priority: "system-node-critical", resources: resources(("10m", "32Mi"), ("200m", "128Mi")), {
        /// The folder where containerd looks for host configuration (its `config_path`), as the
        /// node names it: the only folder of the node that the agent may write to. It must lie in
        /// `hostFolders.config`. Empty: `certs.d` there; an agent whose containerd looks elsewhere
        /// reports it and is not ready.
        #[schemars(regex(pattern = r"^$|^/"))]
        containerd_config_path: String = String::new(),
        /// The runtime's and the kubelet's folders on the node.
        host_folders: HostFolders = HostFolders::default(),
        /// Pin the images that Holdfast starts from, its own and the pods' sandbox's, in each
        /// node's containerd, so that the kubelet does not collect them when the disk fills. Undone
        /// on uninstall.
        pin_images: bool = true,
        /// Keeps pods off joining nodes until their agent has completed a test pull.
        startup_taint: StartupTaint = StartupTaint::default(),
    }
}

/// Keeps pods off a joining node, by the taint `holdfast.dev/not-ready:NoSchedule`, until it can
/// pull from the registry. Kubelets may register with it (`--register-with-taints`); the controller
/// removes it in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct StartupTaint {
    /// Add the taint to joining nodes while pods are rewritten, and remove it when they are
    /// prepared. Gives the controller permission to patch nodes.
    pub enabled: bool,
    /// Seconds after which the taint is removed in any case. 0: never.
    #[schemars(range(min = 0, max = 86_400))]
    pub timeout_seconds: u32,
}

impl Default for StartupTaint {
    fn default() -> Self {
        Self {
            enabled: false,
            timeout_seconds: 600,
        }
    }
}

/// The Service that nodes pull from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceValues {
    /// Fixed address of the registry inside the cluster's service network. Empty: the cluster
    /// chooses one, and it stays as long as the Service exists.
    #[serde(rename = "clusterIP")]
    #[schemars(regex(pattern = r"^$|^[0-9A-Fa-f.:]+$"))]
    pub cluster_ip: String,
    /// Annotations of the Service.
    pub annotations: BTreeMap<String, String>,
}

/// The registry's volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct StorageValues {
    /// Use this `PersistentVolumeClaim` of the release's namespace instead of making one.
    pub existing_claim: String,
    /// Keep the claim, and with it all images, when the release is uninstalled.
    pub keep: bool,
}

/// Limits on what clients may use of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Largest manifest that is accepted, from clients and from upstream; at most `16Mi`.
    #[schemars(schema_with = "manifest_bytes")]
    pub manifest_bytes: ByteSize,
    /// Memory of all streams of a replica together.
    pub stream_buffer_bytes: ByteSize,
    /// Concurrent connections of a replica.
    #[schemars(range(min = 16, max = 65_535))]
    pub connections: u32,
    /// Of these, connections of one address (IPv6: of one /64); further ones are closed at once.
    #[schemars(range(min = 1, max = 65_535))]
    pub connections_per_address: u32,
    /// Concurrent uploads of clients on a replica; further ones are refused and told to retry.
    #[schemars(range(min = 1, max = 65_535))]
    pub uploads: u32,
    /// Of these, uploads to one repository.
    #[schemars(range(min = 1, max = 65_535))]
    pub uploads_per_repository: u32,
    /// Seconds for which a client may send nothing of a request body or read nothing of a response
    /// body.
    #[schemars(range(min = 5, max = 3600))]
    pub idle_seconds: u16,
    /// Minimum rate, in bytes per second over a minute, of a client that sends or reads a body. 0:
    /// no minimum.
    pub min_bytes_per_second: ByteSize,
    /// Used percentage of the volume from which clients that write get a warning; 100: never.
    #[schemars(range(min = 1, max = 100))]
    pub warn_used_percent: u8,
    /// Writes are refused when less than this percentage of the volume is free; reads go on.
    #[schemars(range(min = 0, max = 50))]
    pub reserve_percent: u8,
    /// Seconds that a pull of an image which is not local may wait for its copy to begin.
    #[schemars(range(min = 0, max = 300))]
    pub hold_seconds: u16,
    /// Hours after which an idle upload is removed.
    #[schemars(range(min = 1, max = 720))]
    pub upload_hours: u16,
}

fn manifest_bytes(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    crate::quantity::at_most(MANIFEST_BYTES)
}

impl Limits {
    /// Checks what the types do not say. `path` is the key of the limits.
    pub(crate) fn check(&self, path: &str, refuse: &mut dyn FnMut(&str, String)) {
        let bytes = self.manifest_bytes.bytes();
        if bytes == 0 || bytes > MANIFEST_BYTES {
            refuse(
                &format!("{path}.manifestBytes"),
                format!(
                    "{} is not between 1 and {}: the store reads no larger manifest",
                    self.manifest_bytes,
                    ByteSize::from_bytes(MANIFEST_BYTES)
                ),
            );
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: ByteSize::from_bytes(4 << 20),
            stream_buffer_bytes: ByteSize::from_bytes(48 << 20),
            connections: 4096,
            connections_per_address: 1024,
            uploads: 4096,
            uploads_per_repository: 256,
            idle_seconds: 60,
            min_bytes_per_second: ByteSize::from_bytes(1 << 10),
            warn_used_percent: 85,
            reserve_percent: 5,
            hold_seconds: 10,
            upload_hours: 24,
        }
    }
}

/// Which pods and nodes are in scope.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Scope {
    /// Only pods in namespaces that this selects, in addition to the fixed rules. Empty: all.
    pub namespace_selector: LabelSelector,
    /// Only nodes with these labels are waited for. Empty: all.
    pub node_selector: BTreeMap<String, String>,
}

/// Healing of pods that cannot pull: their references are changed to the registry if the image is
/// local, and restored if the registry cannot copy it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HealingValues {
    /// `heal`; `dryRun`: only log what would be done, once per pod; `none`: off.
    pub mode: HealingMode,
    /// Evictions per minute of pods whose image volume must change; their owner recreates them. 0:
    /// none; an event on the pod reports it.
    #[schemars(range(min = 0, max = 600))]
    pub evictions_per_minute: u16,
    /// Seconds for which an upstream must have refused an image before the original references of
    /// its pods are restored.
    #[schemars(range(min = 30, max = 86_400))]
    pub refused_seconds: u32,
}

impl Default for HealingValues {
    fn default() -> Self {
        Self {
            mode: HealingMode::Heal,
            evictions_per_minute: 6,
            refused_seconds: 120,
        }
    }
}

/// Limits on the number of Artifacts. Images of running pods come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ArtifactLimits {
    /// Artifacts per namespace. Images beyond the limit are not copied; an event on the namespace
    /// reports it.
    #[schemars(range(min = 10, max = 100_000))]
    pub per_namespace: u32,
    /// Artifacts in all namespaces together.
    #[schemars(range(min = 10, max = 1_000_000))]
    pub total: u32,
    /// Minutes after which an Artifact is removed that the webhook announced, that no pod and no
    /// template uses, and that was never copied.
    #[schemars(range(min = 1, max = 1440))]
    pub undemanded_minutes: u16,
}

impl Default for ArtifactLimits {
    fn default() -> Self {
        Self {
            per_namespace: 2000,
            total: 20_000,
            undemanded_minutes: 10,
        }
    }
}

/// Whether pods are healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum HealingMode {
    Heal,
    DryRun,
    None,
}

impl NodeAgentPart {
    /// The folder of registry hosts that the chart mounts into the agent, as the node names it.
    #[must_use]
    pub fn hosts_folder(&self) -> String {
        if self.containerd_config_path.is_empty() {
            let config = self.host_folders.config.trim_end_matches('/');
            format!("{config}/certs.d")
        } else {
            self.containerd_config_path.clone()
        }
    }
}

/// The runtime's and the kubelet's folders on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HostFolders {
    /// The folder with containerd's configuration, which the agent reads. K3s:
    /// `/var/lib/rancher/k3s/agent/etc/containerd`.
    #[schemars(regex(pattern = r"^/[^\s]+$"))]
    pub config: String,
    /// The folder with containerd's socket. K3s: `/run/k3s/containerd`.
    #[schemars(regex(pattern = r"^/[^\s]+$"))]
    pub run: String,
    /// The kubelet's root folder (`--root-dir`). The agent reads the pull records in its
    /// `image_manager`. k0s: `/var/lib/k0s/kubelet`.
    #[schemars(regex(pattern = r"^/[^\s]+$"))]
    pub kubelet: String,
}

impl Default for HostFolders {
    fn default() -> Self {
        Self {
            config: "/etc/containerd".to_owned(),
            run: "/run/containerd".to_owned(),
            kubelet: "/var/lib/kubelet".to_owned(),
        }
    }
}

/// Whether, and how long, rewriting waits for the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum WaitForNodes {
    /// Wait for all of them, or do not wait.
    Always(bool),
    /// Wait at most this many seconds after the start.
    Seconds(#[schemars(range(min = 1, max = 86_400))] u32),
}
