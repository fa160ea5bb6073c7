//! Decides which name of an image a pod pulls: the upstream's (original) or the registry's (local).
//!
//! The rule for all callers: the chosen name is never less likely to start than the original
//! (`docs/design/delivery.md`). [`choose`] decides at admission, [`heal`] for a stored pod that
//! does not start, and both compare the same two levels. Pods that opt out, mirror pods and pods of
//! excluded owners and namespaces are the caller's matter: they keep their names.

use serde::{Deserialize, Serialize};

use crate::pod::Kind;

/// What the registry has of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// The manifest and all blobs of the wanted platforms.
    Held,
    /// A copy runs, and bytes arrive.
    Arriving,
    /// Nothing, or a copy that does not move.
    Absent,
}

/// What is known of the upstream of an image, from the registry's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// It answers, and did not refuse this image.
    Answers,
    /// Nothing.
    Unknown,
    /// It answers, and refuses this image.
    Refuses,
    /// Its host name does not resolve. Only the nodes may know it.
    Unresolvable,
    /// It does not answer.
    Away,
}

/// On which candidate nodes a name starts without a pull ([`crate::kubelet::starts`]). Candidates
/// are the node of a bound pod, the node of a `DaemonSet`'s pod, else all schedulable nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNodes {
    /// On each of them.
    All,
    /// On at least one.
    Some,
    /// On none.
    None,
    /// No node reported it.
    Unknown,
}

/// The pull policy of a container or an image volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Pulls only what the node lacks.
    IfNotPresent,
    /// Each start needs an answer of a registry.
    Always,
    /// Never pulls.
    Never,
}

impl PullPolicy {
    /// The policy of a container, whose default the API server has set.
    pub fn of(text: Option<&str>) -> Self {
        match text {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// One of the two names of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The upstream's reference.
    Original,
    /// The reference to the cluster's registry.
    Local,
}

impl Name {
    /// The other name.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Local,
            Self::Local => Self::Original,
        }
    }
}

/// All that a decision about one image of one pod depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What the registry has.
    pub copy: Copy,
    /// The upstream.
    pub upstream: Upstream,
    /// Where the original starts without a pull.
    pub original: OnNodes,
    /// Where the local name starts without a pull.
    pub local: OnNodes,
    /// Whether the candidate nodes can pull from the registry, and a replica of it answers.
    pub prepared: bool,
    /// Whether the candidate nodes ask the registry first when they pull the original.
    pub mirrored: bool,
    /// Whether the configuration of a node names this host, and Holdfast did not write it.
    pub foreign: bool,
    /// Whether a pull under the local name would take the image away from pods that keep its
    /// original name on these nodes.
    pub protect: bool,
    /// The pull policy.
    pub policy: PullPolicy,
    /// Where the pod declares the image.
    pub kind: Kind,
    /// Whether the text may be a placeholder that another webhook replaces.
    pub placeholder: bool,
}

/// How likely a name starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It cannot start.
    No,
    /// Nothing speaks against it.
    Possible,
    /// It needs an upstream that answers, or a copy that arrives.
    Expected,
    /// It starts without any upstream.
    Sure,
}

impl State {
    /// How likely `name` starts.
    pub fn level(&self, name: Name) -> Level {
        match name {
            Name::Original => self.level_original(),
            Name::Local => self.level_local(),
        }
    }

    fn level_local(&self) -> Level {
        if let Some(level) = self.level_without_pull(self.local) {
            return level;
        }
        let pulled = match (self.prepared, self.copy, self.upstream) {
            (true, Copy::Held, _) => Level::Sure,
            (true, Copy::Arriving, _) | (true, Copy::Absent, Upstream::Answers) => Level::Expected,
            (true, Copy::Absent, Upstream::Unknown) => Level::Possible,
            (false, ..) | (true, Copy::Absent, _) => Level::No,
        };
        if self.local == OnNodes::Some && self.policy != PullPolicy::Always {
            return pulled.max(Level::Possible);
        }
        pulled
    }

    fn level_original(&self) -> Level {
        if let Some(level) = self.level_without_pull(self.original) {
            return level;
        }
        match (self.mirrored, self.copy, self.upstream) {
            (true, Copy::Held, _) => Level::Sure,
            (true, Copy::Arriving, _) | (_, _, Upstream::Answers) => Level::Expected,
            // A node may have a route to the upstream that the registry lacks.
            _ => Level::Possible,
        }
    }

    /// The level, if the nodes alone decide it.
    fn level_without_pull(&self, on_nodes: OnNodes) -> Option<Level> {
        match (self.policy, on_nodes) {
            (PullPolicy::Always, _) => None,
            (_, OnNodes::All) => Some(Level::Sure),
            (PullPolicy::Never, OnNodes::None) => Some(Level::No),
            (PullPolicy::Never, _) => Some(Level::Possible),
            (PullPolicy::IfNotPresent, _) => None,
        }
    }
}

/// Why [`choose`] chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The policy is `Never`: kept.
    Never,
    /// Pods that keep the original would lose it: kept.
    Protected,
    /// The text may be a placeholder, and the local name is not sure: kept.
    Placeholder,
    /// The local name is sure: local.
    Held,
    /// The local name needs a copy, and nodes have the original: kept.
    OnNodes,
    /// The local name is expected to start: local.
    Expected,
    /// Nothing is known of the upstream, and nodes do not have the original: local.
    Unknown,
    /// The local name is less likely to start: kept.
    NotBetter,
}

