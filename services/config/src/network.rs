//! Upstreams, the proxy, and limits on the uplink.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// NetworkPolicies for Holdfast's own pods. Peers are those of a NetworkPolicy: `podSelector`,
/// `namespaceSelector`, `ipBlock`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkPolicyValues {
    /// Create NetworkPolicies. They close every port except those below, and restrict the
    /// registry's internal port to its replicas and the controller. Egress is not limited.
    pub enabled: bool,
    /// Peers of the webhook. Empty: any address, because API servers are often outside of the pod
    /// network. Give the addresses of the API servers as `ipBlock`, where they are known, to keep
    /// pods away from it.
    pub api_servers: Vec<NetworkPolicyPeer>,
    /// Peers of the registry. Empty: any address, because nodes come from addresses that differ by
    /// network plug-in.
    pub registry_clients: Vec<NetworkPolicyPeer>,
    /// Peers of the admin ports (9090: metrics, probes) beside the kubelet and the uninstall hook,
    /// for example Prometheus. Empty: any address. `holdfast status` reads the volume by the API
    /// server's proxy, so list the API servers as well.
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
    /// The host as image references name it, with its port if any: `registry.example:5000`.
    /// Required.
    #[schemars(regex(
        pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$|^\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?$"
    ))]
    pub host: String,
    /// Where that host is reached: an `http(s)://` URL without credentials. Empty:
    /// `https://<host>`.
    #[schemars(regex(pattern = r"^$|^https?://[^/?#@\s]+(/[^?#\s]*)?$"))]
    pub endpoint: String,
    /// Further URLs that hold the same images, tried before `endpoint`, in this order.
    #[schemars(inner(regex(pattern = r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")))]
    pub mirrors: Vec<String>,
    /// PEM certificates to trust for this host, beside the public ones.
    #[schemars(regex(pattern = r"^\s*$|-----BEGIN CERTIFICATE-----"))]
    pub ca: String,
    /// Name of a Secret in the release's namespace with credentials: `username` and `password`, or
    /// `.dockerconfigjson`.
    #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub credentials_secret: String,
    /// User name, for a registry that runs outside Kubernetes; its password comes from
    /// `passwordFile`. A release takes `credentialsSecret` only.
    pub username: String,
    /// File with the password, beside `username`.
    pub password_file: String,
    /// Do not verify the certificate of this host. For tests.
    pub insecure_skip_verify: bool,
    /// Speak plain HTTP to this host when `endpoint` is empty.
    pub plain_http: bool,
    /// Credentials of the mirrors. The upstream's own, and those of pull secrets, are never sent
    /// to a mirror.
    pub mirror_credentials: Vec<MirrorCredentials>,
    /// Hosts of token servers that may see this upstream's credentials, beside those under its own
    /// domain: `auth.example`.
    #[schemars(inner(regex(
        pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"
    )))]
    pub realms: Vec<String>,
    /// Follow redirects of this upstream to private addresses even when it has a public one
    /// itself.
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
    /// Name of a Secret in the release's namespace: `username` and `password`, or
    /// `.dockerconfigjson`.
    #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub credentials_secret: String,
    /// User name, for a registry that runs outside Kubernetes; its password comes from
    /// `passwordFile`. A release takes `credentialsSecret` only.
    pub username: String,
    /// File with the password, beside `username`.
    pub password_file: String,
}

/// Proxy for sites without a direct uplink.
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
    /// Hosts, domains (`.example` and `example`, both with all below), addresses and networks
    /// (`10.0.0.0/8`) that are reached directly; `*` is everything. A port after a host
    /// (`example:5000`) narrows it to that port.
    pub no_proxy: Vec<String>,
}

/// Limits on the use of the uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Uplink {
    /// Bytes per second of all copies from upstream together, per registry replica, such as `10M`.
    /// 0: no limit.
    pub bandwidth_bytes_per_second: ByteSize,
    /// Blobs that a registry replica copies at the same time.
    #[schemars(range(min = 1, max = 256))]
    pub concurrent_fills: u16,
    /// Blobs that a registry replica copies at the same time from one host.
    #[schemars(range(min = 1, max = 256))]
    pub concurrent_fills_per_host: u16,
    /// Requests per second that a registry replica sends to one host; bursts of up to one second's
    /// worth are allowed. 0: no limit.
    #[schemars(range(max = 10000))]
    pub requests_per_second_per_host: u16,
    /// Whether the pull of a local tag asks the upstream if the tag moved, for at most 500 ms and
    /// at most once per `tagFreshSeconds`. The pull always gets the local image at once; a moved
    /// tag is copied in the background.
    pub revalidate_pulls: bool,
    /// Seconds for which a tag counts as fresh after it was copied or compared with the upstream.
    #[schemars(range(max = 2_592_000))]
    pub tag_fresh_seconds: u32,
    /// Seconds for which an upstream's answer that it has no such image, or refuses these
    /// credentials, is cached.
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

/// Where a registry runs: it decides where the credentials for its upstreams come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Home {
    /// In a release, which mounts Secrets and no other file.
    Release,
    /// Alone, with files and without Secrets.
    Alone,
}

