//! What becomes of one image of an owner.

use serde::Serialize;

use crate::judge::{Candidates, Start};

/// Where an image would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    /// From nowhere, at least on some nodes.
    Missing,
    /// That is not known.
    NotJudged,
    /// The nodes hold it already.
    OnNodes,
    /// The registry holds it.
    Local,
}

/// One image of an owner.
#[allow(clippy::struct_field_names, reason = "the key of the JSON")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Image {
    /// As the pod names it, read back to its upstream.
    pub(crate) image: String,
    pub(crate) pull_policy: String,
    pub(crate) verdict: Verdict,
    /// What becomes of the pod that is worst off.
    pub(crate) start: Start,
    /// Why it would not start, or only after healing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) fix: String,
    /// Whether Holdfast is to care for it: not what opts out or lies outside its configuration.
    pub(crate) covered: bool,
    /// The nodes by what becomes of it there, unless it starts on each.
    #[serde(skip_serializing_if = "Candidates::is_empty")]
    pub(crate) candidates: Candidates,
}

impl Image {
    /// Whether another image of the same owner is the same but for what becomes of it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let key = |image: &Self| {
            (
                image.image.clone(),
                image.pull_policy.clone(),
                image.covered,
            )
        };
        key(self) == key(other)
    }
}
