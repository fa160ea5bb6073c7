//! What the webhook knows when it chooses the name of an image: ConfigMap `F-delivery`, written by
//! the controller. `docs/design/delivery.md` has the rules.
//!
//! Sources are named by the first eight bytes of their SHA-256, so that ten thousand of them take
//! 80 KB. Two of ten thousand sources are the same by chance once in 10^11 cases; healing then
//! corrects the choice.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_core::Reference;
use holdfast_core::delivery::OnNodes;
use holdfast_core::kubelet::listed_name;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The key of [`DeliveryState`] in the ConfigMap.
pub const KEY: &str = "delivery.json";
/// The key of the sources that the registry holds.
const HELD: &str = "held";
/// The key of the sources that start on all nodes under their original name, without a pull.
const ON_ALL_NODES: &str = "onAllNodes";
/// The key of the sources that start on some nodes only.
const ON_SOME_NODES: &str = "onSomeNodes";

/// The key of the names that pods in scope keep, because others would lose the image.
const PROTECT: &str = "protect";

/// Bytes of one source.
const ENTRY_BYTES: usize = 8;
/// The most sources of one set. All sets together stay below 1 MiB, the limit of an API object, in
/// base64.
pub const MAX_SOURCES: usize = 25_000;
/// The most protected names.
pub const MAX_PROTECTED: usize = 2000;
/// The most hosts of upstreams in [`DeliveryState`].
pub const MAX_HOSTS: usize = 500;
/// The most nodes in [`DeliveryState::unprepared`]; of more, the others count as prepared, as all
/// do once rewriting has begun.
pub const MAX_UNPREPARED: usize = 200;
/// Seconds for which a host counts as away after the controller last confirmed it.
pub const AWAY_SECONDS: i64 = 300;

/// The part of the ConfigMap that people can read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeliveryState {
    /// Upstreams of which the registry knows whether they answer, ordered by host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostState>,
    /// Hosts that the configuration of a node names and that Holdfast did not write there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<String>,
    /// Names of nodes that cannot pull from the registry yet, in order, at most
    /// [`MAX_UNPREPARED`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unprepared: Vec<String>,
    /// Whether each schedulable node in scope reported all its images: then an image that is in no
    /// set of nodes starts on none of them. Otherwise nothing is known of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nodes_known: bool,
}

/// An upstream, as the registry's copies last met it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostState {
    /// The host, as it stands in a reference.
    pub host: String,
    /// Whether it answers.
    pub state: Answer,
    /// When this was last confirmed, to the minute.
    pub confirmed: Time,
}

/// Seconds for which an answer of a host is a reason to change a pod that waits.
const RECENT_SECONDS: i64 = 600;

/// Whether an upstream answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It answered the last request.
    Answers,
    /// It did not answer several requests in a row.
    Away,
}

/// A set of sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceSet(Arc<[u64]>);

impl SourceSet {
    fn contains(&self, hash: u64) -> bool {
        self.0.binary_search(&hash).is_ok()
    }

    /// The number of sources.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect()
    }

    /// A part of an entry, and entries out of order, can only come from another writer: the set is
    /// sorted again.
    fn of_bytes(bytes: &[u8]) -> Self {
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        Self::of(entries.iter().map(|entry| u64::from_be_bytes(*entry)))
    }

    fn of(entries: impl Iterator<Item = u64>) -> Self {
        let mut entries: Vec<u64> = entries.collect();
        entries.sort_unstable();
        entries.dedup();
        entries.truncate(MAX_SOURCES);
        Self(entries.into())
    }
}

impl<'a> FromIterator<&'a str> for SourceSet {
    /// A set of canonical sources; of more than [`MAX_SOURCES`], some are left out.
    fn from_iter<I: IntoIterator<Item = &'a str>>(sources: I) -> Self {
        Self::of(sources.into_iter().map(hash))
    }
}

fn hash(source: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(source).into();
    let first = digest.first_chunk().copied();
    u64::from_be_bytes(first.unwrap_or_default())
}

