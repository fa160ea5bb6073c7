//! Where images come from and how the uplink is spared.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// NetworkPolicies for Holdfast's own pods. Peers are those of a NetworkPolicy: `podSelector`, `namespaceSelector`, `ipBlock`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkPolicyValues {
    /// Make them. They close every port but those below, and the registry's internal port to all but its replicas and the
    /// controller. What pods of Holdfast connect to is not limited.
    pub enabled: bool,
    /// Who reaches the webhook. Empty: any address, because API servers are often outside of the pod network. Give the addresses
    /// of the API servers as `ipBlock`, where they are known, to keep pods away from it.
    pub api_servers: Vec<NetworkPolicyPeer>,
    /// Who reaches the registry. Empty: any address, because nodes come from addresses that differ by network plug-in.
    pub registry_clients: Vec<NetworkPolicyPeer>,
    /// Who reaches the admin ports (9090: metrics, probes) beside the kubelet and the uninstallation: Prometheus, say. Empty: any
    /// address. `holdfast status` reads the volume by the API server's proxy, so list the API servers as well.
    pub metrics: Vec<NetworkPolicyPeer>,
}

impl Default for NetworkPolicyValues {
    fn default() -> Self {
        Self {
            enabled: true,
            api_servers: Vec::new(),
            registry_clients: Vec::new(),
            metrics: Vec::new(),
        }
    }
}

/// A registry that images come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["host"]))]
pub struct Upstream {
    /// The host as image references name it, with its port if any: `registry.example:5000`. Required.
    #[schemars(regex(
        pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$|^\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?$"
    ))]
    pub host: String,
    /// Where that host is reached: an `http(s)://` URL without credentials. Empty: `https://<host>`.
    #[schemars(regex(pattern = r"^$|^https?://[^/?#@\s]+(/[^?#\s]*)?$"))]
    pub endpoint: String,
    /// Further URLs that hold the same images, tried before `endpoint`, in this order.
    #[schemars(inner(regex(pattern = r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")))]
    pub mirrors: Vec<String>,
    /// PEM certificates to trust for this host, beside the public ones.
    #[schemars(regex(pattern = r"^\s*$|-----BEGIN CERTIFICATE-----"))]
    pub ca: String,
    /// Name of a Secret in the release's namespace with credentials: `username` and `password`, or `.dockerconfigjson`.
    #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub credentials_secret: String,
    /// User name, where the password comes from `passwordFile`.
    pub username: String,
    /// File with the password, for a registry that runs outside Kubernetes.
    pub password_file: String,
    /// Do not verify the certificate of this host. For tests.
    pub insecure_skip_verify: bool,
    /// Speak plain HTTP to this host when `endpoint` is empty.
    pub plain_http: bool,
    /// Credentials of the mirrors. The upstream's own, and those of pull secrets, are never sent to a mirror.
    pub mirror_credentials: Vec<MirrorCredentials>,
    /// Hosts of token servers that may see this upstream's credentials, beside those under its own domain: `auth.example`.
    #[schemars(inner(regex(
        pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"
    )))]
    pub realms: Vec<String>,
    /// Follow redirects of this upstream to private addresses even when it has a public one itself.
    pub allow_private_redirects: bool,
}

/// The credentials of one mirror.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["mirror"]))]
pub struct MirrorCredentials {
    /// The mirror's URL, as `mirrors` lists it. Required.
    #[schemars(regex(pattern = r"^https?://[^/?#@\s]+(/[^?#\s]*)?$"))]
    pub mirror: String,
    /// Name of a Secret in the release's namespace: `username` and `password`, or `.dockerconfigjson`.
    #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub credentials_secret: String,
    /// User name, where the password comes from `passwordFile`.
    pub username: String,
    /// File with the password, for a registry that runs outside Kubernetes.
    pub password_file: String,
}

/// How the outside is reached from a site that only has a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    /// Proxy for `http://` upstreams, as a URL or as `host:port`.
    #[schemars(regex(
        pattern = r"^$|^(https?://)?[^/?#@\s:]+(:[0-9]{1,5})?/?$|^https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?/?$"
    ))]
    pub http: String,
    /// Proxy for `https://` upstreams, as a URL or as `host:port`.
    #[schemars(regex(
        pattern = r"^$|^(https?://)?[^/?#@\s:]+(:[0-9]{1,5})?/?$|^https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?/?$"
    ))]
    pub https: String,
    /// Hosts, domains (`.example` and `example`, both with all below), addresses and networks (`10.0.0.0/8`) that are
    /// reached directly; `*` is everything. A port after a host (`example:5000`) narrows it to that port.
    pub no_proxy: Vec<String>,
}

/// How the uplink is spared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Uplink {
    /// Cap of all copies from upstream together, per registry replica, in bytes a second: `10M`. 0: no cap.
    pub bandwidth_bytes_per_second: ByteSize,
    /// Blobs that a registry replica copies at the same time.
    #[schemars(range(min = 1, max = 256))]
    pub concurrent_fills: u16,
    /// Blobs that a registry replica copies at the same time from one host.
    #[schemars(range(min = 1, max = 256))]
    pub concurrent_fills_per_host: u16,
    /// Requests a second that a registry replica sends to one host; up to one second's worth may come at once. 0: no cap.
    #[schemars(range(max = 10000))]
    pub requests_per_second_per_host: u16,
    /// Whether the pull of a tag that is local asks the upstream if the tag moved: within 500 ms, and no more often than
    /// `tagFreshSeconds` says. The pull gets what is local at once in every case; what moved is copied behind it.
    pub revalidate_pulls: bool,
    /// How long a tag counts as fresh after it was copied or compared with the upstream, seconds.
    #[schemars(range(max = 2_592_000))]
    pub tag_fresh_seconds: u32,
    /// How long it is believed that an upstream does not have an image, or refuses these credentials, seconds.
    #[schemars(range(max = 3600))]
    pub negative_seconds: u16,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            bandwidth_bytes_per_second: ByteSize::from_bytes(0),
            concurrent_fills: 16,
            concurrent_fills_per_host: 8,
            requests_per_second_per_host: 50,
            revalidate_pulls: false,
            tag_fresh_seconds: 300,
            negative_seconds: 10,
        }
    }
}
