//! Who may have an image: what the upstream answered for each Artifact, and the list that follows
//! for all pods.
//!
//! Only where `access.privateImages` is `namespace`. An answer stays in the Artifact's status until
//! another one is given; that the upstream does not answer changes nothing.

use super::credentials::Choice;
use super::demand::Demand;
use super::reconcile::{Memory, Reconciler};
use crate::index::Key;
use holdfast_api::Artifact;
use holdfast_api::access::{
    Access, AccessList, AccessRequest, MAX_LIST_BYTES, MAX_LIST_BYTES_OF_NAMESPACE, repository_of,
};
use holdfast_api::artifact::{ArtifactAccess, ArtifactStatus, Reason};
use holdfast_api::fill::Credential;
use holdfast_core::Reference;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// An image that the namespace may have is asked for again after this time.
const GRANTED_TTL: SignedDuration = SignedDuration::from_hours(24);
/// One that a credential opened and that nothing in the namespace names now: there is no credential
/// to ask with, but a weekly job must still find its image.
const UNUSED_TTL: SignedDuration = SignedDuration::from_hours(7 * 24);
/// One that it may not have: Holdfast does not learn when its credential gets more rights.
const DENIED_TTL: SignedDuration = SignedDuration::from_hours(1);
/// The least time between two questions that were not answered.
const UNANSWERED_RETRY: Duration = Duration::from_secs(300);

/// What this process knows beside the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The credentials that were asked with last, as a hash that is salted for the process.
    credentials: Option<u64>,
    /// When the registry was asked last.
    at: Option<Instant>,
    /// Whether pods or templates bring further credentials since then.
    further: bool,
}

impl Asked {
    /// Pods or templates bring further credentials.
    pub fn again(&mut self) {
        self.further = true;
    }

    /// The pause after a question is over.
    #[cfg(test)]
    pub fn rested(&mut self) {
        self.at = None;
    }

    /// Whether further credentials are to be tried before the registry is asked for the image
    /// again.
    pub fn is_to_be_asked(&self) -> bool {
        self.further
    }
}

/// Whether the upstream is to be asked who may have the image: pure. `credentials`: of those that
/// pods or templates bring, where there are any. `refused`: the registry was just refused the
/// image.
fn is_due(
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
    // After a start it is not known what a refusal was based on.
    if last.is_some() && !is_given && asked.credentials.is_none() && credentials.is_some() {
        return true;
    }
    let age = last.map(|last| now.duration_since(last.time.0));
    // A time to come is of a clock that was wrong.
    let is_old = age.is_none_or(|age| age.is_negative() || age >= pause);
    let rests = asked
        .at
        .is_some_and(|at| instant.saturating_duration_since(at) < UNANSWERED_RETRY);
    is_old && !rests
}

/// A hash of credentials by which a change is noticed, and nothing else.
fn hash(credentials: &[Credential]) -> u64 {
    static SALT: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SALT.hash_one(credentials)
}

/// The status with an answer; the same where the upstream gave none. Whole seconds, as they are
/// written.
fn answered(mut status: ArtifactStatus, answer: Access, now: Timestamp) -> ArtifactStatus {
    if answer != Access::Unknown {
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        status.access = Some(ArtifactAccess {
            answer,
            time: Time(now),
        });
    }
    status
}

impl Reconciler {
    /// Asks who may have the image with what pods or templates bring, if that is due, and writes
    /// the answer.
    pub(super) async fn renew_access(
        &self,
        artifact: &Artifact,
        brought: Option<Vec<Credential>>,
        outcome: Reason,
        memory: &mut Memory,
    ) {
        let is_answered = matches!(
            outcome,
            Reason::Copied | Reason::Unauthorized | Reason::NotFound | Reason::NoSpace
        );
        if !self.context.config.values.access.is_by_namespace() || !is_answered {
            return;
        }
        let Some(status) = memory.status.clone() else {
            return;
        };
        let (last, hash) = (status.access.as_ref(), brought.as_deref().map(hash));
        let refused = matches!(outcome, Reason::Unauthorized | Reason::NotFound);
        let now = (Timestamp::now(), Instant::now());
        if !is_due(last, &memory.access, hash, refused, now) {
            return;
        }
        let request = AccessRequest {
            source: artifact.spec.source_artifact.clone(),
            credentials: brought.unwrap_or_default(),
        };
        let answer = self.client.access(&request).await;
        memory.access.at = Some(Instant::now());
        if answer == Access::Unknown {
            return;
        }
        memory.access.credentials = hash.or(memory.access.credentials);
        memory.access.further = false;
        if last.map(|last| last.answer) != Some(answer) {
            tracing::info!(
                artifact.namespace = artifact.namespace(),
                image = artifact.spec.source_artifact,
                access = answer.as_str(),
                "upstream access check finished"
            );
        }
        self.put(artifact, answered(status, answer, now.0), memory)
            .await;
    }

    /// The same for an image that the registry need not be asked for, when further credentials
    /// came.
    pub(super) async fn try_further_credentials(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
        memory: &mut Memory,
    ) {
        let by_namespace = self.context.config.values.access.is_by_namespace();
        let is_due = memory.access.is_to_be_asked() && memory.was_confirmed();
        if !by_namespace || !is_due || !matches!(choice, Choice::Pods(_)) {
            return;
        }
        if let Ok((request, _)) = self.request(artifact, demand, choice, &[]).await {
            let brought = Some(request.credentials);
            self.renew_access(artifact, brought, Reason::Copied, memory)
                .await;
        }
    }
}

/// What the upstream answered last for an Artifact.
pub fn of(artifact: &Artifact) -> Access {
    let access = artifact.status.as_ref().and_then(|it| it.access.as_ref());
    access.map_or(Access::Unknown, |access| access.answer)
}

/// The list that follows from the Artifacts, and how many names found no room on it: pure.
///
/// Names are taken in rounds, one of each namespace that has some left, so that no namespace takes
/// the room of another one. A public repository counts for the first namespace whose Artifact says
/// so.
pub fn list<'a>(
    artifacts: impl Iterator<Item = (&'a Key, &'a Arc<Artifact>)>,
) -> (AccessList, usize) {
    let mut everybodys: BTreeSet<String> = BTreeSet::new();
    let mut brought: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for ((namespace, _), artifact) in artifacts {
        let answer = of(artifact);
        if !answer.is_everybodys() && answer != Access::Proved {
            continue;
        }
        let Ok(source) = Reference::parse(&artifact.spec.source_artifact) else {
            continue;
        };
        let repository = repository_of(&source);
        if answer.is_everybodys() {
            everybodys.insert(repository.clone());
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
            let is_everybodys = everybodys.contains(&name);
            if is_everybodys && list.everybody.contains(&name) {
                return true;
            }
            // Quotes and a comma; the namespace's own key once.
            let first = !is_everybodys && !list.namespaces.contains_key(*namespace);
            let cost = name.len() + 3 + if first { namespace.len() + 6 } else { 0 };
            if bytes + cost > MAX_LIST_BYTES || *own_bytes + cost > MAX_LIST_BYTES_OF_NAMESPACE {
                refused += 1;
                return true;
            }
            bytes += cost;
            *own_bytes += cost;
            if is_everybodys {
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
