//! Values: Helm values, JSON schema, documentation and service configuration in one type.
//!
//! [`Values`] is what a user writes and what the chart hands to every service, inside [`Config`],
//! as `config.yaml`. Defaults exist once, in the `Default` of each type; rules exist once, in the
//! type or in [`Values::validate`]. This crate does no I/O but reading the one file it is asked
//! for, and knows nothing of what the services do.

mod access;
mod aosm;
mod cron;
mod distribution;
mod document;
mod network;
mod observability;
mod problem;
mod quantity;
mod registry_settings;
mod replicas;
mod schema;
mod validate;
mod values;
mod workloads;
pub mod yaml;

pub use access::{
    AccessAction, AccessRule, AccessSettings, AccessValues, RsaAlgorithm, StandaloneAccess,
    StandaloneToken, TokenSettings, TokenValues,
};
pub use aosm::{
    AutoScaling, ClusterRegistry, CustomLocation, DEFAULT_MATCH_CONDITION, Extension,
    ExtensionWebhook, Global, HighAvailability, LegacyExtension, Microsoft, Mutation, MutationPod,
    RegistryService, Scale,
};
pub use cron::{Cron, pattern as cron_pattern};
pub use distribution::Distribution;
pub use document::{Config, Error, Release, Result};
pub use holdfast_core::secret::SecretString;
pub use network::{MirrorCredentials, NetworkPolicyValues, Proxy, Uplink, Upstream};
pub use observability::{
    AccessLog, AccessLogMode, NotificationAction, NotificationEndpoint, NotificationSettings,
    Notifications, Scrub,
};
pub use problem::Problem;
pub use quantity::{ByteSize, StorageSize};
pub use registry_settings::{
    AuthFiles, Credentials, RegistrySettings, Standalone, StandaloneTls, TlsFiles,
    UpstreamSettings, Writes,
};
pub use replicas::Replicas;
pub use schema::{standalone_schema, values_schema};
pub use validate::global_key_pattern;
pub use values::{
    Crds, FailurePolicy, Image, ImageAccess, LogFormat, LogLevel, Logging, Metrics, PodMonitor,
    Preload, PrivateImages, PullPolicy, SystemNodes, Uninstall, Values,
};
pub use workloads::{
    ArtifactLimits, ControllerPart, HealingMode, HealingValues, HostFolders, Limits, NodeAgentPart,
    RegistryPart, Scope, ServiceValues, StartupTaint, StorageValues, WaitForNodes, WebhookPart,
};
