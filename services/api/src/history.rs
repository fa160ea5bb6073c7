//! What happened to the images of one pod: an annotation on the pod itself, written by the webhook
//! and the controller, so that every replica and every leader knows the same.

use holdfast_core::delivery::Switches;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use crate::labels;

/// The annotation [`labels::IMAGE_HISTORY`].
///
/// It applies only to the pod with this `uid`, because pods are often created from copies of
/// others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageHistory {
    /// The UID of the pod that it describes.
    pub uid: String,
    /// How often and when the controller changed the name of an image, by `containers/NAME`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub switches: BTreeMap<String, Switches>,
    /// Upstream references that the controller restored because the registry cannot copy them, or
    /// that `holdfast restore` restored.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub restored: BTreeSet<String>,
}

impl ImageHistory {
    /// The history that a pod (raw JSON) carries; empty where it has none, where it cannot be read,
    /// or where it is another pod's.
    pub fn of(pod: &Value) -> Self {
        let uid = pod
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let empty = || Self {
            uid: uid.to_owned(),
            ..Self::default()
        };
        pod.pointer("/metadata/annotations")
            .and_then(|annotations| annotations.get(labels::IMAGE_HISTORY)?.as_str())
            .and_then(|text| serde_json::from_str(text).ok())
            .filter(|history: &Self| history.uid == uid)
            .unwrap_or_else(empty)
    }

    /// Merges two histories of one pod, so that replacing a pod's annotations resets no count.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        for (key, switches) in other.switches {
            let known = self.switches.entry(key).or_default();
            known.count = known.count.max(switches.count);
            known.last = known.last.max(switches.last);
        }
        self.restored.extend(other.restored);
        self
    }

    /// The annotation's text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, text: &str) -> Value {
        json!({"metadata": {"uid": uid, "annotations": {labels::IMAGE_HISTORY: text}}})
    }

    #[test]
    fn only_the_pods_own_history_counts() {
        let history = ImageHistory {
            uid: "u".to_owned(),
            switches: [("containers/a".to_owned(), Switches { count: 2, last: 7 })].into(),
            restored: ["r.io/a:1".to_owned()].into(),
        };
        assert_eq!(ImageHistory::of(&pod("u", &history.text())), history);
        for (uid, text) in [
            ("other", history.text()),
            ("u", "not json".to_owned()),
            ("u", "[]".to_owned()),
            ("u", r#"{"uid":"u","switches":-1}"#.to_owned()),
            // A count of earlier versions.
            ("u", r#"{"uid":"u","reverts":3}"#.to_owned()),
        ] {
            let found = ImageHistory::of(&pod(uid, &text));
            assert_eq!(
                found,
                ImageHistory {
                    uid: uid.to_owned(),
                    ..ImageHistory::default()
                },
                "{uid} {text}"
            );
        }
        assert_eq!(ImageHistory::of(&json!(null)), ImageHistory::default());
    }

    #[test]
    fn what_is_unsaid_is_not_written() {
        let least = ImageHistory {
            uid: "u".to_owned(),
            switches: [("containers/a".to_owned(), Switches { count: 1, last: 7 })].into(),
            ..ImageHistory::default()
        };
        assert_eq!(
            least.text(),
            r#"{"uid":"u","switches":{"containers/a":{"count":1,"last":7}}}"#
        );
    }

    #[test]
    fn two_histories_of_a_pod_add_up_to_the_greater() {
        let history = |switches: &[(&str, u32)], restored: &[&str]| ImageHistory {
            uid: "u".to_owned(),
            switches: switches
                .iter()
                .map(|(key, count)| {
                    let last = i64::from(*count);
                    (
                        (*key).to_owned(),
                        Switches {
                            count: *count,
                            last,
                        },
                    )
                })
                .collect(),
            restored: restored.iter().map(|&text| text.to_owned()).collect(),
        };
        let one = history(&[("containers/a", 2)], &["x"]);
        let two = history(&[("containers/a", 1), ("containers/b", 1)], &["y"]);
        let both = history(&[("containers/a", 2), ("containers/b", 1)], &["x", "y"]);
        assert_eq!(one.clone().with(two.clone()), both);
        assert_eq!(two.with(one), both);
    }
}
