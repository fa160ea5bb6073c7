//! Decides the act for one pod: a pure function of the pod, of what is known of its images, and of
//! its history. `core::delivery` decides about each image.

use holdfast_api::history::ImageHistory;
use holdfast_cluster_model::pull_status::{Image, Progress, StuckPod};
use holdfast_core::delivery::{self, Copy, Name, OnNodes, State, Upstream};
use holdfast_core::pod::Kind;
use holdfast_core::{Reference, meaning, rewrite};

/// Evictions of one owner's pods within an hour.
pub const RECREATIONS: usize = 3;

/// What is known of an image of a pod, besides the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What the registry has.
    pub copy: Copy,
    /// The upstream.
    pub upstream: Upstream,
    /// Whether the original starts on the pod's node without a pull.
    pub original: OnNodes,
    /// Whether the local name does.
    pub local: OnNodes,
    /// Whether the pod's node can pull from the registry.
    pub prepared: bool,
    /// Whether pods of the namespace may have the image from the registry.
    pub permitted: bool,
    /// Failed pulls under the present name, as far as they were seen; at least 1 for a stuck image.
    pub failures: u32,
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
    /// The pod runs; only a restarted container waits.
    Running,
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
    /// No name of these images starts.
    CannotPull {
        /// `containers/NAME`.
        keys: Vec<String>,
    },
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
            Self::CannotPull { .. } => "cannot_pull",
            Self::Unfixable { .. } => "unfixable",
        }
    }

    /// Whether the pod stays unchanged and only an event is written.
    pub const fn is_event_only(&self) -> bool {
        matches!(self, Self::CannotPull { .. } | Self::Unfixable { .. })
    }
}

/// Decides. `history` is the merged history of the pod; `recreated` counts evictions of its owner's
/// pods within the last hour.
pub fn decide(
    stuck_pod: &StuckPod,
    history: &ImageHistory,
    known: impl Fn(&Image) -> Known,
    recreated: usize,
    snapshot: &Snapshot,
) -> Act {
    let images = Images {
        stuck_pod,
        history,
        known,
        snapshot,
    };
    let (mut restored, mut healed, mut volumes, mut hopeless) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for image in &stuck_pod.images {
        match images.act(image) {
            delivery::Act::Nothing => {}
            delivery::Act::Switch(Name::Original) => restored.push(change(image, original(image))),
            delivery::Act::Switch(Name::Local) => healed.extend(images.local(image)),
            delivery::Act::Recreate(Name::Original) => {
                volumes.push(change(image, original(image)));
            }
            delivery::Act::Recreate(Name::Local) => volumes.extend(images.local(image)),
            delivery::Act::Tell => hopeless.push(image.key()),
        }
    }
    if !restored.is_empty() {
        Act::Restore(restored)
    } else if !healed.is_empty() {
        Act::Heal(healed)
    } else if !volumes.is_empty() {
        images.recreate(volumes, recreated)
    } else if !hopeless.is_empty() {
        Act::CannotPull { keys: hopeless }
    } else {
        Act::Nothing
    }
}

/// The images of a pod, and what is known of them.
struct Images<'a, K> {
    stuck_pod: &'a StuckPod,
    history: &'a ImageHistory,
    known: K,
    snapshot: &'a Snapshot,
}

