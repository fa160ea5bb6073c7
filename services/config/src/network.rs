//! Where images come from and how the uplink is spared.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

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
}

/// How the outside is reached from a site that only has a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    /// Proxy for `http://` upstreams, as a URL.
    #[schemars(regex(pattern = r"^$|^https?://[^/?#@\s]+/?$"))]
    pub http: String,
    /// Proxy for `https://` upstreams, as a URL.
    #[schemars(regex(pattern = r"^$|^https?://[^/?#@\s]+/?$"))]
    pub https: String,
    /// Hosts, domains (`.example`) and networks (`10.0.0.0/8`) that are reached directly.
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
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            bandwidth_bytes_per_second: ByteSize::from_bytes(0),
            concurrent_fills: 16,
            concurrent_fills_per_host: 8,
        }
    }
}
