//! The stored pod of an update. A client that applies its manifest again sets the originals again:
//! such an update must change nothing, because a changed reference restarts a container.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::history::ImageHistory;
use holdfast_core::meaning::{self, Meaning, meaning};
use holdfast_core::pod;
use serde_json::Value;

/// The images of a stored pod, and its annotations.
pub(super) struct Stored<'a> {
    /// The registry's addresses; `None` if no stored reference is to stay.
    addresses: Option<&'a [String]>,
    /// By [`pod::PodImage::key`].
    images: BTreeMap<String, String>,
    originals: Option<Value>,
    /// The history of both states, because a client that replaces a pod replaces its annotations.
    history: ImageHistory,
    /// The history that the update leaves.
    left: ImageHistory,
    /// Sources whose upstream's reference this update itself asks for (`holdfast restore`).
    newly_restored: BTreeSet<String>,
}

/// A stored reference that stays, and its original.
pub(super) struct Kept<'a> {
    pub(super) text: &'a str,
    pub(super) original: Option<&'a str>,
}

impl<'a> Stored<'a> {
    /// Reads the stored pod `old`, which the update would replace by `pod`.
    pub(super) fn new(pod: &Value, old: &Value, addresses: Option<&'a [String]>) -> Self {
        let (left, before) = (ImageHistory::of(pod), ImageHistory::of(old));
        let newly_restored = left.restored.difference(&before.restored);
        Self {
            addresses,
            images: pod::images(old)
                .into_iter()
                .map(|image| (image.key(), image.image))
                .collect(),
            originals: pod::annotated_originals(old),
            newly_restored: newly_restored.cloned().collect(),
            history: left.clone().with(before),
            left,
        }
    }

    /// The stored reference of an image.
    pub(super) fn image(&self, key: &str) -> Option<&String> {
        self.images.get(key)
    }

    /// The sources that keep their upstream's references in this pod.
    pub(super) fn restored(&self) -> &BTreeSet<String> {
        &self.history.restored
    }

    /// The stored reference of an image, if it means the same as the new one, `now`. It stays,
    /// unless the client asks for the registry or, by the pod's history, for the upstream.
    ///
    /// A malformed reference does not stay: no runtime accepts it.
    pub(super) fn kept(&self, key: &str, now: &Meaning) -> Option<Kept<'_>> {
        let source = now.source().filter(|_| !now.is_at_registry())?;
        let text = self.images.get(key)?;
        let original = meaning::annotated(self.originals.as_ref(), key);
        let was = meaning(text, original, self.addresses?);
        let is_same = was.source() == Some(source) && !was.is_repaired();
        (is_same && !self.newly_restored.contains(&source.to_string()))
            .then_some(Kept { text, original })
    }

    /// The history of the pod's images, if the update would lose a part of it.
    pub(super) fn lost_history(&self) -> Option<String> {
        (self.history != self.left).then(|| self.history.text())
    }
}