impl<K: Fn(&Image) -> Known> Images<'_, K> {
    fn act(&self, image: &Image) -> delivery::Act {
        let known = (self.known)(image);
        let (state, progress) = (self.state(image, &known), self.progress(image, &known));
        let switches = self.history.switches.get(&image.key());
        let switches = switches.copied().unwrap_or_default();
        if image.rewritten && !image.local {
            return adopt(&state, progress);
        }
        let written = if image.local {
            Name::Local
        } else {
            Name::Original
        };
        let act = delivery::heal(&state, written, progress, &switches, self.snapshot.now);
        match act {
            // An eviction costs the pod, so a name that only may start is no reason for one, unless
            // the registry can never give the image.
            delivery::Act::Recreate(name)
                if state.level(name) < delivery::Level::Expected
                    && state.upstream != Upstream::Refuses =>
            {
                delivery::Act::Tell
            }
            act => act,
        }
    }

    fn state(&self, image: &Image, known: &Known) -> State {
        // Where the webhook would not rewrite, healing does not either, whatever the node has: it
        // starts a local name for every pod.
        let is_allowed =
            self.stuck_pod.wanted && known.permitted && self.snapshot.address.is_some();
        let has_local = image.local || is_allowed;
        State {
            copy: known.copy,
            upstream: known.upstream,
            original: known.original,
            local: if has_local {
                known.local
            } else {
                OnNodes::None
            },
            prepared: known.prepared && has_local,
            mirrored: false,
            foreign: false,
            protect: false,
            policy: image.policy,
            kind: image.kind,
            placeholder: false,
        }
    }

    /// Whether the container had its time to start. If one image is stuck, the next ones will be.
    fn progress(&self, image: &Image, known: &Known) -> delivery::Progress {
        let age = self.snapshot.now.saturating_sub(self.stuck_pod.created);
        match image.progress {
            // It crashes for its image if the node does not start that.
            Progress::Crashing if on_node(image, known) == OnNodes::None => {
                delivery::Progress::Stuck {
                    failures: 1,
                    news: known.copy == Copy::Arriving,
                }
            }
            Progress::Settled | Progress::Crashing => delivery::Progress::Settled,
            Progress::NotStarted => delivery::Progress::Waiting {
                due: self.stuck_pod.is_stuck(None) || age >= self.snapshot.grace,
            },
            Progress::Stuck => delivery::Progress::Stuck {
                failures: known.failures,
                news: known.copy == Copy::Arriving,
            },
        }
    }

    fn local(&self, image: &Image) -> Option<Change> {
        let address = self.snapshot.address.as_deref()?;
        let source = Reference::parse(&image.source).ok()?;
        Some(change(image, rewrite::rewrite(&source, address)?))
    }

    /// Evicts the pod, because these image volumes cannot change in place.
    fn recreate(&self, volumes: Vec<Change>, recreated: usize) -> Act {
        let why = if self.stuck_pod.owner.is_none() {
            Why::NoOwner
        } else if self.stuck_pod.running {
            Why::Running
        } else if !self.snapshot.recreates {
            Why::NotAllowed
        } else if recreated >= RECREATIONS {
            Why::TooOften
        } else {
            return Act::Recreate(volumes);
        };
        let keys = volumes.into_iter().map(|change| change.key).collect();
        Act::Unfixable { keys, why }
    }
}

/// Whether the node starts the image under its present name without a pull.
const fn on_node(image: &Image, known: &Known) -> OnNodes {
    if image.local {
        known.local
    } else {
        known.original
    }
}

/// The act for an image that has the reference of another cluster's registry, which this cluster
/// may not reach: both names of this cluster are better.
fn adopt(state: &State, progress: delivery::Progress) -> delivery::Act {
    let (local, original) = (state.level(Name::Local), state.level(Name::Original));
    let is_stuck = matches!(progress, delivery::Progress::Stuck { .. });
    let name = match progress {
        delivery::Progress::Settled | delivery::Progress::Waiting { due: false } => None,
        _ if local == delivery::Level::Sure => Some(Name::Local),
        _ if !is_stuck => None,
        _ if original >= delivery::Level::Expected || local == delivery::Level::No => {
            Some(Name::Original)
        }
        _ if local == delivery::Level::Expected => Some(Name::Local),
        _ => None,
    };
    match name {
        None => delivery::Act::Nothing,
        Some(name) if state.kind == Kind::Volume => delivery::Act::Recreate(name),
        Some(name) => delivery::Act::Switch(name),
    }
}

/// The sources that the registry must hold for an act: those of new references to the registry
/// whose copy is held already.
pub fn relies_on(act: &Act, is_held: impl Fn(&str) -> bool) -> Vec<&str> {
    let changes = match act {
        Act::Heal(changes) | Act::Recreate(changes) => changes.as_slice(),
        _ => &[],
    };
    changes
        .iter()
        .map(|change| change.source.as_str())
        .filter(|source| is_held(source))
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
pub(super) fn original(image: &Image) -> String {
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
