//! What the controller asked of the API server, by the API server's own audit log, which records
//! the controller only.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Requests, by what they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Calls {
    /// `get pods`, `patch artifacts/status`, …
    pub(super) by_kind: BTreeMap<String, u64>,
    /// Those that the API server did not allow (401, 403), which the chart's roles should have.
    pub(super) forbidden: BTreeMap<String, u64>,
    /// Those that were told to come later (429).
    pub(super) throttled: u64,
}

impl Calls {
    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }

    /// The kinds, the most frequent first.
    pub(super) fn sorted(&self) -> Vec<(&str, u64)> {
        let mut kinds: Vec<_> = self
            .by_kind
            .iter()
            .map(|(kind, count)| (kind.as_str(), *count))
            .collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let event: Event = serde_json::from_str(line).context("a line of the audit log")?;
        // A watch counts when it begins; everything else when it has ended.
        let counts = match event.stage.as_str() {
            "ResponseStarted" => event.verb == "watch",
            "ResponseComplete" => event.verb != "watch",
            _ => false,
        };
        if !counts {
            return Ok(());
        }
        let what = match event.object {
            Some(object) if object.subresource.is_empty() => object.resource,
            Some(object) => format!("{}/{}", object.resource, object.subresource),
            None => event.uri,
        };
        let kind = format!("{} {what}", event.verb);
        match event.status.map_or(0, |status| status.code) {
            401 | 403 => *self.forbidden.entry(kind.clone()).or_default() += 1,
            429 => self.throttled += 1,
            _ => {}
        }
        *self.by_kind.entry(kind).or_default() += 1;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Event {
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    #[serde(rename = "objectRef")]
    object: Option<Object>,
    #[serde(rename = "responseStatus")]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// A log that grows.
pub(super) struct Audit {
    log: PathBuf,
    policy: PathBuf,
    read: u64,
}

impl Audit {
    /// A log in this folder of what one user does.
    pub(super) fn of(user: &str, folder: &Path) -> Result<Self> {
        let policy = folder.join("audit-policy.yaml");
        let text = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
             rules: [{{level: Metadata, users: ['{user}']}}, {{level: None}}]\n"
        );
        fs::write(&policy, text)?;
        Ok(Self {
            log: folder.join("audit.log"),
            policy,
            read: 0,
        })
    }

    /// What kube-apiserver is told.
    pub(super) fn arguments(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// What was asked since this was asked last.
    pub(super) fn since(&mut self) -> Result<Calls> {
        let mut file = File::open(&self.log).context("open the audit log")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may still be on its way.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        let mut calls = Calls::default();
        for line in text.lines().take(text.matches('\n').count()) {
            calls.take(line)?;
        }
        Ok(calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_once_and_watches_when_they_begin() {
        let mut calls = Calls::default();
        for line in [
            r#"{"stage":"ResponseStarted","verb":"watch","requestURI":"/api/v1/pods?watch=1","objectRef":{"resource":"pods"}}"#,
            r#"{"stage":"ResponseComplete","verb":"watch","requestURI":"/api/v1/pods?watch=1","objectRef":{"resource":"pods"}}"#,
            r#"{"stage":"ResponseComplete","verb":"patch","requestURI":"/x","objectRef":{"resource":"artifacts","subresource":"status"},"responseStatus":{"code":200}}"#,
            r#"{"stage":"ResponseComplete","verb":"patch","requestURI":"/x","objectRef":{"resource":"artifacts","subresource":"status"},"responseStatus":{"code":200}}"#,
            r#"{"stage":"ResponseComplete","verb":"list","requestURI":"/x","objectRef":{"resource":"jobs"},"responseStatus":{"code":403}}"#,
            r#"{"stage":"ResponseComplete","verb":"get","requestURI":"/version"}"#,
        ] {
            calls.take(line).unwrap();
        }
        assert_eq!(
            calls.sorted(),
            [
                ("patch artifacts/status", 2),
                ("get /version", 1),
                ("list jobs", 1),
                ("watch pods", 1)
            ]
        );
        assert_eq!(calls.total(), 5);
        assert_eq!(calls.forbidden["list jobs"], 1);
    }
}
