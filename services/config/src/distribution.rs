//! The configuration file of distribution (the CNCF registry), taken as it is: mapped to our
//! settings where it says something that exists here, refused by key and with the reason where it
//! would have to do more, and noted where it changes nothing.
//!
//! Rules are those of distribution's reference of version 0.1, with overrides by `REGISTRY_…` in
//! the environment.

mod http;
mod section;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::{
    AccessAction, AccessLog, AccessLogMode, AccessRule, AccessSettings, Credentials, Error,
    LogFormat, LogLevel, Logging, NotificationAction, NotificationSettings, RegistrySettings,
    Result, RsaAlgorithm, SecretString, Standalone, TokenSettings, UpstreamSettings, Writes, yaml,
};
use section::{Findings, Section, overlay};

/// What a file of distribution means here.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// The settings of the registry.
    pub settings: RegistrySettings,
    /// Logs.
    pub logging: Logging,
    /// What the file says and what changes nothing here, one line a key.
    pub notes: Vec<String>,
}

/// The sections of the reference.
const SECTIONS: [&str; 18] = [
    "version",
    "log",
    "loglevel",
    "storage",
    "auth",
    "middleware",
    "reporting",
    "http",
    "notifications",
    "redis",
    "health",
    "proxy",
    "compatibility",
    "validation",
    "policy",
    "catalog",
    "tags",
    "profiling",
];

const OTHER_STORAGE: [&str; 8] = [
    "s3", "s3aws", "azure", "gcs", "swift", "oss", "rados", "inmemory",
];

impl Distribution {
    /// Whether a document is such a file: it has a version and says where to store.
    pub fn is_one(text: &str) -> bool {
        let document: Option<Value> = yaml::from_str(text).ok();
        document.is_some_and(|document| {
            document.get("version").is_some() && document.get("storage").is_some()
        })
    }

    /// Reads a document, with the process's environment on top.
    pub fn of_process(text: &str) -> Result<Self> {
        let environment = std::env::vars_os()
            .filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
        Self::parse(text, environment)
    }

    /// Reads a document, with `environment` on top.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let mut document: Value = yaml::from_str(text)?;
        let mut findings = Findings::default();
        let found = &mut findings;
        overlay(&mut document, &SECTIONS, environment, found);
        let mut root = Section::root(document, found);
        version(&mut root, found);
        let mut settings = Standalone {
            upstreams: Vec::new(),
            ..Standalone::default()
        }
        .settings();
        // What distribution does without being told.
        settings.data = PathBuf::from("/var/lib/registry");
        settings.writes = Writes::NoDeletes;
        let logging = log(&mut root, &mut settings, found);
        storage(&mut root, &mut settings, found);
        http::read(&mut root, &mut settings, found);
        auth(&mut root, &mut settings, found);
        notifications(&mut root, &mut settings, found);
        proxy(&mut root, &mut settings, found);
        rest(&mut root, found);
        root.end(found);
        if findings.problems.is_empty() {
            Ok(Self {
                settings,
                logging,
                notes: findings.notes,
            })
        } else {
            Err(Error::Invalid(findings.problems))
        }
    }
}

fn version(root: &mut Section, found: &mut Findings) {
    match root.text("version", found).as_deref() {
        Some("0.1") => {}
        Some(other) => found.refuse("version", format!("{other} is not known, only 0.1 is")),
        None => found.refuse("version", "is missing; it is 0.1"),
    }
}

fn log(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) -> Logging {
    let mut log = root.section("log", found);
    let level = |text: String, path: &str, found: &mut Findings| match text.as_str() {
        "error" | "fatal" | "panic" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => {
            found.refuse(path, "is error, warn, info or debug");
            LogLevel::Info
        }
    };
    let old = root
        .text("loglevel", found)
        .map(|text| level(text, "loglevel", found));
    let new = log
        .text("level", found)
        .map(|text| level(text, "log.level", found));
    let format = match log.text("formatter", found).as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json" | "logstash") => LogFormat::Json,
        Some(_) => {
            found.refuse("log.formatter", "is text, json or logstash");
            LogFormat::Text
        }
    };
    log.ignore("fields", "lines carry fields of their own", found);
    log.ignore("reportcaller", "lines name their module", found);
    log.unsupported(
        "hooks",
        "no mail is sent; watch the log or the metrics",
        found,
    );
    let mut access = log.section("accesslog", found);
    let disabled = access.flag("disabled", found).unwrap_or(false);
    access.ignore("formatter", "the access log has the log's format", found);
    access.end(found);
    log.end(found);
    settings.access_log = AccessLog {
        mode: if disabled {
            AccessLogMode::None
        } else {
            AccessLogMode::All
        },
        sample: 1,
    };
    Logging {
        format,
        level: new.or(old).unwrap_or(LogLevel::Info),
    }
}

