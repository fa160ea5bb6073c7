//! The settings of the registry, both in a release and alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network::Home;
use crate::{
    AccessLog, AccessSettings, Config, Error, Limits, Logging, NotificationSettings, Notifications,
    Problem, Proxy, Replicas, Result, Scrub, SecretString, StandaloneAccess, Uplink, Upstream,
    document, yaml,
};

/// The certificate, key and authority of a listener; files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM chain.
    pub certificate: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM bundle that the other side's certificate is checked against; `None`: public trust only.
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The files of a Kubernetes TLS Secret mounted at `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            ca: Some(folder.join("ca.crt")),
        }
    }
}

/// Where the secrets of client authentication are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthFiles {
    /// Signs upload sessions, so that an upload may continue on another replica.
    pub upload_secret: PathBuf,
    /// User name of the nodes.
    pub node_username: PathBuf,
    /// Password of the nodes.
    pub node_password: PathBuf,
}

/// What clients may write, for all of them alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writes {
    /// Pushes and deletes.
    #[default]
    All,
    /// Pushes only.
    NoDeletes,
    /// Nothing.
    None,
}

/// Where the credentials for an upstream are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// There are none.
    Anonymous,
    /// A user name and the file that holds its password.
    Password {
        /// User name.
        username: String,
        /// File with the password; white space at its end does not count.
        password_file: PathBuf,
    },
    /// A user name and its password.
    Given {
        /// User name.
        username: String,
        /// Password.
        password: SecretString,
    },
    /// A mounted Secret: `username` and `password`, or `.dockerconfigjson`.
    Folder(PathBuf),
}

/// A registry that images come from, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Host as references name it, with its port if any.
    pub host: String,
    /// URLs to try, in order, without a slash at the end; never empty.
    pub endpoints: Vec<String>,
    /// PEM certificates to trust beside the public ones.
    pub ca: Option<String>,
    /// Where the credentials are.
    pub credentials: Credentials,
    /// Do not verify the certificate.
    pub insecure_skip_verify: bool,
    /// Where the credentials of mirrors are, by their URL as `endpoints` has it.
    pub mirror_credentials: Vec<(String, Credentials)>,
    /// Further hosts of token servers that may see the credentials.
    pub realms: Vec<String>,
    /// Whether redirects to private addresses are followed though the upstream's own is public.
    pub allow_private_redirects: bool,
}

impl UpstreamSettings {
    /// An upstream of these endpoints that wants no credentials.
    pub fn anonymous(host: &str, endpoints: &[String]) -> Self {
        Self {
            host: host.to_ascii_lowercase(),
            endpoints: endpoints.to_vec(),
            ca: None,
            credentials: Credentials::Anonymous,
            insecure_skip_verify: false,
            mirror_credentials: Vec::new(),
            realms: Vec::new(),
            allow_private_redirects: false,
        }
    }
}

impl Credentials {
    fn of(secret: &str, username: &str, password_file: &str) -> Self {
        if !secret.is_empty() {
            Self::Folder(Path::new("/etc/holdfast/upstreams").join(secret))
        } else if username.is_empty() {
            Self::Anonymous
        } else {
            Self::Password {
                username: username.to_owned(),
                password_file: PathBuf::from(password_file),
            }
        }
    }
}

/// The settings of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrySettings {
    /// Listener of the distribution API.
    pub listen: SocketAddr,
    /// TLS of that listener; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Listener of the internal API; `None`: runs alone.
    pub internal_listen: Option<SocketAddr>,
    /// Mutual TLS of the internal API; `None`: runs alone.
    pub internal_tls: Option<TlsFiles>,
    /// DNS name under which the replicas find each other; `None`: runs alone.
    pub internal_service: Option<String>,
    /// Listener of probes and metrics; `None`: there are none.
    pub admin_listen: Option<SocketAddr>,
    /// Folder of the content store.
    pub data: PathBuf,
    /// The node credential and the upload secret of a release; `None`: runs alone.
    pub auth: Option<AuthFiles>,
    /// Who may pull and push beside the nodes; `None`: everybody may do both.
    pub access: Option<AccessSettings>,
    /// Without `auth`: what signs upload sessions, the first line signs and every line is taken;
    /// `None`: a secret of this process alone.
    pub upload_secret: Option<PathBuf>,
    /// Without `auth` and `upload_secret`: what signs upload sessions.
    pub upload_secret_text: Option<SecretString>,
    /// What clients may write, for all of them alike.
    pub writes: Writes,
    /// The upstream of pulls that name none; the registry is its mirror.
    pub mirror_of: Option<String>,
    /// Whether a controller requests images: then an upstream that is not listed may be named a
    /// moment after the pull.
    pub has_controller: bool,
    /// Upstreams that need more than their name; all of them may be filled on a pull.
    pub upstreams: Vec<UpstreamSettings>,
    /// `sources` of the values: the upstreams that are copied at all; empty: every one.
    pub sources: Vec<String>,
    /// Whether only `upstreams` are copied.
    pub only_listed_upstreams: bool,
    /// The proxy for upstreams.
    pub proxy: Proxy,
    /// Limits on what clients may use.
    pub limits: Limits,
    /// Limits on the use of the uplink.
    pub uplink: Uplink,
    /// Which requests are logged.
    pub access_log: AccessLog,
    /// Notifications of pushes, pulls, mounts and deletes.
    pub notifications: Vec<NotificationSettings>,
    /// How stored content is hashed again.
    pub scrub: Scrub,
    /// Time that requests under way get when the process is told to end.
    pub drain: Duration,
}

/// Time that requests under way get, shorter than the pod's grace period.
const DRAIN: Duration = Duration::from_secs(45);

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl RegistrySettings {
    /// The settings of a replica in a release: ports, folders and names are those of
    /// `docs/reference/objects.md`.
    pub fn from_config(config: &Config) -> Self {
        let Config { release, values } = config;
        let auth = Path::new("/etc/holdfast/auth");
        Self {
            listen: everywhere(5000),
            tls: Some(TlsFiles::in_folder(Path::new("/etc/holdfast/tls"))),
            internal_listen: Some(everywhere(5001)),
            internal_tls: Some(TlsFiles::in_folder(Path::new("/etc/holdfast/tls"))),
            internal_service: Some(format!(
                "{}-registry-internal.{}.svc",
                release.fullname, release.namespace
            )),
            admin_listen: Some(everywhere(9090)),
            data: PathBuf::from("/var/lib/holdfast"),
            auth: Some(AuthFiles {
                upload_secret: auth.join("upload-secret"),
                node_username: auth.join("node-username"),
                node_password: auth.join("node-password"),
            }),
            access: Some(values.registry.access.settings()),
            upload_secret: None,
            upload_secret_text: None,
            writes: Writes::All,
            mirror_of: None,
            has_controller: true,
            upstreams: values
                .upstreams
                .iter()
                .map(UpstreamSettings::from)
                .collect(),
            sources: values.sources.clone(),
            only_listed_upstreams: values.only_listed_upstreams,
            proxy: values.proxy.clone(),
            limits: values.registry.limits.clone(),
            uplink: values.uplink.clone(),
            access_log: values.registry.access_log.clone(),
            notifications: rendered(&values.registry.notifications),
            scrub: values.registry.scrub.clone(),
            drain: DRAIN,
        }
    }
}

fn rendered(notifications: &Notifications) -> Vec<NotificationSettings> {
    let endpoints = notifications.endpoints.iter().enumerate();
    endpoints
        .map(|(place, endpoint)| NotificationSettings::rendered(place, endpoint))
        .collect()
}

impl From<&Upstream> for UpstreamSettings {
    fn from(upstream: &Upstream) -> Self {
        let scheme = if upstream.plain_http { "http" } else { "https" };
        let address = if upstream.host == "docker.io" {
            "registry-1.docker.io"
        } else {
            &upstream.host
        };
        let own = if upstream.endpoint.is_empty() {
            format!("{scheme}://{address}")
        } else {
            upstream.endpoint.clone()
        };
        let endpoints = upstream
            .mirrors
            .iter()
            .chain([&own])
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        let credentials = Credentials::of(
            &upstream.credentials_secret,
            &upstream.username,
            &upstream.password_file,
        );
        let mirror_credentials = upstream.mirror_credentials.iter().map(|of| {
            let credentials =
                Credentials::of(&of.credentials_secret, &of.username, &of.password_file);
            (of.mirror.trim_end_matches('/').to_owned(), credentials)
        });
        Self {
            host: upstream.host.to_ascii_lowercase(),
            endpoints,
            ca: Some(upstream.ca.clone()).filter(|pem| !pem.trim().is_empty()),
            credentials,
            insecure_skip_verify: upstream.insecure_skip_verify,
            mirror_credentials: mirror_credentials.collect(),
            realms: upstream.realms.clone(),
            allow_private_redirects: upstream.allow_private_redirects,
        }
    }
}

/// The configuration file of a registry that runs alone: `holdfast registry --config FILE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Standalone {
    /// Listener of the distribution API.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Listener of probes and metrics; empty: none.
    #[schemars(with = "Option<String>")]
    pub admin_listen: Option<SocketAddr>,
    /// Folder of the content store.
    pub data: PathBuf,
    /// Certificate and key; without them the registry speaks plain HTTP.
    pub tls: Option<StandaloneTls>,
    /// Further processes that serve the same folder; without it this one is alone.
    pub replicas: Option<Replicas>,
    /// Who may pull and push. Without it everyone may do both; with it, only the clients that it
    /// lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "StandaloneAccess")]
    pub access: Option<StandaloneAccess>,
    /// Registries that may be filled on a pull. The default names the well-known public ones.
    pub upstreams: Vec<Upstream>,
    /// The proxy for upstreams.
    pub proxy: Proxy,
    /// Limits on what clients may use.
    pub limits: Limits,
    /// Limits on the use of the uplink.
    pub uplink: Uplink,
    /// The access log: one line per request.
    pub access_log: AccessLog,
    /// Notifications of pushes, pulls, mounts and deletes.
    pub notifications: Notifications,
    /// The background check of the volume for damage.
    pub scrub: Scrub,
    /// Logs.
    pub logging: Logging,
}

