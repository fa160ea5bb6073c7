//! What a node agent reports of its node: which images the node holds, which pods may use them
//! without a pull, and which registry hosts others configured.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The port of the controller's API for node agents.
pub const PORT: u16 = 5002;
/// Where a node's report is posted: this and the node's name.
pub const PATH: &str = "/internal/v1/nodes/";
/// Where a node's last report is confirmed: [`PATH`], the node's name and this. The body is the
/// [`digest`] of the report; 404 asks for the whole report.
pub const CONFIRM: &str = "/confirm";
/// The common name in the client certificate of node agents.
pub const COMMON_NAME: &str = "holdfast-node-agent";
/// Image IDs in a report.
pub const MAX_IMAGES: usize = 2000;
/// Bytes of a report as JSON.
pub const MAX_BYTES: usize = 512 << 10;
/// Foreign hosts in a report.
pub const MAX_FOREIGN_HOSTS: usize = 200;
/// Bytes of a host with its port.
pub const MAX_HOST_BYTES: usize = 260;
/// Names with a tag of one image, and as many with a digest.
pub const MAX_NAMES: usize = 200;
/// Bytes of a name, a repository, a host, or a Secret with its namespace.
pub const MAX_NAME_BYTES: usize = 1024;
/// Repositories of a pull record.
pub const MAX_RECORD_ENTRIES: usize = 200;
/// Secrets of a repository of a pull record, and as many service accounts.
pub const MAX_RECORD_USERS: usize = 200;

/// The report of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The node's name.
    pub node: String,
    /// Name and version of the container runtime.
    pub runtime: String,
    /// Whether the kubelet keeps pull records (feature gate `KubeletEnsureSecretPulledImages`).
    pub gate: bool,
    /// The images that the runtime holds.
    pub image_ids: Vec<ReportedImage>,
    /// Hosts for which the runtime has a configuration that Holdfast did not write. `_default` is
    /// every host without one of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_hosts: Vec<String>,
    /// Whether images, names or hosts are left out. What is missing here then may still be on the
    /// node.
    #[serde(default)]
    pub truncated: bool,
}

/// An image ID on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedImage {
    /// The digest of its configuration.
    pub id: String,
    /// Its names with a tag, canonical.
    pub names: Vec<String>,
    /// Its names with the digest of a manifest, canonical.
    pub manifests: Vec<String>,
    /// Its pull record: who may use the image by a repository's name, without tag and digest.
    /// `None`: the kubelet never pulled the image.
    #[serde(default)]
    pub record: Option<BTreeMap<String, Users>>,
    /// Whether the kubelet began to pull one of its names and did not finish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub intent: bool,
}

/// The pods that may use an image by one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Users {
    /// All pods of the node.
    Any,
    /// Pods with one of these, each `NAMESPACE/NAME`.
    #[serde(rename_all = "camelCase")]
    Only {
        /// Pull secrets.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<String>,
        /// Service accounts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        service_accounts: Vec<String>,
    },
}

