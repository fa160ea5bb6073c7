//! Decides the act for one pod: a pure function of the pod, of the copies of its images, and of its
//! history.

use holdfast_api::history::{ImageHistory, MAX_REVERTS};
use holdfast_cluster_model::pull_status::{Image, Progress, StuckPod};
use holdfast_core::pod::Kind;
use holdfast_core::{Reference, rewrite};

/// Evictions of one owner's pods within an hour.
pub const RECREATIONS: usize = 3;

/// What is known of the copy of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The registry holds it.
    Held,
    /// The upstream answers, and the image cannot be had from it.
    Refused,
    /// Neither, or not yet.
    Pending,
}

/// The state that all decisions of one round share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The registry's address; `None` while pods are not rewritten.
    pub address: Option<String>,
    /// Seconds that an unrewritten pod has to start by itself.
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

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing, at the moment.
    Nothing,
    /// Set the registry's references.
    Heal(Vec<Change>),
    /// Restore the upstream's references.
    Restore(Vec<Change>),
    /// Evict the pod, so that its owner recreates it: these images cannot change in place.
    Recreate(Vec<Change>),
    /// Stop changing the pod: another controller reverts its references.
    Exclude {
        /// Whether the pod does not say so yet.
        record: bool,
    },
    /// These images need a person.
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
            Self::Exclude { .. } => "exclude",
            Self::Unfixable { .. } => "unfixable",
        }
    }

    /// Whether the pod stays unchanged and only an event is written.
    pub const fn only_tells(&self) -> bool {
        matches!(
            self,
            Self::Exclude { record: false } | Self::Unfixable { .. }
        )
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
    if history.is_excluded() {
        return Act::Exclude {
            record: !stuck_pod.history.is_excluded(),
        };
    }
    let refused = |image: &&Image| {
        image.rewritten && image.progress == Progress::Stuck && copy(&image.source) == Copy::Refused
    };
    let back: Vec<Change> = stuck_pod
        .images
        .iter()
        .filter(|image| image.can_change())
        .filter(refused)
        .map(|image| change(image, original(image)))
        .collect();
    if !back.is_empty() {
        return Act::Restore(back);
    }
    let missed = |image: &&Image| {
        !image.rewritten && image.pulls && stuck_pod.wanted && copy(&image.source) == Copy::Held
    };
    let local = |image: &Image| {
        let address = snapshot.address.as_deref()?;
        let source = Reference::parse(&image.source).ok()?;
        Some(change(image, rewrite::rewrite(&source, address)?))
    };
    let due = |image: &&Image| match image.progress {
        Progress::Stuck => true,
        // Where one image is stuck, the next ones will be.
        Progress::NotStarted => {
            stuck_pod.is_stuck(None)
                || snapshot.now.saturating_sub(stuck_pod.created) >= snapshot.grace
        }
        Progress::Settled => false,
    };
    let heal: Vec<Change> = stuck_pod
        .images
        .iter()
        .filter(|image| image.can_change())
        .filter(missed)
        .filter(due)
        .filter_map(local)
        .collect();
    let insisted = |change: &Change| {
        history
            .healed
            .get(&change.key)
            .is_some_and(|count| *count >= MAX_REVERTS)
    };
    if heal.iter().any(insisted) {
        return Act::Exclude { record: true };
    }
    if !heal.is_empty() {
        return Act::Heal(heal);
    }
    let fixed: Vec<Change> = stuck_pod
        .images
        .iter()
        .filter(|image| image.kind == Kind::Volume && image.progress == Progress::Stuck)
        .filter_map(|image| {
            if refused(&image) {
                Some(change(image, original(image)))
            } else if missed(&image) {
                local(image)
            } else {
                None
            }
        })
        .collect();
    if fixed.is_empty() {
        return Act::Nothing;
    }
    let why = if stuck_pod.owner.is_none() {
        Why::NoOwner
    } else if !snapshot.recreates {
        Why::NotAllowed
    } else if recreated >= RECREATIONS {
        Why::TooOften
    } else {
        return Act::Recreate(fixed);
    };
    let keys = fixed.into_iter().map(|change| change.key).collect();
    Act::Unfixable { keys, why }
}

/// The sources that the registry must hold for an act to help: those whose new references lead to
/// it.
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
            Reference::parse(text).is_ok_and(|original| original.to_string() == image.source)
        })
        .unwrap_or(&image.source)
        .clone()
}

#[cfg(test)]
mod tests;