impl Home {
    /// Refuses upstreams that contradict each other, and credentials that cannot be there.
    pub(crate) fn check(self, upstreams: &[Upstream], refuse: &mut dyn FnMut(&str, String)) {
        for (index, upstream) in upstreams.iter().enumerate() {
            let key = format!("upstreams[{index}]");
            let same = |other: &Upstream| other.host.eq_ignore_ascii_case(&upstream.host);
            if upstreams.iter().take(index).any(same) {
                refuse(
                    &format!("{key}.host"),
                    format!("{} is listed twice", upstream.host),
                );
            }
            let Upstream {
                credentials_secret,
                username,
                password_file,
                ..
            } = upstream;
            self.check_login(&key, [credentials_secret, username, password_file], refuse);
            for (at, of) in upstream.mirror_credentials.iter().enumerate() {
                let of_mirror = format!("{key}.mirrorCredentials[{at}]");
                let is_it = |mirror: &String| {
                    mirror.trim_end_matches('/') == of.mirror.trim_end_matches('/')
                };
                if !upstream.mirrors.iter().any(is_it) {
                    refuse(
                        &format!("{of_mirror}.mirror"),
                        format!("{} is none of {key}.mirrors", of.mirror),
                    );
                }
                let login = [&of.credentials_secret, &of.username, &of.password_file];
                self.check_login(&of_mirror, login, refuse);
                if login.into_iter().all(String::is_empty) {
                    let field = match self {
                        Self::Release => "credentialsSecret",
                        Self::Alone => "username",
                    };
                    refuse(&format!("{of_mirror}.{field}"), "is missing".to_owned());
                }
            }
        }
    }

    fn check_login(
        self,
        key: &str,
        [secret, username, password_file]: [&String; 3],
        refuse: &mut dyn FnMut(&str, String),
    ) {
        match self {
            Self::Release => {
                for (field, value) in [("username", username), ("passwordFile", password_file)] {
                    if !value.is_empty() {
                        refuse(
                            &format!("{key}.{field}"),
                            "a release mounts no file with a password; give credentialsSecret"
                                .to_owned(),
                        );
                    }
                }
            }
            Self::Alone => {
                if !secret.is_empty() {
                    refuse(
                        &format!("{key}.credentialsSecret"),
                        "a registry that runs alone has no Secrets; give username and passwordFile"
                            .to_owned(),
                    );
                }
                let half = match (username.is_empty(), password_file.is_empty()) {
                    (false, true) => Some(("username", "passwordFile")),
                    (true, false) => Some(("passwordFile", "username")),
                    _ => None,
                };
                if let Some((given, other)) = half {
                    refuse(&format!("{key}.{given}"), format!("needs {other}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Error, Standalone, Values};

    /// What is said of these upstreams: in a release, and alone; nothing where they are accepted.
    fn check(upstreams: &str, release: &str, alone: &str) {
        let text = format!("upstreams: [{upstreams}]");
        let said = |error: Option<Error>| error.map_or(String::new(), |error| error.to_string());
        let in_release = said(Values::parse(&text).err());
        assert_eq!(in_release, release, "{upstreams} in a release");
        let by_itself = said(Standalone::parse(&text).err());
        assert_eq!(by_itself, alone, "{upstreams} alone");
    }

    #[test]
    fn upstreams_that_cannot_work_are_refused_by_key() {
        let no_file = "a release mounts no file with a password; give credentialsSecret";
        let no_secret = "a registry that runs alone has no Secrets; give username and passwordFile";
        let name = format!("upstreams[0].username: {no_file}");
        let file = format!("upstreams[0].passwordFile: {no_file}");
        let secret = format!("upstreams[0].credentialsSecret: {no_secret}");
        let twice = "upstreams[1].host: A is listed twice";
        check("{host: a}, {host: A}", twice, twice);
        check("{host: a, credentialsSecret: s}", "", &secret);
        let half = "upstreams[0].username: needs passwordFile";
        check("{host: a, username: u}", &name, half);
        let half = "upstreams[0].passwordFile: needs username";
        check("{host: a, passwordFile: /p}", &file, half);
        let both = format!("{name}\n{file}");
        check("{host: a, username: u, passwordFile: /p}", &both, "");
        let both = "{host: a, credentialsSecret: s, username: u, passwordFile: /p}";
        check(both, &format!("{name}\n{file}"), &secret);

        let of_mirror = "upstreams[0].mirrorCredentials[0]";
        let mirror = |mirror: &str, login: &str| {
            let credentials = format!("{{mirror: '{mirror}'{login}}}");
            format!("{{host: a, mirrors: ['https://m/'], mirrorCredentials: [{credentials}]}}")
        };
        let other = format!("{of_mirror}.mirror: https://n is none of upstreams[0].mirrors");
        let alone = format!("{of_mirror}.credentialsSecret: {no_secret}");
        check(&mirror("https://m", ", credentialsSecret: s"), "", &alone);
        check(
            &mirror("https://n", ", credentialsSecret: s"),
            &other,
            &format!("{other}\n{alone}"),
        );
        check(
            &mirror("https://m", ""),
            &format!("{of_mirror}.credentialsSecret: is missing"),
            &format!("{of_mirror}.username: is missing"),
        );
        check(
            &mirror("https://m", ", username: u"),
            &format!("{of_mirror}.username: {no_file}"),
            &format!("{of_mirror}.username: needs passwordFile"),
        );
    }

    #[test]
    fn a_list_that_narrows_everything_to_nothing_is_refused() {
        let told = Values::parse("onlyListedUpstreams: true").unwrap_err();
        assert_eq!(
            told.to_string(),
            "onlyListedUpstreams: needs upstreams; list the hosts that may be copied"
        );
        Values::parse("{onlyListedUpstreams: true, upstreams: [{host: a}]}").unwrap();
    }
}
