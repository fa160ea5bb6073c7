//! The sources of one copy. Each request for a digest adds the source of its own image. The copy
//! continues from another source if the current one fails or is slow, so a slow upstream does not
//! delay requests that have a faster one.
//!
//! Refusals and wrong claims of a source affect only the requests that added it.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use holdfast_core::{Host, RepositoryName};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

use super::{Error, Result};
use crate::limits::COPY_SOURCES;
use holdfast_upstream::{
    UpstreamRepository,
    flow::{Flow, FlowRate, SLOW},
};

/// Below this rate it is tried whether another source sends faster, bytes a second.
const MODEST: u64 = 1 << 20;
/// The copy returns to a source that it left if that one was faster by this factor.
const FASTER: u64 = 4;
/// How often the running source is looked at while there are others.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long a source may need until it sends, while there are others.
pub(super) const BEGIN_WITHIN: Duration = Duration::from_secs(1);

/// How long an offer to another replica counts. It is made again then, for the copy may be another
/// one.
const OFFER_AGAIN: Duration = Duration::from_secs(10);

/// A source of the blob, with the repository that it was added for.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) source: UpstreamRepository,
    pub(super) repo: RepositoryName,
    /// The size that this source's manifest claims.
    pub(super) claim: Option<u64>,
    /// Whether another replica brought it, for its own clients.
    is_foreign: bool,
    /// The replica that it was brought to, because that one copies, and when.
    offered: Mutex<Option<(String, Instant)>>,
    /// Times that all of what it sent was wrong.
    wrong: AtomicU32,
    failed: OnceLock<Error>,
    told: Notify,
}

impl Candidate {
    /// All that it sent was wrong once more; how often it was by now.
    pub(super) fn was_wrong(&self) -> u32 {
        self.wrong.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The replica with this id took it.
    pub(super) fn offered(&self, id: &str) {
        let mut offered = self.offered.lock();
        *offered = Some((id.to_owned(), Instant::now()));
    }

    /// Whether that is so, and not so long ago that the replica may have begun another copy.
    fn is_offered(&self, id: &str) -> bool {
        let offered = self.offered.lock();
        let mut offered = offered.iter();
        offered.any(|(to, at)| to == id && at.elapsed() < OFFER_AGAIN)
    }

    /// Resolves when the copy gave this source up.
    pub(super) async fn given_up(&self) -> Error {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            if let Some(error) = self.failed.get() {
                return error.clone();
            }
            told.await;
        }
    }

    fn is(&self, source: &UpstreamRepository, claim: Option<u64>) -> bool {
        self.source.host == source.host
            && self.source.repository == source.repository
            && self.source.logins == source.logins
            && self.claim == claim
    }
}

/// The state of a source that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CandidateState {
    Untried,
    Running,
    /// Left for another one, at this rate.
    Left(u64),
}

/// The sources, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Mutex<List>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct List {
    all: Vec<(Arc<Candidate>, CandidateState)>,
    /// Sources that failed, of hosts that have others.
    failed: HashMap<Host, usize>,
    /// The copy ends: a later request begins another one.
    is_closed: bool,
}

impl List {
    /// Sources of this one's host, and of its repository there.
    fn shares(&self, of: &UpstreamRepository) -> (usize, usize) {
        let of_host = self
            .all
            .iter()
            .filter(|(other, _)| other.source.host == of.host);
        let of_repository = of_host
            .clone()
            .filter(|(other, _)| other.source.repository == of.repository);
        (of_host.count(), of_repository.count())
    }

    /// Which source gives its place to a newcomer, so that no repository's claims, and no host's
    /// repositories, keep out or throw out others: the slowest that was left, of a host, or of a
    /// repository of the same host, that has no fewer; else one that does not run, where that has
    /// at least two more.
    fn gives_way(&self, newcomer: &UpstreamRepository) -> Option<usize> {
        let own = self.shares(newcomer);
        let has_more = |known: &UpstreamRepository, more: usize| {
            let other = self.shares(known);
            if known.host == newcomer.host {
                own.1 + more <= other.1
            } else {
                own.0 + more <= other.0
            }
        };
        let all = || self.all.iter().enumerate();
        let left = all().filter_map(|(at, (known, state))| match state {
            CandidateState::Left(rate) => has_more(&known.source, 0).then_some((*rate, at)),
            _ => None,
        });
        if let Some((_, at)) = left.min() {
            return Some(at);
        }
        let idle = all().filter(|(_, (_, state))| *state != CandidateState::Running);
        let surplus = idle.filter(|(_, (known, _))| has_more(&known.source, 2));
        let most = surplus.max_by_key(|(at, (known, _))| (self.shares(&known.source), *at));
        most.map(|(at, _)| at)
    }
}

