//! Who may pull an image: the upstream's answer for each Artifact, and the access list that
//! follows.
//!
//! Only with `access.privateImages: namespace`. An answer stays in the Artifact's status until
//! the next one; an upstream that does not answer changes nothing.

use holdfast_api::Artifact;
use holdfast_api::access::{
    Access, AccessList, MAX_LIST_BYTES, MAX_LIST_BYTES_OF_NAMESPACE, repository_of,
};
use holdfast_api::artifact::{ArtifactAccess, ArtifactStatus};
use holdfast_api::fill::Credential;
use holdfast_cluster_index::Key;
use holdfast_core::Reference;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Time after which access that was given is checked again.
const GRANTED_TTL: SignedDuration = SignedDuration::from_hours(24);
/// The same for access by a credential of which no pod or template is left. A weekly job must still
/// find its image.
const UNUSED_TTL: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Time after which a denial is checked again: Holdfast does not learn when a credential gets more
/// rights.
const DENIED_TTL: SignedDuration = SignedDuration::from_hours(1);
/// The least time between two checks without an answer.
const UNANSWERED_RETRY: Duration = Duration::from_secs(300);

/// What this process knows of the access checks, beside the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The credentials of the last check, as a hash that is salted for the process.
    credentials: Option<u64>,
    /// The time of the last check.
    at: Option<Instant>,
    /// Whether pods or templates brought further credentials since then.
    further: bool,
}

impl Asked {
    /// Records that pods or templates brought further credentials.
    pub fn again(&mut self) {
        self.further = true;
    }

    /// Records a check at `at` with these credentials.
    pub(super) fn record(&mut self, at: Instant, credentials: Option<u64>, answer: Access) {
        self.at = Some(at);
        if answer != Access::Unknown {
            self.credentials = credentials.or(self.credentials);
            self.further = false;
        }
    }

    /// Ends the pause after a check.
    #[cfg(test)]
    pub fn rested(&mut self) {
        self.at = None;
    }

    /// Whether further credentials must be tried before the next request for the image.
    pub fn is_to_be_asked(&self) -> bool {
        self.further
    }
}

/// Whether a check is due. `credentials`: the hash of those that pods or templates bring, if there
/// are any. `refused`: the upstream just denied the image to the registry.
pub(super) fn is_due(
    last: Option<&ArtifactAccess>,
    asked: &Asked,
    credentials: Option<u64>,
    refused: bool,
    (now, instant): (Timestamp, Instant),
) -> bool {
    let changed = asked
        .credentials
        .zip(credentials)
        .is_some_and(|(known, now)| known != now);
    let (is_given, pause) = match last.map(|last| last.answer) {
        Some(Access::Proved) if credentials.is_none() => (true, UNUSED_TTL),
        Some(Access::Public | Access::Configured | Access::Proved) => (true, GRANTED_TTL),
        Some(Access::Denied) => (false, DENIED_TTL),
        Some(Access::Unknown) | None => (false, SignedDuration::ZERO),
    };
    if asked.further || changed || (refused && is_given) {
        return true;
    }
    // After a start, the credentials of a denial are unknown.
    if last.is_some() && !is_given && asked.credentials.is_none() && credentials.is_some() {
        return true;
    }
    let age = last.map(|last| now.duration_since(last.time.0));
    // A time in the future was written with a wrong clock.
    let is_old = age.is_none_or(|age| age.is_negative() || age >= pause);
    let rests = asked
        .at
        .is_some_and(|at| instant.saturating_duration_since(at) < UNANSWERED_RETRY);
    is_old && !rests
}

/// A hash of credentials, by which a change is detected.
pub(super) fn hash(credentials: &[Credential]) -> u64 {
    static SALT: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SALT.hash_one(credentials)
}

/// The status with an answer; unchanged if the upstream gave none. Times are whole seconds, as in
/// the API.
pub(super) fn answered(
    mut status: ArtifactStatus,
    answer: Access,
    now: Timestamp,
) -> ArtifactStatus {
    if answer != Access::Unknown {
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        status.access = Some(ArtifactAccess {
            answer,
            time: Time(now),
        });
    }
    status
}

/// The upstream's last answer for an Artifact.
pub fn of(artifact: &Artifact) -> Access {
    let access = artifact.status.as_ref().and_then(|it| it.access.as_ref());
    access.map_or(Access::Unknown, |access| access.answer)
}

/// The access list that follows from the Artifacts, and how many names did not fit.
///
/// Names are taken in rounds, one of each namespace, so that no namespace takes the room of another
/// one. A public repository counts for the first namespace whose Artifact has it.
pub fn list<'a>(
    artifacts: impl Iterator<Item = (&'a Key, &'a Arc<Artifact>)>,
) -> (AccessList, usize) {
    let mut shared: BTreeSet<String> = BTreeSet::new();
    let mut brought: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for ((namespace, _), artifact) in artifacts {
        let answer = of(artifact);
        if !answer.is_for_all_namespaces() && answer != Access::Proved {
            continue;
        }
        let Ok(source) = Reference::parse(&artifact.spec.source_artifact) else {
            continue;
        };
        let repository = repository_of(&source);
        if answer.is_for_all_namespaces() {
            shared.insert(repository.clone());
        }
        brought.entry(namespace).or_default().insert(repository);
    }
    let mut left: Vec<(&str, usize, std::collections::btree_set::IntoIter<String>)> = brought
        .into_iter()
        .map(|(namespace, names)| (namespace, 0, names.into_iter()))
        .collect();
    let (mut list, mut bytes, mut refused) = (AccessList::default(), 0, 0);
    while !left.is_empty() {
        left.retain_mut(|(namespace, own_bytes, names)| {
            let Some(name) = names.next() else {
                return false;
            };
            let is_for_all_namespaces = shared.contains(&name);
            if is_for_all_namespaces && list.everybody.contains(&name) {
                return true;
            }
            // Quotes and a comma; the namespace's own key once.
            let first = !is_for_all_namespaces && !list.namespaces.contains_key(*namespace);
            let cost = name.len() + 3 + if first { namespace.len() + 6 } else { 0 };
            if bytes + cost > MAX_LIST_BYTES || *own_bytes + cost > MAX_LIST_BYTES_OF_NAMESPACE {
                refused += 1;
                return true;
            }
            bytes += cost;
            *own_bytes += cost;
            if is_for_all_namespaces {
                list.everybody.insert(name);
            } else {
                let own = list.namespaces.entry((*namespace).to_owned()).or_default();
                own.insert(name);
            }
            true
        });
    }
    (list, refused)
}

#[cfg(test)]
mod tests;