fn storage(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let mut storage = root.section("storage", found);
    for driver in OTHER_STORAGE {
        if storage.has(driver) {
            storage.take(driver);
            found.refuse(
                storage.path(driver),
                "is not supported: content lies on a file system (storage.filesystem)",
            );
        }
    }
    let mut filesystem = storage.section("filesystem", found);
    if let Some(folder) = filesystem.text("rootdirectory", found) {
        settings.data = PathBuf::from(folder);
    }
    filesystem.ignore(
        "maxthreads",
        "threads on the volume are bounded by themselves",
        found,
    );
    filesystem.end(found);
    let mut delete = storage.section("delete", found);
    if delete.flag("enabled", found) == Some(true) {
        settings.writes = Writes::All;
    }
    delete.end(found);
    let mut maintenance = storage.section("maintenance", found);
    let mut purging = maintenance.section("uploadpurging", found);
    let age = purging
        .duration("age", found)
        .unwrap_or(Duration::from_secs(168 * 3600));
    let hours = u16::try_from(age.as_secs().div_ceil(3600)).unwrap_or(u16::MAX);
    let off = purging.flag("enabled", found) == Some(false)
        || purging.flag("dryrun", found) == Some(true);
    settings.limits.upload_hours = if off { u16::MAX } else { hours.max(1) };
    purging.ignore("interval", "uploads are looked at every hour", found);
    purging.end(found);
    let mut readonly = maintenance.section("readonly", found);
    if readonly.flag("enabled", found) == Some(true) {
        settings.writes = Writes::None;
    }
    readonly.end(found);
    maintenance.end(found);
    storage.ignore(
        "redirect",
        "blobs are served from here, clients are never sent elsewhere",
        found,
    );
    let mut cache = storage.section("cache", found);
    for key in ["blobdescriptor", "layerinfo"] {
        match cache.text(key, found).as_deref() {
            Some("redis") => found.refuse(
                cache.path(key),
                "redis is not supported: look-ups need no cache, remove the key",
            ),
            Some(_) => found.note(&cache.path(key), "look-ups need no cache"),
            None => {}
        }
    }
    cache.ignore("blobdescriptorsize", "look-ups need no cache", found);
    cache.end(found);
    let mut tag = storage.section("tag", found);
    tag.ignore(
        "concurrencylimit",
        "look-ups are bounded by themselves",
        found,
    );
    tag.end(found);
    storage.end(found);
}

fn auth(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let mut auth = root.section("auth", found);
    let mut access = settings.access.take().unwrap_or_default();
    let certificates = access.client_ca.is_some();
    let mut is_on = certificates;
    auth.ignore("none", "that is what no entry means", found);
    auth.unsupported(
        "silly",
        "it lets everybody in; leave auth out for that",
        found,
    );
    if let Some(mut htpasswd) = auth.optional("htpasswd", found) {
        is_on = true;
        match htpasswd.text("path", found) {
            Some(path) => access.htpasswd = Some(PathBuf::from(path)),
            None => found.refuse(htpasswd.path("path"), "is missing"),
        }
        htpasswd.ignore("realm", "the challenge names the realm holdfast", found);
        htpasswd.end(found);
        access.rules.push(AccessRule {
            users: vec!["*".to_owned()],
            actions: everything(),
            ..AccessRule::default()
        });
    }
    if let Some(token) = auth.optional("token", found) {
        is_on = true;
        access.token = tokens(token, found);
    }
    if certificates {
        access.rules.push(AccessRule {
            certificates: vec!["*".to_owned()],
            actions: everything(),
            ..AccessRule::default()
        });
        if access.htpasswd.is_some() || access.token.is_some() {
            found.refuse(
                "http.tls.clientcas",
                "is not supported beside auth: here either a certificate or a login is asked for, and not both",
            );
        }
    }
    auth.end(found);
    settings.access = is_on.then_some(access);
}

fn everything() -> Vec<AccessAction> {
    vec![AccessAction::Pull, AccessAction::Push, AccessAction::Delete]
}