impl Candidates {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock()
    }

    /// Joins with a source; the same one joins once. `None`: there are too many, or the copy ends.
    pub(super) fn join(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        claim: Option<u64>,
    ) -> Option<Arc<Candidate>> {
        self.add(source, repo, claim, false)
    }

    /// The same with a source that another replica brings.
    pub(super) fn take(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        claim: Option<u64>,
    ) -> Option<Arc<Candidate>> {
        self.add(source, repo, claim, true)
    }

    /// A source of this replica's own that the one with this id, which copies, was not brought.
    pub(super) fn to_offer(&self, id: &str) -> Option<Arc<Candidate>> {
        let list = self.list();
        let mut own = list.all.iter().filter(|(known, _)| !known.is_foreign);
        own.find(|(known, _)| !known.is_offered(id))
            .map(|(known, _)| Arc::clone(known))
    }

    fn add(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        claim: Option<u64>,
        is_foreign: bool,
    ) -> Option<Arc<Candidate>> {
        let mut list = self.list();
        if list.is_closed {
            return None;
        }
        let mut known = list.all.iter();
        if let Some((known, _)) = known.find(|(known, _)| known.is(source, claim)) {
            return Some(Arc::clone(known));
        }
        if list.all.len() >= COPY_SOURCES {
            // The requests that added the removed source wait for the others.
            let at = list.gives_way(source)?;
            list.all.remove(at);
        }
        let candidate = Arc::new(Candidate {
            source: source.clone(),
            repo: repo.clone(),
            claim,
            is_foreign,
            offered: Mutex::default(),
            wrong: AtomicU32::new(0),
            failed: OnceLock::new(),
            told: Notify::new(),
        });
        list.all
            .push((Arc::clone(&candidate), CandidateState::Untried));
        drop(list);
        self.changed.notify_waiters();
        Some(candidate)
    }

    /// The source to continue from: one that was never tried, the host with the fewest tries first,
    /// else the fastest. `None`: there is none, and no request can join any more.
    pub(super) fn next(&self) -> Option<Arc<Candidate>> {
        let mut list = self.list();
        let all = &list.all;
        let tries = |of: &Candidate| {
            let tried = all.iter().filter(|(other, state)| {
                *state != CandidateState::Untried && other.source.host == of.source.host
            });
            tried.count() + list.failed.get(&of.source.host).copied().unwrap_or(0)
        };
        let numbered = || all.iter().enumerate();
        let untried = numbered()
            .filter(|(_, (_, state))| *state == CandidateState::Untried)
            .min_by_key(|(_, (candidate, _))| tries(candidate));
        let fastest = || {
            numbered().max_by_key(|(_, (_, state))| match state {
                CandidateState::Left(rate) => *rate,
                _ => 0,
            })
        };
        let Some(at) = untried.or_else(fastest).map(|(at, _)| at) else {
            list.is_closed = true;
            return None;
        };
        list.all[at].1 = CandidateState::Running;
        Some(Arc::clone(&list.all[at].0))
    }

    /// The source is left for another one; it may go on later.
    pub(super) fn leave(&self, candidate: &Arc<Candidate>, rate: u64) {
        for (known, state) in &mut self.list().all {
            if Arc::ptr_eq(known, candidate) {
                *state = CandidateState::Left(rate);
            }
        }
    }

    /// Removes a source that is of no use, and gives the error to the requests that added it. It is
    /// tried again if a request adds it again.
    pub(super) fn fail(&self, candidate: &Arc<Candidate>, error: Error) {
        let mut list = self.list();
        list.all.retain(|(known, _)| !Arc::ptr_eq(known, candidate));
        let host = &candidate.source.host;
        if list.all.iter().any(|(known, _)| known.source.host == *host) {
            *list.failed.entry(host.clone()).or_default() += 1;
        } else {
            list.failed.remove(host);
        }
        drop(list);
        drop(candidate.failed.set(error));
        candidate.told.notify_waiters();
    }

    /// Whether another source should go on. `rate`: of the running one, `None` before it is known.
    /// `alone`: going on elsewhere throws away what is there.
    fn is_better_elsewhere(&self, rate: Option<u64>, alone: bool) -> bool {
        let Some(rate) = rate else {
            return false;
        };
        let list = self.list();
        let modest = if alone { SLOW } else { MODEST };
        let mut all = list.all.iter();
        let running = all.find(|(_, state)| *state == CandidateState::Running);
        // The same repository sends no faster to other credentials.
        let others = list.all.iter().filter(|(other, _)| {
            running.is_none_or(|(running, _)| {
                let (running, other) = (&running.source, &other.source);
                (&running.host, &running.repository) != (&other.host, &other.repository)
            })
        });
        let mut others = others.map(|(_, state)| state);
        others.any(|state| match state {
            CandidateState::Untried => rate < modest,
            CandidateState::Left(other) => rate < modest && *other / FASTER > rate,
            CandidateState::Running => false,
        })
    }

    fn has_others(&self) -> bool {
        let list = self.list();
        let mut all = list.all.iter();
        all.any(|(_, state)| *state != CandidateState::Running)
    }

    /// Resolves when another source should go on, with the rate of the running one. Without a flow
    /// it has not begun to send.
    pub(super) async fn elsewhere(&self, flow: Option<&Flow>, alone: bool) -> u64 {
        let mut rated = FlowRate::default();
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.has_others() {
                changed.await;
                continue;
            }
            let rate = if let Some(flow) = flow {
                tokio::time::sleep(POLL_INTERVAL).await;
                rated.look(flow.sample())
            } else {
                tokio::time::sleep(BEGIN_WITHIN).await;
                Some(0)
            };
            if self.is_better_elsewhere(rate, alone) {
                return rate.unwrap_or(0);
            }
        }
    }

    /// The copy ended; tells all who are left why it failed, if it did.
    pub(super) fn end(&self, result: &Result<()>) {
        let left = {
            let mut list = self.list();
            list.is_closed = true;
            std::mem::take(&mut list.all)
        };
        if let Err(error) = result {
            for (candidate, _) in left {
                drop(candidate.failed.set(error.clone()));
                candidate.told.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_upstream::SharedPriority;

    fn source(host: &str, repository: &str) -> (UpstreamRepository, RepositoryName) {
        let source = UpstreamRepository {
            host: Host::parse(host).unwrap(),
            repository: RepositoryName::parse(repository).unwrap(),
            logins: Vec::new(),
            priority: SharedPriority::default(),
        };
        let local = RepositoryName::parse(&format!("{host}/{repository}")).unwrap();
        (source, local)
    }

    fn join(to: &Candidates, host: &str, repository: &str) -> Option<Arc<Candidate>> {
        let (source, local) = source(host, repository);
        to.join(&source, &local, Some(1))
    }

    #[test]
    fn a_source_joins_once_and_hosts_take_turns() {
        let all = Candidates::default();
        let a = join(&all, "a.example", "x").unwrap();
        let again = join(&all, "a.example", "x").unwrap();
        assert!(Arc::ptr_eq(&a, &again));
        assert!(Arc::ptr_eq(&all.next().unwrap(), &a));
        let _second = join(&all, "a.example", "y").unwrap();
        let b = join(&all, "b.example", "x").unwrap();
        all.leave(&a, 10);
        assert!(
            Arc::ptr_eq(&all.next().unwrap(), &b),
            "the other host first"
        );
    }

    #[test]
    fn a_slow_source_is_left_for_one_that_may_be_faster() {
        let all = Candidates::default();
        let a = join(&all, "a.example", "x").unwrap();
        all.next().unwrap();
        assert!(
            !all.is_better_elsewhere(Some(0), false),
            "there is no other"
        );
        let b = join(&all, "b.example", "x").unwrap();
        assert!(!all.is_better_elsewhere(None, false), "not known yet");
        assert!(all.is_better_elsewhere(Some(MODEST - 1), false));
        assert!(
            !all.is_better_elsewhere(Some(MODEST), false),
            "it is healthy"
        );
        assert!(
            !all.is_better_elsewhere(Some(SLOW), true),
            "costs what is there"
        );
        all.leave(&a, 1000);
        assert!(Arc::ptr_eq(&all.next().unwrap(), &b));
        assert!(!all.is_better_elsewhere(Some(900), false), "as slow there");
        assert!(all.is_better_elsewhere(Some(200), false));
        all.fail(&b, Error::NotFound);
        assert!(Arc::ptr_eq(&all.next().unwrap(), &a), "the only one left");
        assert_eq!(b.failed.get(), Some(&Error::NotFound));
        assert_eq!(a.failed.get(), None, "not of its own failure");
    }

    #[test]
    fn an_offer_of_another_replica_interrupts_no_copy_that_is_fast_enough() {
        let all = Candidates::default();
        let a = join(&all, "a.example", "x").unwrap();
        all.next().unwrap();
        let (source, local) = source("b.example", "x");
        let b = all.take(&source, &local, Some(1)).unwrap();
        assert!(!all.is_better_elsewhere(Some(MODEST), false));
        assert!(all.is_better_elsewhere(Some(MODEST - 1), false));
        // What came from elsewhere is not passed on; the own one is offered once to each replica.
        for replica in ["two", "three"] {
            assert!(Arc::ptr_eq(&all.to_offer(replica).unwrap(), &a));
            a.offered(replica);
            assert!(all.to_offer(replica).is_none());
        }
        all.leave(&a, 10);
        assert!(Arc::ptr_eq(&all.next().unwrap(), &b));
    }

    #[test]
    fn claims_and_repositories_of_one_host_keep_no_others_out() {
        let all = Candidates::default();
        let claim = |host: &str, repository: &str, claim: u64| {
            let (source, local) = source(host, repository);
            all.join(&source, &local, Some(claim)).is_some()
        };
        for n in 0..COPY_SOURCES as u64 {
            assert!(claim("a.example", "x", n));
        }
        let running = all.next().unwrap();
        // Another repository of the same host, until each has a half.
        let most = COPY_SOURCES as u64 / 2;
        for n in 0..most {
            assert!(claim("a.example", "y", n), "{n}");
        }
        assert!(!claim("a.example", "y", most));
        // Another host takes from the one that has more.
        for n in 0..most {
            assert!(claim("b.example", "x", n), "{n}");
        }
        assert!(!claim("b.example", "x", most));
        let list = all.list();
        assert_eq!(list.all.len(), COPY_SOURCES);
        let mut kept = list.all.iter();
        assert!(kept.any(|(known, _)| Arc::ptr_eq(known, &running)));
    }

    #[test]
    fn claims_of_a_repository_do_not_throw_out_a_source_that_was_left() {
        let all = Candidates::default();
        let honest = join(&all, "honest.example", "r").unwrap();
        assert!(Arc::ptr_eq(&all.next().unwrap(), &honest));
        let (strange, local) = source("strange.example", "x");
        all.join(&strange, &local, Some(0)).unwrap();
        all.leave(&honest, 900_000);
        all.next().unwrap();
        for claim in 1..COPY_SOURCES as u64 - 1 {
            assert!(all.join(&strange, &local, Some(claim)).is_some());
        }
        assert!(all.join(&strange, &local, Some(99)).is_none());
        let list = all.list();
        let mut all = list.all.iter();
        assert!(all.any(|(known, _)| Arc::ptr_eq(known, &honest)));
    }

    #[test]
    fn a_host_whose_sources_fail_comes_after_others() {
        let all = Candidates::default();
        let (strange, local) = source("strange.example", "x");
        for claim in 0..COPY_SOURCES as u64 - 1 {
            all.join(&strange, &local, Some(claim)).unwrap();
        }
        let honest = join(&all, "honest.example", "r").unwrap();
        let first = all.next().unwrap();
        all.fail(&first, Error::NotAllowed);
        assert!(Arc::ptr_eq(&all.next().unwrap(), &honest));
    }

    #[test]
    fn no_more_sources_are_remembered_than_the_limit_says() {
        let all = Candidates::default();
        for n in 0..COPY_SOURCES {
            assert!(join(&all, &format!("{n}.example"), "r").is_some());
        }
        assert!(join(&all, "b.example", "x").is_none());
        let first = all.next().unwrap();
        all.fail(&first, Error::NotFound);
        assert!(join(&all, "b.example", "x").is_some());
        assert!(join(&all, "b.example", "y").is_none());
        for rate in [10, 5, 20] {
            all.leave(&all.next().unwrap(), rate);
        }
        // The slowest that was left makes room, and none that may still be good.
        let rates = || {
            let list = all.list();
            let left = list.all.iter().filter_map(|(_, state)| match state {
                CandidateState::Left(rate) => Some(*rate),
                _ => None,
            });
            left.collect::<Vec<_>>()
        };
        for (host, left) in [
            ("y.example", vec![10, 20]),
            ("z.example", vec![20]),
            ("w.example", vec![]),
        ] {
            assert!(join(&all, host, "x").is_some());
            assert_eq!(rates(), left);
        }
        assert!(join(&all, "b.example", "v").is_none());
        assert_eq!(all.list().all.len(), COPY_SOURCES);
    }
}
