//! Decides the act for one pod: a pure function of the pod, of the copies of its images, and of its
//! history.

use holdfast_api::history::ImageHistory;
use holdfast_cluster_model::pull_status::{Image, Progress, StuckPod};
use holdfast_core::pod::Kind;
use holdfast_core::{Reference, meaning, rewrite};

/// Evictions of one owner's pods within an hour.
pub const RECREATIONS: usize = 3;

/// Times that healing sets the registry's reference for one image of a pod. If the image still has
/// the upstream's then, another controller reverts it.
pub const MAX_HEALS_OF_IMAGE: u32 = 3;

/// What is known of the copy of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The registry holds it.
    Held,
    /// The upstream refuses the image.
    Refused,
    /// Neither, or not yet.
    Pending,
}

/// The state that all decisions of one round share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The registry's address; `None` while pods are not rewritten.
    pub address: Option<String>,
    /// Seconds that a pod without rewriting has to start.
    pub grace: i64,
    /// Now, in seconds since 1970.
    pub now: i64,
    /// Whether pods may be evicted at all.
    pub recreates: bool,
}

/// Why a pod that would have to be evicted is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has no owner that would recreate it.
    NoOwner,
    /// Its owner recreated pods [`RECREATIONS`] times within an hour.
    TooOften,
    /// `evictionsPerMinute` is 0.
    NotAllowed,
}

/// One reference that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `containers/NAME`.
    pub key: String,
    /// The container's name.
    pub name: String,
    /// JSON pointer to the reference.
    pub pointer: String,
    /// The current reference.
    pub from: String,
    /// The new reference.
    pub to: String,
    /// The upstream's reference, canonical.
    pub source: String,
}

/// The act for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing for now.
    Nothing,
    /// Set the registry's references.
    Heal(Vec<Change>),
    /// Restore the upstream's references.
    Restore(Vec<Change>),
    /// Evict the pod, so that its owner recreates it: these images cannot change in place.
    Recreate(Vec<Change>),
    /// Leave the pod: another controller reverts its references.
    Exclude,
    /// These images cannot be changed by Holdfast.
    Unfixable {
        /// `volumes/NAME`.
        keys: Vec<String>,
        /// Why.
        why: Why,
    },
}

impl Act {
    /// The label in metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Heal(_) => "heal",
            Self::Restore(_) => "restore",
            Self::Recreate(_) => "recreate",
            Self::Exclude => "exclude",
            Self::Unfixable { .. } => "unfixable",
        }
    }

    /// Whether the pod stays unchanged and only an event is written.
    pub const fn is_event_only(&self) -> bool {
        matches!(self, Self::Exclude | Self::Unfixable { .. })
    }
}

/// Decides. `history` is the merged history of the pod; `recreated` counts evictions of its owner's
/// pods within the last hour.
pub fn decide(
    stuck_pod: &StuckPod,
    history: &ImageHistory,
    copy: impl Fn(&str) -> Copy,
    recreated: usize,
    snapshot: &Snapshot,
) -> Act {
    let images = Images {
        stuck_pod,
        copy,
        snapshot,
    };
    let restored = images.to_restore();
    if !restored.is_empty() {
        return Act::Restore(restored);
    }
    let healed = images.to_heal();
    let is_reverted = |change: &Change| {
        let count = history.healed.get(&change.key);
        count.is_some_and(|count| *count >= MAX_HEALS_OF_IMAGE)
    };
    if healed.iter().any(is_reverted) {
        return Act::Exclude;
    }
    if !healed.is_empty() {
        return Act::Heal(healed);
    }
    let volumes = images.volumes();
    if volumes.is_empty() {
        return Act::Nothing;
    }
    let why = if stuck_pod.owner.is_none() {
        Why::NoOwner
    } else if !snapshot.recreates {
        Why::NotAllowed
    } else if recreated >= RECREATIONS {
        Why::TooOften
    } else {
        return Act::Recreate(volumes);
    };
    let keys = volumes.into_iter().map(|change| change.key).collect();
    Act::Unfixable { keys, why }
}

