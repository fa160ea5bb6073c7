//! What is to be done for one pod: a pure function of the pod, of what the registry holds, and of
//! what was done before.

use crate::world::health::{Image, Patient, Progress};
use holdfast_api::history::{ImageHistory, MAX_REVERTS};
use holdfast_core::pod::Kind;
use holdfast_core::{Reference, rewrite};

/// So often pods of one owner are made anew within an hour.
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

/// What holds for every pod at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The registry's address; nothing while pods are left alone.
    pub address: Option<String>,
    /// Seconds that a pod which was admitted unrewritten has for starting by itself.
    pub grace: i64,
    /// Now, in seconds since 1970.
    pub now: i64,
    /// Whether pods may be made anew at all.
    pub recreates: bool,
}

/// Why a pod that would have to be made anew is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody would make it again.
    NoOwner,
    /// Its owner did so [`RECREATIONS`] times within an hour.
    TooOften,
    /// The operator does not want any pod to be evicted.
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
    /// What stands there now.
    pub from: String,
    /// What shall stand there.
    pub to: String,
    /// The upstream's reference, canonical.
    pub source: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing, at the moment.
    Nothing,
    /// Give containers the registry's references.
    Heal(Vec<Change>),
    /// Give containers their upstream's references back.
    Restore(Vec<Change>),
    /// Have the owner make the pod anew: these images are fixed for this one's life.
    Recreate(Vec<Change>),
    /// Nothing any more: somebody insists on the upstream's references.
    Exclude {
        /// Whether the pod does not say so yet.
        record: bool,
    },
    /// Nothing can be done for these images; a person has to.
    Unfixable {
        /// `volumes/NAME`.
        keys: Vec<String>,
        /// What stands in the way.
        why: Why,
    },
}

impl Act {
    /// One word, for metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Heal(_) => "heal",
            Self::Restore(_) => "restore",
            Self::Recreate(_) => "recreate",
            Self::Exclude { .. } => "exclude",
            Self::Unfixable { .. } => "unfixable",
        }
    }

    /// Whether the pod stays as it is, and somebody is told.
    pub const fn only_tells(&self) -> bool {
        matches!(
            self,
            Self::Exclude { record: false } | Self::Unfixable { .. }
        )
    }
}

/// Decides. `history` is all that is known of the pod's; `recreated` says how often pods of its
/// owner were made anew within the last hour.
pub fn decide(
    patient: &Patient,
    history: &ImageHistory,
    copy: impl Fn(&str) -> Copy,
    recreated: usize,
    site: &Site,
) -> Act {
    if history.is_excluded() {
        return Act::Exclude {
            record: !patient.history.is_excluded(),
        };
    }
    let refused = |image: &&Image| {
        image.rewritten && image.progress == Progress::Stuck && copy(&image.source) == Copy::Refused
    };
    let back: Vec<Change> = patient
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
        !image.rewritten && image.pulls && patient.wanted && copy(&image.source) == Copy::Held
    };
    let local = |image: &Image| {
        let address = site.address.as_deref()?;
        let source = Reference::parse(&image.source).ok()?;
        Some(change(image, rewrite::rewrite(&source, address)?))
    };
    let due = |image: &&Image| match image.progress {
        Progress::Stuck => true,
        // Where one image is stuck, the next ones will be.
        Progress::NotStarted => {
            patient.is_stuck(None) || site.now.saturating_sub(patient.created) >= site.grace
        }
        Progress::Settled => false,
    };
    let heal: Vec<Change> = patient
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
    let fixed: Vec<Change> = patient
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
    let why = if patient.owner.is_none() {
        Why::NoOwner
    } else if !site.recreates {
        Why::NotAllowed
    } else if recreated >= RECREATIONS {
        Why::TooOften
    } else {
        return Act::Recreate(fixed);
    };
    let keys = fixed.into_iter().map(|change| change.key).collect();
    Act::Unfixable { keys, why }
}

/// The sources that the registry must hold for an act to help: those whose references lead to it
/// afterwards.
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

/// What the author wrote, as far as the pod's annotation can be believed; else the canonical form.
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
#[path = "decide_tests.rs"]
mod tests;