/// Everything that the ConfigMap says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The readable part.
    pub state: DeliveryState,
    /// Sources that the registry holds.
    pub held: SourceSet,
    /// Names that start on all schedulable nodes without a pull, for pods with any credentials. A
    /// name is as `kubelet::listed_name` writes it.
    pub on_all_nodes: SourceSet,
    /// Names that start on some of them.
    pub on_some_nodes: SourceSet,
    /// Names of preloaded images of which a pod that Holdfast leaves alone has one. A pull under
    /// another name would take the image from that pod.
    pub protect: SourceSet,
}

impl Delivery {
    /// Reads the ConfigMap. What cannot be read counts as unknown.
    pub fn of(object: &ConfigMap) -> Self {
        let set = |key: &str| {
            let bytes = object.binary_data.as_ref().and_then(|data| data.get(key));
            bytes.map_or_else(SourceSet::default, |bytes| SourceSet::of_bytes(&bytes.0))
        };
        let state = object.data.as_ref().and_then(|data| data.get(KEY));
        Self {
            state: state
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
            held: set(HELD),
            on_all_nodes: set(ON_ALL_NODES),
            on_some_nodes: set(ON_SOME_NODES),
            protect: set(PROTECT),
        }
    }

    /// The content of the ConfigMap: its texts and its sets.
    ///
    /// # Errors
    /// The state cannot be written as JSON.
    #[expect(clippy::type_complexity, reason = "the two maps of a ConfigMap")]
    pub fn data(
        &self,
    ) -> Result<(BTreeMap<String, String>, BTreeMap<String, ByteString>), serde_json::Error> {
        let text = serde_json::to_string(&self.state)?;
        let sets = [
            (HELD, &self.held),
            (ON_ALL_NODES, &self.on_all_nodes),
            (ON_SOME_NODES, &self.on_some_nodes),
            (PROTECT, &self.protect),
        ];
        let sets = sets.map(|(key, set)| (key.to_owned(), ByteString(set.bytes())));
        Ok(([(KEY.to_owned(), text)].into(), sets.into()))
    }

    /// Forgets what is out of date at `now`, seconds since 1970: that a host is away is believed
    /// for [`AWAY_SECONDS`], in case no controller confirms it any more.
    #[must_use]
    pub fn at(mut self, now: i64) -> Self {
        self.state.hosts.retain(|host| {
            let age = now.saturating_sub(host.confirmed.0.as_second());
            host.state == Answer::Answers || age < AWAY_SECONDS
        });
        self
    }

    /// What is known of the upstream of a host.
    pub fn answer(&self, host: &str) -> Option<Answer> {
        Some(self.host(host)?.state)
    }

    fn host(&self, host: &str) -> Option<&HostState> {
        let hosts = &self.state.hosts;
        let at = hosts.binary_search_by(|entry| entry.host.as_str().cmp(host));
        hosts.get(at.ok()?)
    }

    /// As [`Delivery::answer`], without what was confirmed more than [`RECENT_SECONDS`] before
    /// `now`, seconds since 1970.
    pub fn recent_answer(&self, host: &str, now: i64) -> Option<Answer> {
        let entry = self.host(host)?;
        let age = now.saturating_sub(entry.confirmed.0.as_second());
        (age < RECENT_SECONDS).then_some(entry.state)
    }

    /// What the sets say of a source: whether the registry holds it, and on which schedulable nodes
    /// its original name starts without a pull.
    pub fn source(&self, source: &Reference) -> (bool, OnNodes) {
        let listed = hash(&listed_name(source));
        let on_nodes = if self.on_all_nodes.contains(listed) {
            OnNodes::All
        } else if self.on_some_nodes.contains(listed) {
            OnNodes::Some
        } else if self.state.nodes_known {
            OnNodes::None
        } else {
            OnNodes::Unknown
        };
        (self.held.contains(hash(&source.to_string())), on_nodes)
    }

    /// Whether a pull of the source under another name takes the image from others.
    pub fn is_protected(&self, source: &Reference) -> bool {
        self.protect.contains(hash(&listed_name(source)))
    }