/// The images of a pod, and the state of their copies.
struct Images<'a, C> {
    stuck_pod: &'a StuckPod,
    copy: C,
    snapshot: &'a Snapshot,
}

impl<C: Fn(&str) -> Copy> Images<'_, C> {
    /// Containers whose registry's reference cannot be pulled, because the upstream refuses the
    /// image.
    fn to_restore(&self) -> Vec<Change> {
        self.containers()
            .filter(|image| self.is_refused(image))
            .map(|image| change(image, original(image)))
            .collect()
    }

    /// Containers that wait for an image that the registry holds.
    fn to_heal(&self) -> Vec<Change> {
        self.containers()
            .filter(|image| self.is_missed(image) && self.is_due(image))
            .filter_map(|image| self.local(image))
            .collect()
    }

    /// Image volumes whose reference must change, which needs a new pod.
    fn volumes(&self) -> Vec<Change> {
        let stuck = self
            .stuck_pod
            .images
            .iter()
            .filter(|image| image.kind == Kind::Volume && image.progress == Progress::Stuck);
        stuck
            .filter_map(|image| {
                if self.is_refused(image) {
                    Some(change(image, original(image)))
                } else if self.is_missed(image) {
                    self.local(image)
                } else {
                    None
                }
            })
            .collect()
    }

    fn containers(&self) -> impl Iterator<Item = &Image> {
        let images = self.stuck_pod.images.iter();
        images.filter(|image| image.can_change())
    }

    fn is_refused(&self, image: &Image) -> bool {
        image.rewritten
            && image.progress == Progress::Stuck
            && (self.copy)(&image.source) == Copy::Refused
    }

    /// Whether the webhook missed a pod whose image is local. The pod then has its original
    /// reference, or that of another cluster's registry.
    fn is_missed(&self, image: &Image) -> bool {
        !image.local
            && image.pulls
            && self.stuck_pod.wanted
            && (self.copy)(&image.source) == Copy::Held
    }

    /// Whether the container had its time to start. If one image is stuck, the next ones will be.
    fn is_due(&self, image: &Image) -> bool {
        let age = self.snapshot.now.saturating_sub(self.stuck_pod.created);
        match image.progress {
            Progress::Stuck => true,
            Progress::NotStarted => self.stuck_pod.is_stuck(None) || age >= self.snapshot.grace,
            Progress::Settled => false,
        }
    }

    fn local(&self, image: &Image) -> Option<Change> {
        let address = self.snapshot.address.as_deref()?;
        let source = Reference::parse(&image.source).ok()?;
        Some(change(image, rewrite::rewrite(&source, address)?))
    }
}

/// The sources that the registry must hold for an act: those of new references to the registry.
pub fn relies_on(act: &Act, copy: impl Fn(&str) -> Copy) -> Vec<&str> {
    let changes = match act {
        Act::Heal(changes) | Act::Recreate(changes) => changes.as_slice(),
        _ => &[],
    };
    changes
        .iter()
        .map(|change| change.source.as_str())
        .filter(|source| copy(source) == Copy::Held)
        .collect()
}

fn change(image: &Image, to: String) -> Change {
    Change {
        key: image.key(),
        name: image.name.clone(),
        pointer: image.pointer.clone(),
        from: image.written.clone(),
        to,
        source: image.source.clone(),
    }
}

/// The reference that the author wrote, if the pod's annotation is consistent with the source; else
/// the canonical form.
fn original(image: &Image) -> String {
    image
        .original
        .as_ref()
        .filter(|text| {
            Reference::parse(&image.source)
                .is_ok_and(|source| meaning::is_spelling_of(text, &source))
        })
        .unwrap_or(&image.source)
        .clone()
}

#[cfg(test)]
mod tests;