/// Certificate and key of a registry that runs alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandaloneTls {
    /// File with the PEM chain.
    pub certificate: PathBuf,
    /// File with the PEM key.
    pub key: PathBuf,
}

impl Default for Standalone {
    fn default() -> Self {
        let public = [
            "docker.io",
            "ghcr.io",
            "quay.io",
            "registry.k8s.io",
            "gcr.io",
            "mcr.microsoft.com",
            "public.ecr.aws",
        ];
        Self {
            listen: here(5000),
            admin_listen: None,
            data: PathBuf::from("holdfast-data"),
            tls: None,
            replicas: None,
            access: None,
            upstreams: public
                .iter()
                .map(|host| Upstream {
                    host: (*host).to_owned(),
                    ..Upstream::default()
                })
                .collect(),
            proxy: Proxy::default(),
            limits: Limits::default(),
            uplink: Uplink::default(),
            access_log: AccessLog::default(),
            notifications: Notifications::default(),
            scrub: Scrub::default(),
            logging: Logging {
                format: crate::LogFormat::Text,
                level: crate::LogLevel::Info,
            },
        }
    }
}

impl Standalone {
    /// Reads and checks the file at `path`.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::parse(&document::read(path)?)
    }

    /// Reads and checks a document. An empty text means the defaults.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: Option<serde_json::Value> = yaml::from_str(text)?;
        let raw = raw.unwrap_or_else(|| serde_json::json!({}));
        crate::validate::document(crate::schema::standalone_validator(), &raw, "")?;
        let standalone: Option<Self> = yaml::from_str(text)?;
        let standalone = standalone.unwrap_or_default();
        let mut problems = Vec::new();
        let mut refuse = |path: &str, message| {
            let path = path.to_owned();
            problems.push(Problem { path, message });
        };
        if let Some(access) = &standalone.access {
            access.check("access", standalone.tls.is_some(), &mut refuse);
        }
        Home::Alone.check(&standalone.upstreams, &mut refuse);
        standalone.limits.check("limits", &mut refuse);
        if problems.is_empty() {
            Ok(standalone)
        } else {
            Err(Error::Invalid(problems))
        }
    }

    /// The settings of the registry.
    pub fn settings(&self) -> RegistrySettings {
        RegistrySettings {
            listen: self.listen,
            tls: self
                .tls
                .clone()
                .map(|StandaloneTls { certificate, key }| TlsFiles {
                    certificate,
                    key,
                    ca: None,
                }),
            internal_listen: self.replicas.as_ref().map(|replicas| replicas.listen),
            internal_tls: self
                .replicas
                .as_ref()
                .map(|replicas| TlsFiles::in_folder(&replicas.tls_folder)),
            internal_service: self.replicas.as_ref().map(|replicas| replicas.name.clone()),
            admin_listen: self.admin_listen,
            data: self.data.clone(),
            auth: None,
            upload_secret: self
                .replicas
                .as_ref()
                .map(|replicas| replicas.upload_secret_file.clone()),
            access: self.access.as_ref().map(StandaloneAccess::settings),
            upload_secret_text: None,
            writes: Writes::All,
            mirror_of: None,
            has_controller: false,
            upstreams: self.upstreams.iter().map(UpstreamSettings::from).collect(),
            sources: Vec::new(),
            only_listed_upstreams: false,
            proxy: self.proxy.clone(),
            limits: self.limits.clone(),
            uplink: self.uplink.clone(),
            access_log: self.access_log.clone(),
            notifications: self
                .notifications
                .endpoints
                .iter()
                .map(NotificationSettings::from)
                .collect(),
            scrub: self.scrub.clone(),
            drain: DRAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Release, Values};

    fn upstream(yaml: &str) -> UpstreamSettings {
        UpstreamSettings::from(&yaml::from_str::<Upstream>(yaml).unwrap())
    }

    #[test]
    fn a_registry_alone_has_sane_defaults() {
        let settings = Standalone::parse("").unwrap().settings();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:5000");
        assert_eq!(
            (settings.tls, settings.auth, settings.internal_listen),
            (None, None, None)
        );
        assert!(
            settings
                .upstreams
                .iter()
                .any(|upstream| upstream.host == "docker.io")
        );
    }

    #[test]
    fn a_file_says_what_differs() {
        let text = "listen: '[::1]:8443'\ndata: /srv/images\ntls: {certificate: a.crt, key: a.key}\nlimits: {holdSeconds: 1}";
        let settings = Standalone::parse(text).unwrap().settings();
        assert_eq!(settings.listen.port(), 8443);
        assert_eq!(settings.data, Path::new("/srv/images"));
        assert_eq!(settings.tls.unwrap().key, Path::new("a.key"));
        assert_eq!(settings.limits.hold_seconds, 1);
    }

    #[test]
    fn a_wrong_file_is_refused_by_key() {
        for (text, key) in [
            (
                "replicas: {listen: '127.0.0.1:5001', name: a, tlsFolder: /t}",
                "replicas",
            ),
            ("listens: 1", "listens"),
            ("upstreams: [{endpoint: 'https://a'}]", "host"),
            ("limits: {holdSeconds: 9999}", "limits.holdSeconds"),
            ("limits: {manifestBytes: 17Mi}", "limits.manifestBytes"),
            ("limits: {manifestBytes: 16777217}", "limits.manifestBytes"),
            ("limits: {manifestBytes: 0}", "limits.manifestBytes"),
            ("listen: nowhere", "listen"),
        ] {
            let message = Standalone::parse(text).unwrap_err().to_string();
            assert!(message.contains(key), "{text}: {message}");
        }
    }

    #[test]
    fn mirrors_come_first_and_the_hub_has_its_own_address() {
        let check = |yaml: &str, expected: &[&str]| assert_eq!(upstream(yaml).endpoints, expected);
        check("{host: quay.io}", &["https://quay.io"]);
        check("{host: docker.io}", &["https://registry-1.docker.io"]);
        check("{host: 'a:5000', plainHttp: true}", &["http://a:5000"]);
        check(
            "{host: a, endpoint: 'https://b/', mirrors: ['https://c/d/']}",
            &["https://c/d", "https://b"],
        );
    }

    #[test]
    fn credentials_come_from_files_only() {
        let check =
            |yaml: &str, expected: Credentials| assert_eq!(upstream(yaml).credentials, expected);
        check("{host: a}", Credentials::Anonymous);
        check(
            "{host: a, credentialsSecret: key}",
            Credentials::Folder(PathBuf::from("/etc/holdfast/upstreams/key")),
        );
        check(
            "{host: a, username: u, passwordFile: /p}",
            Credentials::Password {
                username: "u".to_owned(),
                password_file: PathBuf::from("/p"),
            },
        );
        let mirrored = upstream(
            "{host: a, mirrors: ['https://m/'], mirrorCredentials: [{mirror: 'https://m/', credentialsSecret: key}], realms: [auth.b]}",
        );
        assert_eq!(
            mirrored.mirror_credentials,
            [(
                "https://m".to_owned(),
                Credentials::Folder(PathBuf::from("/etc/holdfast/upstreams/key"))
            )]
        );
        assert_eq!(mirrored.credentials, Credentials::Anonymous);
        assert_eq!(mirrored.realms, ["auth.b"]);
    }

    #[test]
    fn a_replica_in_a_release_uses_the_contracts_ports_and_folders() {
        let release = Release {
            name: "edge".to_owned(),
            namespace: "hf".to_owned(),
            fullname: "edge-holdfast".to_owned(),
            version: "1".to_owned(),
        };
        let settings = RegistrySettings::from_config(&Config {
            release,
            values: Values::default(),
        });
        assert_eq!(settings.listen.port(), 5000);
        assert_eq!(
            settings.internal_listen.map(|address| address.port()),
            Some(5001)
        );
        assert_eq!(
            settings.internal_service.as_deref(),
            Some("edge-holdfast-registry-internal.hf.svc")
        );
        assert_eq!(
            settings.tls.unwrap().ca.as_deref(),
            Some(Path::new("/etc/holdfast/tls/ca.crt"))
        );
        assert!(settings.upstreams.is_empty());
    }
}
