//! The kubelet's pull records: `image_manager/pulled` and `image_manager/pulling` in its root
//! folder. They exist if the kubelet has the feature gate `KubeletEnsureSecretPulledImages`.
//!
//! `pulled` has a record for each image ID that the kubelet pulled, `pulling` an intent for each
//! pull that has not ended. The name of a file is a hash of the image ID, or of the image's name.
//! Records hold hashes of credentials; they are dropped while a file is parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::SystemTime;

use holdfast_api::report::{MAX_NAME_BYTES, MAX_RECORD_ENTRIES, MAX_RECORD_USERS, Users};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Intents that are read at most. The kubelet has one for each pull that runs, and those that a
/// crash left.
const MAX_INTENTS: usize = 1000;
/// Bytes of a file. A record has about 200 for each name and each credential.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// How the names of the kubelet's files begin.
const PREFIX: &str = "sha256-";

/// The pull record of an image ID: who may use it, by the repository's name.
type Record = BTreeMap<String, Users>;

/// What the folders hold. Reads only files that changed since the last time.
#[derive(Debug, Default)]
pub struct Records {
    /// Whether the kubelet keeps records.
    pub gate: bool,
    /// Whether there are more intents than are read.
    pub truncated: bool,
    pulled: Folder<(String, Record)>,
    pulling: Folder<String>,
}

impl Records {
    /// Reads the records of these image IDs, and the intents, again; `root` is the folder
    /// `image_manager`.
    pub fn refresh<'a>(&mut self, root: &Path, ids: impl Iterator<Item = &'a str>) {
        let pulled = root.join("pulled");
        self.gate = pulled.is_dir();
        self.pulled
            .refresh(&pulled, ids.map(file_name).collect(), parse_record);
        let pulling = root.join("pulling");
        let mut intents = intents(&pulling);
        self.truncated = intents.len() > MAX_INTENTS;
        if self.truncated {
            intents.pop_last();
        }
        self.pulling.refresh(&pulling, intents, parse_intent);
    }

    /// The record of an image ID. A record that the kubelet cannot read opens the image to nobody.
    pub fn record(&self, id: &str) -> Option<Record> {
        match &self.pulled.files.get(&file_name(id))?.content {
            None => Some(Record::new()),
            Some((reference, record)) => (reference == id).then(|| record.clone()),
        }
    }

    /// The names whose pull has not ended, as pods write them, with a tag or a digest.
    pub fn intents(&self) -> BTreeSet<&str> {
        let files = self.pulling.files.values();
        files.filter_map(|file| file.content.as_deref()).collect()
    }
}

/// The files of a folder by their names.
#[derive(Debug)]
struct Folder<T> {
    files: BTreeMap<String, File<T>>,
}

impl<T> Default for Folder<T> {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
        }
    }
}

#[derive(Debug)]
struct File<T> {
    modified: Option<SystemTime>,
    bytes: u64,
    /// `None` if it cannot be read.
    content: Option<T>,
}

/// The names of the files in the folder of intents.
fn intents(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // Other files are temporary ones.
    let is_hash = |hash: &str| hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let wanted = names.filter(|name| name.strip_prefix(PREFIX).is_some_and(is_hash));
    wanted.take(MAX_INTENTS + 1).collect()
}

impl<T> Folder<T> {
    /// Reads which of the named files changed, and forgets all others.
    fn refresh(&mut self, path: &Path, names: BTreeSet<String>, parse: fn(&[u8]) -> Option<T>) {
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            let path = path.join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                self.files.remove(&name);
                continue;
            };
            let (modified, bytes) = (metadata.modified().ok(), metadata.len());
            let known = self.files.get(&name);
            if known.is_some_and(|file| file.modified == modified && file.bytes == bytes) {
                continue;
            }
            let text = metadata.is_file().then(|| read(&path)).flatten();
            let content = text.and_then(|text| parse(&text));
            let file = File {
                modified,
                bytes,
                content,
            };
            self.files.insert(name, file);
        }
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    let length = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (length as u64 <= MAX_FILE_BYTES).then_some(bytes)
}

fn file_name(key: &str) -> String {
    format!("{PREFIX}{}", hex::encode(Sha256::digest(key)))
}

/// The image ID and the record in a file of `pulled`; `None` if it is none.
pub fn parse_record(bytes: &[u8]) -> Option<(String, Record)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PulledRecord {
        kind: String,
        api_version: String,
        image_ref: String,
        #[serde(default)]
        credential_mapping: Option<BTreeMap<String, Credentials>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Credentials {
        #[serde(default)]
        node_pods_accessible: bool,
        #[serde(default)]
        kubernetes_secrets: Option<Vec<Coordinates>>,
        #[serde(default)]
        kubernetes_service_accounts: Option<Vec<Coordinates>>,
    }
    // Without the hash of the credential, which must not leave the node.
    #[derive(Deserialize)]
    struct Coordinates {
        namespace: String,
        name: String,
    }
    let names = |list: Option<Vec<Coordinates>>| -> Vec<String> {
        let list = list.into_iter().flatten();
        list.map(|one| format!("{}/{}", one.namespace, one.name))
            .filter(|name| name.len() <= MAX_NAME_BYTES)
            .take(MAX_RECORD_USERS)
            .collect()
    };
    let file: PulledRecord = serde_json::from_slice(bytes).ok()?;
    if file.kind != "ImagePulledRecord" || !is_known(&file.api_version) {
        return None;
    }
    let mapping = file.credential_mapping.into_iter().flatten();
    let mapping = mapping.filter(|(repository, _)| repository.len() <= MAX_NAME_BYTES);
    let record = mapping
        .take(MAX_RECORD_ENTRIES)
        .map(|(repository, credentials)| {
            let users = if credentials.node_pods_accessible {
                Users::Any
            } else {
                Users::Only {
                    secrets: names(credentials.kubernetes_secrets),
                    service_accounts: names(credentials.kubernetes_service_accounts),
                }
            };
            (repository, users)
        });
    Some((file.image_ref, record.collect()))
}

/// The image's name in a file of `pulling`; `None` if it is none.
pub fn parse_intent(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PullIntent {
        kind: String,
        api_version: String,
        image: String,
    }
    let file: PullIntent = serde_json::from_slice(bytes).ok()?;
    (file.kind == "ImagePullIntent" && is_known(&file.api_version)).then_some(file.image)
}

/// Versions of the format. A later one may mean something else; such a record opens nothing.
fn is_known(version: &str) -> bool {
    matches!(
        version,
        "kubelet.config.k8s.io/v1alpha1"
            | "kubelet.config.k8s.io/v1beta1"
            | "kubelet.config.k8s.io/v1"
    )
}

#[cfg(test)]
mod tests;