fn tokens(mut token: Section, found: &mut Findings) -> Option<TokenSettings> {
    let mut required = |key: &'static str| {
        let value = token.text(key, found);
        if value.is_none() {
            found.refuse(token.path(key), "is missing");
        }
        value.unwrap_or_default()
    };
    let (realm, service, issuer) = (required("realm"), required("service"), required("issuer"));
    let keys = match (
        token.text("jwks", found),
        token.text("rootcertbundle", found),
    ) {
        (Some(jwks), None) => jwks,
        (None, Some(bundle)) => bundle,
        (Some(_), Some(_)) => {
            found.refuse(
                token.path("rootcertbundle"),
                "contradicts jwks; give the file that holds the keys",
            );
            return None;
        }
        (None, None) => {
            found.refuse(token.path("rootcertbundle"), "is missing, and so is jwks");
            return None;
        }
    };
    let algorithms = token.texts("signingalgorithms", found);
    let rsa = algorithms.iter().find_map(|name| match name.as_str() {
        "RS256" => Some(RsaAlgorithm::RS256),
        "RS384" => Some(RsaAlgorithm::RS384),
        "RS512" => Some(RsaAlgorithm::RS512),
        "PS256" => Some(RsaAlgorithm::PS256),
        _ => None,
    });
    if algorithms.len() > 1 {
        found.note(
            &token.path("signingalgorithms"),
            "each key is taken for one algorithm; RSA keys that name none for the first of RS256, RS384, RS512 and PS256",
        );
    }
    token.unsupported("autoredirect", "give the realm's URL", found);
    token.ignore("autoredirectpath", "autoredirect is not supported", found);
    token.end(found);
    Some(TokenSettings {
        keys: PathBuf::from(keys),
        realm,
        service,
        issuer,
        rsa_algorithm: rsa.unwrap_or_default(),
    })
}

fn notifications(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let mut notifications = root.section("notifications", found);
    let mut events = notifications.section("events", found);
    events.ignore(
        "includereferences",
        "references of a manifest are always told",
        found,
    );
    events.end(found);
    for mut endpoint in notifications.sections("endpoints", found) {
        let name = endpoint.text("name", found);
        let url = endpoint.text("url", found);
        let disabled = endpoint.flag("disabled", found) == Some(true);
        let timeout = endpoint.duration("timeout", found);
        let threshold = endpoint.number("threshold", found);
        let backoff = endpoint.duration("backoff", found);
        let mut media_types = endpoint.texts("ignoredmediatypes", found);
        let mut ignore = endpoint.section("ignore", found);
        media_types.extend(ignore.texts("mediatypes", found));
        let mut actions = Vec::new();
        for word in ignore.texts("actions", found) {
            match word.as_str() {
                "pull" => actions.push(NotificationAction::Pull),
                "push" => actions.push(NotificationAction::Push),
                "mount" => actions.push(NotificationAction::Mount),
                "delete" => actions.push(NotificationAction::Delete),
                _ => found.refuse(
                    ignore.path("actions"),
                    format!("{word} is none of pull, push, mount and delete"),
                ),
            }
        }
        ignore.end(found);
        let headers = headers(&mut endpoint, found);
        let url = match url {
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => url,
            Some(_) => {
                found.refuse(endpoint.path("url"), "must begin with http:// or https://");
                String::new()
            }
            None => {
                found.refuse(endpoint.path("url"), "is missing");
                String::new()
            }
        };
        if name.is_none() {
            found.refuse(endpoint.path("name"), "is missing");
        }
        endpoint.end(found);
        if !disabled {
            settings.notifications.push(NotificationSettings {
                name: name.unwrap_or_default(),
                url,
                headers,
                headers_folders: Vec::new(),
                ca: None,
                timeout: timeout
                    .filter(|t| !t.is_zero())
                    .unwrap_or(Duration::from_secs(1)),
                threshold: u32::try_from(threshold.unwrap_or(10).max(1)).unwrap_or(u32::MAX),
                backoff: backoff
                    .filter(|t| !t.is_zero())
                    .unwrap_or(Duration::from_secs(1)),
                queue: 10_000,
                ignore_media_types: media_types,
                ignore_actions: actions,
            });
        }
    }
    notifications.end(found);
}

/// `headers: {Name: [value, …]}`.
fn headers(endpoint: &mut Section, found: &mut Findings) -> Vec<(String, String)> {
    let path = endpoint.path("headers");
    let map = match endpoint.take("headers") {
        Some(Value::Object(map)) => map,
        None | Some(Value::Null) => return Vec::new(),
        Some(_) => {
            found.refuse(path, "must be a mapping of names to lists of texts");
            return Vec::new();
        }
    };
    let mut headers = Vec::new();
    for (name, value) in map {
        let values = match value {
            Value::Array(values) => values,
            single => vec![single],
        };
        for value in values {
            match value {
                Value::String(text) => headers.push((name.clone(), text)),
                _ => found.refuse(format!("{path}.{name}"), "must be a list of texts"),
            }
        }
    }
    headers
}