/// What a report has too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {0} in the report, or too long ones")]
pub struct TooMany(pub &'static str);

impl NodeReport {
    /// Whether the report is within the limits. Agents leave out what is over them.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<(), TooMany> {
        let limit = |what, count: usize, most| (count <= most).then_some(()).ok_or(TooMany(what));
        let bytes = |what, text: &str| limit(what, text.len(), MAX_NAME_BYTES);
        limit("images", self.image_ids.len(), MAX_IMAGES)?;
        limit("hosts", self.foreign_hosts.len(), MAX_FOREIGN_HOSTS)?;
        for host in &self.foreign_hosts {
            limit("hosts", host.len(), MAX_HOST_BYTES)?;
        }
        for image in &self.image_ids {
            for names in [&image.names, &image.manifests] {
                limit("names of an image", names.len(), MAX_NAMES)?;
                for name in names {
                    bytes("names of an image", name)?;
                }
            }
            let record = image.record.iter().flatten();
            limit(
                "entries of a pull record",
                record.count(),
                MAX_RECORD_ENTRIES,
            )?;
            for (repository, users) in image.record.iter().flatten() {
                bytes("entries of a pull record", repository)?;
                for names in users.lists() {
                    limit("users of a pull record", names.len(), MAX_RECORD_USERS)?;
                    for name in names {
                        bytes("users of a pull record", name)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves out what is over the limits, the last images first, and marks the report.
    pub fn limit(&mut self) {
        let before = (self.image_ids.len(), self.foreign_hosts.len());
        self.image_ids.truncate(MAX_IMAGES);
        self.foreign_hosts
            .retain(|host| host.len() <= MAX_HOST_BYTES);
        self.foreign_hosts.truncate(MAX_FOREIGN_HOSTS);
        let images = std::mem::take(&mut self.image_ids);
        let mut left = MAX_BYTES.saturating_sub(json_bytes(self));
        for image in images {
            // With its comma.
            let Some(rest) = left.checked_sub(json_bytes(&image).saturating_add(1)) else {
                break;
            };
            left = rest;
            self.image_ids.push(image);
        }
        self.truncated |= before != (self.image_ids.len(), self.foreign_hosts.len());
    }
}

impl Users {
    fn lists(&self) -> [&[String]; 2] {
        match self {
            Self::Any => [&[], &[]],
            Self::Only {
                secrets,
                service_accounts,
            } => [secrets, service_accounts],
        }
    }
}

/// The digest of a report as it was posted.
pub fn digest(report: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(report)))
}

fn json_bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: usize) -> ReportedImage {
        ReportedImage {
            id: format!("sha256:{number:064x}"),
            names: vec![format!("docker.io/library/image-{number}:1")],
            ..ReportedImage::default()
        }
    }

    #[test]
    fn a_report_reads_as_documented() {
        let text = r#"{"node":"n1","runtime":"containerd v2.4.2","gate":true,"imageIds":[{"id":"sha256:aa","names":["docker.io/library/nginx:1"],"manifests":["docker.io/library/nginx@sha256:bb"],"record":{"10.96.0.50/docker.io/library/nginx":"any","nginx":{"only":{"secrets":["apps/pull"]}}}},{"id":"sha256:cc","names":[],"manifests":[],"record":null,"intent":true}],"foreignHosts":["registry.local:5000"],"truncated":false}"#;
        let report: NodeReport = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&report).unwrap(), text);
        let mut same = report.clone();
        same.limit();
        assert_eq!(same, report);
    }

    #[test]
    fn a_report_is_bounded_and_says_so() {
        let mut many = NodeReport {
            image_ids: (0..=MAX_IMAGES).map(image).collect(),
            ..NodeReport::default()
        };
        many.limit();
        assert_eq!((many.image_ids.len(), many.truncated), (MAX_IMAGES, true));

        let long = |number| ReportedImage {
            names: vec!["n".repeat(1000)],
            ..image(number)
        };
        let mut large = NodeReport {
            image_ids: (0..1000).map(long).collect(),
            ..NodeReport::default()
        };
        large.limit();
        let bytes = serde_json::to_vec(&large).unwrap().len();
        assert!(large.truncated && bytes <= MAX_BYTES, "{bytes}");
        assert!(bytes > MAX_BYTES - 2000, "no more is left out than must be");
        assert_eq!(large.image_ids.first(), Some(&long(0)));

        let users = Users::Only {
            secrets: vec!["namespace/secret".to_owned(); MAX_RECORD_USERS],
            service_accounts: Vec::new(),
        };
        let entry = |number: usize| (format!("{number}"), Users::Any);
        let full = ReportedImage {
            names: vec!["n".repeat(MAX_NAME_BYTES); MAX_NAMES],
            manifests: vec![String::new(); MAX_NAMES],
            record: Some((1..MAX_RECORD_ENTRIES).map(entry).collect()),
            ..ReportedImage::default()
        };
        let full = |change: fn(&mut ReportedImage)| {
            let mut image = full.clone();
            let record = image.record.get_or_insert_default();
            record.insert("r.io/app".to_owned(), users.clone());
            change(&mut image);
            NodeReport {
                image_ids: vec![image],
                ..NodeReport::default()
            }
        };
        full(|_| {}).check().unwrap();
        let over: [fn(&mut ReportedImage); 5] = [
            |image| image.names.push(String::new()),
            |image| image.names[0].push('n'),
            |image| image.manifests.push(String::new()),
            |image| {
                let record = image.record.as_mut().unwrap();
                record.insert("r.io/more".to_owned(), Users::Any);
            },
            |image| {
                let record = image.record.as_mut().unwrap();
                let Some(Users::Only { secrets, .. }) = record.get_mut("r.io/app") else {
                    unreachable!("it was inserted");
                };
                secrets.push(String::new());
            },
        ];
        for change in over {
            full(change).check().unwrap_err();
        }
        for report in [&many, &large] {
            report.check().unwrap();
        }
        many.image_ids.push(image(0));
        assert_eq!(many.check(), Err(TooMany("images")));

        let mut hosts = NodeReport {
            foreign_hosts: vec!["h".to_owned(); MAX_FOREIGN_HOSTS + 1],
            ..NodeReport::default()
        };
        assert_eq!(hosts.check(), Err(TooMany("hosts")));
        hosts.limit();
        assert_eq!(hosts.foreign_hosts.len(), MAX_FOREIGN_HOSTS);
        assert!(hosts.truncated);

        let long = "h".repeat(MAX_HOST_BYTES + 1);
        let mut hosts = NodeReport {
            foreign_hosts: vec![long, "registry.local".to_owned()],
            ..NodeReport::default()
        };
        assert_eq!(hosts.check(), Err(TooMany("hosts")));
        hosts.limit();
        assert_eq!(hosts.foreign_hosts, ["registry.local"]);
        assert!(hosts.truncated);
    }
}