    /// Whether a node's own configuration names the host.
    pub fn is_foreign(&self, host: &str) -> bool {
        self.state.foreign.iter().any(|foreign| foreign == host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery() -> Delivery {
        let host = |host: &str, state, second| HostState {
            host: host.to_owned(),
            state,
            confirmed: Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap()),
        };
        Delivery {
            state: DeliveryState {
                hosts: vec![
                    host("a.example", Answer::Away, 1000),
                    host("b.example:5000", Answer::Answers, 1000),
                ],
                foreign: vec!["mirror.example".to_owned()],
                unprepared: vec!["node-1".to_owned()],
                nodes_known: false,
            },
            held: ["a.example/app:1", "docker.io/library/nginx:1"]
                .into_iter()
                .collect(),
            on_all_nodes: ["a.example/app:1"].into_iter().collect(),
            on_some_nodes: ["a.example/app:2"].into_iter().collect(),
            protect: ["docker.io/library/nginx:1"].into_iter().collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = delivery();
        let (data, binary_data) = written.data().unwrap();
        let object = ConfigMap {
            data: Some(data),
            binary_data: Some(binary_data),
            ..ConfigMap::default()
        };
        let read = Delivery::of(&object);
        assert_eq!(read, written);
        for (text, expect) in [
            ("nginx:1", (true, OnNodes::Unknown)),
            ("nginx:2", (false, OnNodes::Unknown)),
            ("a.example/app:1", (true, OnNodes::All)),
            ("a.example/app:2", (false, OnNodes::Some)),
        ] {
            let source = Reference::parse(text).unwrap();
            assert_eq!(read.source(&source), expect, "{text}");
            assert_eq!(read.is_protected(&source), text == "nginx:1", "{text}");
        }
        let mut complete = read.clone();
        complete.state.nodes_known = true;
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("a.example/app@{digest}");
        complete.on_some_nodes = [by_digest.as_str()].into_iter().collect();
        for (text, expect) in [
            ("a.example/app:1", OnNodes::All),
            ("nginx:1", OnNodes::None),
            // Runtimes list it by its digest alone.
            (&format!("a.example/app:7@{digest}"), OnNodes::Some),
        ] {
            let source = Reference::parse(text).unwrap();
            assert_eq!(complete.source(&source).1, expect, "{text}");
        }
        assert!(read.is_foreign("mirror.example") && !read.is_foreign("a.example"));
        assert_eq!(Delivery::of(&ConfigMap::default()), Delivery::default());
    }

    #[test]
    fn a_host_is_away_for_as_long_as_it_is_confirmed() {
        let delivery = delivery();
        for (host, now, expect) in [
            ("a.example", 1000 + AWAY_SECONDS - 1, Some(Answer::Away)),
            ("a.example", 1000 + AWAY_SECONDS, None),
            ("b.example:5000", 9_999_999, Some(Answer::Answers)),
            ("c.example", 1000, None),
        ] {
            assert_eq!(
                delivery.clone().at(now).answer(host),
                expect,
                "{host} {now}"
            );
        }
    }

    #[test]
    fn an_answer_is_recent_for_ten_minutes() {
        let delivery = delivery();
        for (age, expect) in [(RECENT_SECONDS - 1, true), (RECENT_SECONDS, false)] {
            let answer = delivery.recent_answer("b.example:5000", 1000 + age);
            assert_eq!(answer.is_some(), expect, "{age}");
        }
    }

    #[test]
    fn a_set_has_a_bound_and_reads_what_others_wrote() {
        let names: Vec<String> = (0..=MAX_SOURCES)
            .map(|n| format!("a.example/{n}:1"))
            .collect();
        let set: SourceSet = names.iter().map(String::as_str).collect();
        assert_eq!(set.len(), MAX_SOURCES);
        let mut bytes = [2_u64, 1, 2].map(u64::to_be_bytes).concat();
        bytes.push(7);
        assert_eq!(*SourceSet::of_bytes(&bytes).0, [1, 2]);
        // Three full sets in base64, and the texts, fit into an API object.
        const { assert!(3 * MAX_SOURCES * ENTRY_BYTES / 3 * 4 + 200 * MAX_HOSTS < 1024 * 1024) };
    }
}
