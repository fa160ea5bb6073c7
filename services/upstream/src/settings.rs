//! Where an upstream is reached, and all time limits of requests to it.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use holdfast_config::Credentials;
use holdfast_core::Host;

use super::Login;

/// The limits of upstream requests, of time unless it says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until a connection is established.
    pub connect: Duration,
    /// Until the answer's headers are there.
    pub headers: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// A body that brings less than [`MIN_BYTES`] within this time is as good as stalled.
    pub crawl: Duration,
    /// For the whole revalidation of a tag that is local.
    pub revalidate: Duration,
    /// For all pages of a list together.
    pub list: Duration,
    /// For how long an endpoint that sent wrong bytes is not asked for that digest.
    pub quarantine: Duration,
    /// How long the breaker stays open at first; doubles up to [`Self::breaker_max`].
    pub breaker_min: Duration,
    /// The longest time that the breaker stays open without a probe.
    pub breaker_max: Duration,
    /// Largest manifest that is taken, bytes: `registry.limits.manifestBytes`.
    pub manifest_bytes: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            headers: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            crawl: Duration::from_secs(60),
            revalidate: Duration::from_millis(500),
            list: Duration::from_secs(5),
            quarantine: Duration::from_secs(60),
            breaker_min: Duration::from_secs(5),
            breaker_max: Duration::from_secs(300),
            manifest_bytes: holdfast_config::Limits::default().manifest_bytes.bytes(),
        }
    }
}

/// What a body must bring within [`Timeouts::crawl`], bytes: 1 KiB a second, far below any link
/// that copies images.
pub(super) const MIN_BYTES: u64 = 60 << 10;
/// Largest answer of a token server, bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Redirects of a token server that one request follows.
pub(super) const MAX_TOKEN_REDIRECTS: usize = 3;
/// Redirects that one request follows.
pub(super) const MAX_REDIRECTS: usize = 5;
/// The longest `Retry-After` that is believed.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The URL of an unconfigured host: itself, over TLS.
pub(super) fn default_endpoint(host: &Host) -> String {
    if host.is_docker_hub() {
        "https://registry-1.docker.io".to_owned()
    } else {
        format!("https://{host}")
    }
}

/// The credentials that the settings name for a host, read now so that a rotated Secret counts at
/// once.
pub(super) async fn logins(credentials: &Credentials, host: &str) -> Vec<Login> {
    let read = async |path: &Path| {
        tokio::fs::read_to_string(path)
            .await
            .ok()
            .map(|text| text.trim_end().to_owned())
    };
    match credentials {
        Credentials::Anonymous => Vec::new(),
        Credentials::Given { username, password } => {
            vec![Login::new(username, password.expose())]
        }
        Credentials::Password {
            username,
            password_file,
        } => read(password_file)
            .await
            .map(|password| Login::new(username, &password))
            .into_iter()
            .collect(),
        Credentials::Folder(folder) => {
            if let (Some(username), Some(password)) = (
                read(&folder.join("username")).await,
                read(&folder.join("password")).await,
            ) {
                return vec![Login::new(&username, &password)];
            }
            let Ok(payload) = tokio::fs::read(folder.join(".dockerconfigjson")).await else {
                return Vec::new();
            };
            let secret = holdfast_core::credentials::PullSecret::from_dockerconfigjson(&payload);
            let reference = holdfast_core::Reference::parse(&format!("{host}/any/repository"));
            match (secret, reference) {
                (Ok(secret), Ok(reference)) => {
                    holdfast_core::credentials::candidates([secret], &reference)
                        .iter()
                        .map(|c| match &c.identity_token {
                            Some(token) => Login::identity(&c.username, token),
                            None => Login::new(&c.username, &c.password),
                        })
                        .collect()
                }
                _ => Vec::new(),
            }
        }
    }
}

/// A duration in whole seconds, rounded up.
pub fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The pause where `Retry-After` tells none that can be read, and the least that a date tells.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Reads `Retry-After`, seconds or a date, capped; a second where it is absent or neither.
pub(super) fn retry_after(value: Option<&str>, now: SystemTime) -> Duration {
    told_pause(value, now).unwrap_or(LEAST_PAUSE)
}

/// The same; `None` where it is absent or neither.
pub(super) fn told_pause(value: Option<&str>, now: SystemTime) -> Option<Duration> {
    let value = value?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let left = SystemTime::from(date.timestamp()).duration_since(now);
    Some(left.unwrap_or_default().clamp(LEAST_PAUSE, MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_in_seconds_or_as_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expect) in [
            (None, 1),
            (Some("7"), 7),
            (Some(" 7 "), 7),
            (Some("0"), 0),
            (Some("100000"), 300),
            (Some("99999999999999999999999"), 1),
            (Some("Sun, 06 Nov 1994 08:50:07 GMT"), 30),
            (Some("Sun, 06 Nov 1994 08:49:00 GMT"), 1),
            (Some("Mon, 06 Nov 1995 08:49:37 GMT"), 300),
            (Some("soon"), 1),
            (Some(""), 1),
        ] {
            let expect = Duration::from_secs(expect);
            assert_eq!(retry_after(value, now), expect, "{value:?}");
        }
        for value in [None, Some("soon"), Some(""), Some("-1")] {
            assert_eq!(told_pause(value, now), None, "{value:?}");
        }
    }
}
