//! Settings for the operation of a registry: access log, notifications and scrubbing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// The registry's access log: one line a request, under the log target `access`, without queries
/// and credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessLog {
    /// Which requests: `none`; `failures`; `writes`: pushes and deletes, and failures; `all`.
    pub mode: AccessLogMode,
    /// With `all`: log one in this many successful pulls.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub sample: u32,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            mode: AccessLogMode::Writes,
            sample: 1,
        }
    }
}

/// Which requests the access log names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AccessLogMode {
    None,
    Failures,
    Writes,
    All,
}

/// Notifications of pushes, pulls, mounts and deletes, in the format of distribution (the CNCF
/// registry).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Notifications {
    /// Endpoints that receive events; each has its own queue.
    pub endpoints: Vec<NotificationEndpoint>,
}

/// One receiver of events.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["name", "url"]))]
pub struct NotificationEndpoint {
    /// Name in metrics and logs. Required.
    #[schemars(regex(pattern = r"^[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$"))]
    pub name: String,
    /// URL that receives the events. Required. It appears in a ConfigMap and in logs, so it must
    /// not contain a token.
    #[schemars(regex(pattern = r"^https?://[^/?#@\s]+(/\S*)?$"))]
    pub url: String,
    /// Headers of each request. The chart puts their values into a Secret; `headersSecret` takes
    /// them from one of yours.
    pub headers: BTreeMap<String, String>,
    /// Name of a Secret in the release's namespace; each key is a header's name.
    #[schemars(regex(pattern = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub headers_secret: String,
    /// PEM certificates to trust for this endpoint, beside the public ones.
    #[schemars(regex(pattern = r"^\s*$|-----BEGIN CERTIFICATE-----"))]
    pub ca: String,
    /// Seconds to wait for an answer.
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u16,
    /// Consecutive failures after which the endpoint is skipped for `backoffSeconds`.
    #[schemars(range(min = 1, max = 1000))]
    pub threshold: u16,
    /// Seconds between attempts once `threshold` is reached; doubles up to a minute.
    #[schemars(range(min = 1, max = 600))]
    pub backoff_seconds: u16,
    /// Longest queue of events; further ones are dropped and counted.
    #[schemars(range(min = 1, max = 100_000))]
    pub queue_events: u32,
    /// Media types of targets that are not reported.
    pub ignore_media_types: Vec<String>,
    /// Actions that are not reported.
    pub ignore_actions: Vec<NotificationAction>,
}

impl std::fmt::Debug for NotificationEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotificationEndpoint")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Default for NotificationEndpoint {
    fn default() -> Self {
        Self {
            name: String::new(),
            url: String::new(),
            headers: BTreeMap::new(),
            headers_secret: String::new(),
            ca: String::new(),
            timeout_seconds: 5,
            threshold: 5,
            backoff_seconds: 1,
            queue_events: 1000,
            ignore_media_types: Vec::new(),
            ignore_actions: Vec::new(),
        }
    }
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum NotificationAction {
    Pull,
    Push,
    Mount,
    Delete,
}

impl NotificationAction {
    /// The word of the event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Mount => "mount",
            Self::Delete => "delete",
        }
    }
}

/// One receiver of events, parsed. Does not print its headers.
#[derive(Clone, PartialEq, Eq)]
pub struct NotificationSettings {
    /// Name in metrics and logs.
    pub name: String,
    /// Where events are posted to.
    pub url: String,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// Mounted Secrets with further headers, one a file.
    pub headers_folders: Vec<PathBuf>,
    /// PEM certificates to trust beside the public ones.
    pub ca: Option<String>,
    /// Time until an answer must be there.
    pub timeout: Duration,
    /// Consecutive failures after which the endpoint is skipped for a while.
    pub threshold: u32,
    /// Time between attempts then.
    pub backoff: Duration,
    /// Events that wait at most.
    pub queue: usize,
    /// Media types of targets that are not reported.
    pub ignore_media_types: Vec<String>,
    /// Actions that are not reported.
    pub ignore_actions: Vec<NotificationAction>,
}

impl std::fmt::Debug for NotificationSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotificationSettings")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl From<&NotificationEndpoint> for NotificationSettings {
    fn from(endpoint: &NotificationEndpoint) -> Self {
        let folder = Path::new("/etc/holdfast/notifications").join(&endpoint.headers_secret);
        Self {
            name: endpoint.name.clone(),
            url: endpoint.url.clone(),
            headers: endpoint.headers.clone().into_iter().collect(),
            headers_folders: (!endpoint.headers_secret.is_empty())
                .then_some(folder)
                .into_iter()
                .collect(),
            ca: Some(endpoint.ca.clone()).filter(|pem| !pem.trim().is_empty()),
            timeout: Duration::from_secs(endpoint.timeout_seconds.into()),
            threshold: endpoint.threshold.into(),
            backoff: Duration::from_secs(endpoint.backoff_seconds.into()),
            queue: usize::try_from(endpoint.queue_events).unwrap_or(usize::MAX),
            ignore_media_types: endpoint.ignore_media_types.clone(),
            ignore_actions: endpoint.ignore_actions.clone(),
        }
    }
}

/// Where the chart mounts the values of headers, a folder for each endpoint that has some.
const HEADERS_OF_VALUES: &str = "/etc/holdfast/notification-headers";

impl NotificationSettings {
    /// Of the endpoint at a place of the list, as the chart renders it: the ConfigMap names the
    /// headers, their values are mounted.
    pub(crate) fn rendered(place: usize, endpoint: &NotificationEndpoint) -> Self {
        let mut settings = Self::from(endpoint);
        if !settings.headers.is_empty() {
            settings.headers.clear();
            let folder = Path::new(HEADERS_OF_VALUES).join(place.to_string());
            settings.headers_folders.insert(0, folder);
        }
        settings
    }
}

/// The background check of stored content, which finds damage before a pull does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Scrub {
    /// Bytes per second that all replicas together read for it. 0: off.
    pub bytes_per_second: ByteSize,
    /// Hours between the starts of two full passes.
    #[schemars(range(min = 1, max = 8760))]
    pub every_hours: u16,
}

impl Default for Scrub {
    fn default() -> Self {
        Self {
            bytes_per_second: ByteSize::from_bytes(8 << 20),
            every_hours: 168,
        }
    }
}