/// A mirror of one upstream: pulls without an upstream's name mean that upstream, and pushes are
/// refused.
fn proxy(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let mut proxy = root.section("proxy", found);
    let url = proxy.text("remoteurl", found);
    let username = proxy.text("username", found);
    let password = proxy.text("password", found);
    proxy.unsupported(
        "exec",
        "no program is run for credentials; give username and password",
        found,
    );
    proxy.ignore(
        "ttl",
        "copies do not grow old, and tags are compared with the upstream whenever it answers",
        found,
    );
    let path = proxy.path("remoteurl");
    proxy.end(found);
    let Some(url) = url else {
        return;
    };
    let host = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .map(|(_, rest)| rest.trim_end_matches('/'))
        .filter(|host| !host.is_empty() && !host.contains(['/', '@', '?', '#']));
    let Some(host) = host else {
        found.refuse(
            path,
            "must be a URL with a host and no path, such as https://registry-1.docker.io",
        );
        return;
    };
    let host = match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        other => other,
    };
    let mut upstream = UpstreamSettings::anonymous(host, &[url.trim_end_matches('/').to_owned()]);
    if let Some(username) = username {
        upstream.credentials = Credentials::Given {
            username,
            password: SecretString::from(password.unwrap_or_default()),
        };
    }
    settings.uplink.revalidate_pulls = true;
    settings.mirror_of = Some(upstream.host.clone());
    settings.writes = Writes::None;
    settings.upstreams.push(upstream);
}

/// Sections that decide nothing here, or too much.
fn rest(root: &mut Section, found: &mut Findings) {
    root.unsupported("middleware", "there is none here", found);
    root.unsupported(
        "reporting",
        "nothing is reported to third parties; metrics are at http.debug.addr",
        found,
    );
    root.unsupported(
        "redis",
        "look-ups need no cache outside of the process; remove the section",
        found,
    );
    root.unsupported("policy", "there are no classes of repositories", found);
    root.unsupported("profiling", "metrics are at http.debug.addr", found);
    let mut health = root.section("health", found);
    health.ignore(
        "storagedriver",
        "the volume is always watched, see /readyz",
        found,
    );
    for key in ["file", "http", "tcp"] {
        health.unsupported(
            key,
            "readiness says whether this registry serves, and nothing else",
            found,
        );
    }
    health.end(found);
    let mut compatibility = root.section("compatibility", found);
    let mut schema1 = compatibility.section("schema1", found);
    if schema1.flag("enabled", found) == Some(true) {
        found.refuse(
            schema1.path("enabled"),
            "is not supported: manifests of schema 1 are not taken",
        );
    }
    schema1.ignore("trustkey", "manifests of schema 1 are not taken", found);
    schema1.ignore(
        "signingkeyfile",
        "manifests of schema 1 are not taken",
        found,
    );
    schema1.end(found);
    compatibility.end(found);
    let mut validation = root.section("validation", found);
    validation.ignore("enabled", "manifests are always checked", found);
    if validation.flag("disabled", found) == Some(true) {
        found.note("validation.disabled", "manifests are always checked");
    }
    let mut manifests = validation.section("manifests", found);
    let mut urls = manifests.section("urls", found);
    for key in ["allow", "deny"] {
        urls.unsupported(
            key,
            "URLs of foreign layers are neither fetched nor judged",
            found,
        );
    }
    urls.end(found);
    let mut indexes = manifests.section("indexes", found);
    indexes.ignore(
        "platforms",
        "an index may lack platforms: mirrors of one platform push it as it is",
        found,
    );
    indexes.ignore(
        "platformlist",
        "an index may lack platforms: mirrors of one platform push it as it is",
        found,
    );
    indexes.end(found);
    manifests.end(found);
    validation.end(found);
    let mut catalog = root.section("catalog", found);
    catalog.ignore(
        "maxentries",
        "a page of the catalog has at most 1000 entries",
        found,
    );
    catalog.end(found);
    let mut tags = root.section("tags", found);
    tags.ignore("maxtags", "a page of tags has at most 10000 entries", found);
    tags.end(found);
}

/// What a client certificate's CA becomes: see [`auth`].
fn client_ca(settings: &mut RegistrySettings, path: PathBuf) {
    settings.access = Some(AccessSettings {
        client_ca: Some(path),
        ..settings.access.take().unwrap_or_default()
    });
}

#[cfg(test)]
mod tests;