impl Rule {
    /// The name that follows from the rule.
    pub const fn name(self) -> Name {
        match self {
            Self::Held | Self::Expected | Self::Unknown => Name::Local,
            Self::Never | Self::Protected | Self::Placeholder | Self::OnNodes | Self::NotBetter => {
                Name::Original
            }
        }
    }
}

/// Chooses the name of an image at admission. The first rule that applies decides.
pub fn choose(state: &State) -> Rule {
    let local = state.level(Name::Local);
    let original = state.original;
    if state.policy == PullPolicy::Never {
        Rule::Never
    } else if state.protect && state.policy != PullPolicy::Always && original == OnNodes::All {
        Rule::Protected
    } else if state.placeholder && local < Level::Sure {
        Rule::Placeholder
    } else if local == Level::Sure {
        Rule::Held
    } else if local == Level::Expected && matches!(original, OnNodes::All | OnNodes::Some) {
        // The pull of a copy that still arrives does not fail, so healing would not see it, and the
        // same pod starts from its node at once.
        Rule::OnNodes
    } else if local == Level::Expected {
        Rule::Expected
    } else if local == Level::Possible
        && state.copy == Copy::Absent
        && state.prepared
        && state.upstream == Upstream::Unknown
        && !state.foreign
        && matches!(original, OnNodes::None | OnNodes::Unknown)
    {
        Rule::Unknown
    } else {
        Rule::NotBetter
    }
}

/// What a stored pod does with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A container runs, or fails for another reason than its image.
    Settled,
    /// The container waits, and no pull failed.
    Waiting {
        /// Whether it had its time to start, or another image of the pod is stuck.
        due: bool,
    },
    /// `ErrImagePull`, `ImagePullBackOff` or `ErrImageNeverPull`, also of a container that ran
    /// before.
    Stuck {
        /// Failed pulls under the present name, at least 1.
        failures: u32,
        /// Whether bytes of the copy arrived within 30 s, or copy, node or upstream changed after
        /// the last failure: then the next attempt may succeed.
        news: bool,
    },
}

/// The changes of one image of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switches {
    /// How often its name changed, each time within [`SETTLED_SECONDS`] of the last.
    pub count: u32,
    /// When it last changed, seconds since 1970.
    pub last: i64,
}

/// Seconds after which earlier changes of an image are forgotten.
pub const SETTLED_SECONDS: i64 = 3600;
/// Seconds until the name of an image may change for the second time; doubles with each change.
pub const FIRST_SWITCH_SECONDS: i64 = 15;
/// The longest pause between two changes, seconds.
pub const MAX_SWITCH_SECONDS: i64 = 900;

impl Switches {
    /// When the name may change next, seconds since 1970.
    pub fn next(&self) -> i64 {
        let Some(doublings) = self.count.checked_sub(1) else {
            return i64::MIN;
        };
        let pause = FIRST_SWITCH_SECONDS << doublings.min(16);
        // The annotation of a pod may say any time.
        self.last.saturating_add(pause.min(MAX_SWITCH_SECONDS))
    }

    /// The changes after one more, at `now` in seconds since 1970.
    #[must_use]
    pub fn after(&self, now: i64) -> Self {
        let is_settled = now.saturating_sub(self.last) >= SETTLED_SECONDS;
        let count = if is_settled { 0 } else { self.count };
        Self {
            count: count.saturating_add(1),
            last: now,
        }
    }
}

/// What to do for an image of a stored pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing for now.
    Nothing,
    /// Change to this name.
    Switch(Name),
    /// Change to this name by a new pod: an image volume cannot change.
    Recreate(Name),
    /// Neither name starts, or the image cannot change: tell it.
    Tell,
}

/// Decides for an image that has `written` as its name. The bound node is the only candidate.
///
/// A switch needs a name that is more likely to start than the present one. A name that failed
/// twice counts as possible at most; one failure is enough if the other name is sure. A local name
/// whose copy is held needs both.
pub fn heal(
    state: &State,
    written: Name,
    progress: Progress,
    switches: &Switches,
    now: i64,
) -> Act {
    let (present, other) = (state.level(written), state.level(written.other()));
    let is_better = match progress {
        Progress::Settled => return Act::Nothing,
        Progress::Waiting { due } => {
            // An image volume would cost the pod.
            due && state.kind != Kind::Volume
                && written == Name::Original
                && other == Level::Sure
                && present < Level::Sure
        }
        Progress::Stuck { failures, news } => {
            // A held copy is given up only for a name that the node starts at once, and not at the
            // first failure: the registry may have restarted.
            let is_held = written == Name::Local && present == Level::Sure;
            let (is_sure, is_twice) = (other == Level::Sure, failures >= 2);
            let is_doubtful = if is_held {
                is_sure && is_twice
            } else {
                is_sure || is_twice
            };
            let is_doubtful = is_doubtful && !news;
            let present = if is_doubtful {
                present.min(Level::Possible)
            } else {
                present
            };
            other > present && (other >= Level::Expected || written == Name::Local)
        }
    };
    match (is_better, progress) {
        (true, _) if state.kind == Kind::Ephemeral => Act::Tell,
        (true, _) if now < switches.next() => Act::Nothing,
        (true, _) if state.kind == Kind::Volume => Act::Recreate(written.other()),
        (true, _) => Act::Switch(written.other()),
        (false, Progress::Stuck { failures, news }) if failures >= 2 && !news => Act::Tell,
        (false, _) => Act::Nothing,
    }
}

#[cfg(test)]
mod tests;
