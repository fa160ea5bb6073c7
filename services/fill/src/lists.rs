//! The lists of upstreams for the repositories that are copied from them: requested by pulls,
//! cached for a short time, and stale when the upstream cannot be reached. A list that could not be
//! read is never reported as an empty one.

use std::{
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{Digest, RepositoryName, Tag};
use parking_lot::{Mutex, MutexGuard};

use super::{settings::Settings, sources::Sources};
use crate::{limits::UPSTREAM_LISTS_BYTES, pull_through::Listed};
use holdfast_core::shares::Shares;
use holdfast_upstream::{Error, Pages, Referrer, Result, Upstreams};

/// How long a list counts as fresh.
const FRESH: Duration = Duration::from_secs(30);
/// For how long an upstream that did not answer is not asked for this list again.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Most lists of a kind that are kept.
const MAX_LISTS: usize = 2000;
/// What a list takes in memory beside its entries.
const LIST_COST: usize = 1 << 10;

/// The last answer about a list.
#[derive(Debug)]
struct CachedList<T> {
    pages: Option<(Arc<[T]>, Instant)>,
    complete: bool,
    bytes: usize,
    failed: Option<(String, Instant)>,
}

impl<T> Default for CachedList<T> {
    fn default() -> Self {
        Self {
            pages: None,
            complete: true,
            bytes: 0,
            failed: None,
        }
    }
}

impl<T> CachedList<T> {
    /// What may be answered at `now` without asking.
    fn answer(&self, now: Instant) -> Option<Listed<T>> {
        let is_within = |at: Instant, limit| now.saturating_duration_since(at) < limit;
        match (&self.pages, &self.failed) {
            (Some((entries, at)), _) if is_within(*at, FRESH) => Some(Listed {
                entries: Arc::clone(entries),
                warning: (!self.complete)
                    .then(|| "the upstream has more than is listed".to_owned()),
                known: true,
            }),
            (pages, Some((why, at))) if is_within(*at, FAILURE_TTL) => Some(match pages {
                Some((entries, told)) => Listed {
                    entries: Arc::clone(entries),
                    warning: Some(format!(
                        "the upstream's list is {} s old: {why}",
                        now.saturating_duration_since(*told).as_secs()
                    )),
                    known: true,
                },
                None => Listed::unknown(why),
            }),
            _ => None,
        }
    }

    fn record(&mut self, outcome: Result<Pages<T>>, now: Instant) {
        match outcome {
            Ok(pages) => {
                *self = Self {
                    pages: Some((pages.entries.into(), now)),
                    complete: pages.complete,
                    bytes: pages.bytes,
                    failed: None,
                }
            }
            Err(error) => self.failed = Some((error.to_string(), now)),
        }
    }
}

/// A list that is kept, or asked for.
type List<T> = Arc<tokio::sync::Mutex<CachedList<T>>>;

/// The lists of one kind. Each counts towards the share of its upstream. A list that is being asked
/// for is not asked for again: the other requests wait for that answer.
#[derive(Debug)]
struct ListCache<K, T> {
    lists: Mutex<Shares<String, K, List<T>>>,
}

impl<K: Clone + Eq + Hash, T> Default for ListCache<K, T> {
    fn default() -> Self {
        Self {
            lists: Mutex::new(Shares::new(UPSTREAM_LISTS_BYTES, MAX_LISTS)),
        }
    }
}

impl<K: Clone + Eq + Hash, T> ListCache<K, T> {
    fn lists(&self) -> MutexGuard<'_, Shares<String, K, List<T>>> {
        self.lists.lock()
    }

    async fn get(
        &self,
        key: &K,
        host: &str,
        ask: impl Future<Output = Result<Pages<T>>>,
    ) -> Listed<T> {
        let list = self.list(key, host);
        let mut told = list.lock().await;
        if let Some(answer) = told.answer(Instant::now()) {
            return answer;
        }
        let outcome = ask.await;
        let now = Instant::now();
        told.record(outcome, now);
        let mut lists = self.lists();
        // Another one may be kept in its place by now, or none.
        if lists.get(key).is_some_and(|kept| Arc::ptr_eq(kept, &list)) {
            lists.resize(key, LIST_COST + told.bytes, now);
        }
        drop(lists);
        let answer = told.answer(now);
        answer.unwrap_or_else(|| Listed::unknown("the upstream did not tell"))
    }

    fn list(&self, key: &K, host: &str) -> List<T> {
        let mut lists = self.lists();
        if let Some(list) = lists.get(key) {
            return Arc::clone(list);
        }
        let list = List::default();
        let entry = (Arc::clone(&list), LIST_COST);
        lists.insert(&host.to_owned(), key.clone(), entry, Instant::now());
        list
    }
}

/// What upstreams list.
pub(super) struct Lists {
    upstreams: Upstreams,
    sources: Arc<Sources>,
    has_controller: bool,
    tags: ListCache<RepositoryName, Tag>,
    referrers: ListCache<(RepositoryName, Digest), Referrer>,
}

impl Lists {
    pub(super) fn new(upstreams: Upstreams, sources: Arc<Sources>, settings: &Settings) -> Self {
        Self {
            upstreams,
            sources,
            has_controller: settings.has_controller,
            tags: ListCache::default(),
            referrers: ListCache::default(),
        }
    }

    /// The tags that the upstream of a repository has.
    pub(super) async fn tags(&self, repo: &RepositoryName) -> Listed<Tag> {
        let Some(source) = self.sources.of_lists(repo) else {
            return self.not_asked();
        };
        let ask = async {
            match self.upstreams.tags(&source).await {
                // It has no such repository, which is an answer.
                Err(Error::NotFound) => Ok(Pages::default()),
                found => found,
            }
        };
        let host = source.host.to_string();
        Box::pin(self.tags.get(repo, &host, ask)).await
    }

    /// The referrers of a manifest at the upstream of a repository.
    pub(super) async fn referrers(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
    ) -> Listed<Referrer> {
        let Some(source) = self.sources.of_lists(repo) else {
            return self.not_asked();
        };
        let key = (repo.clone(), subject.clone());
        let ask = self.upstreams.referrers(&source, subject);
        let host = source.host.to_string();
        Box::pin(self.referrers.get(&key, &host, ask)).await
    }

    /// What is known of a list that no upstream may be asked for. Where no controller can name the
    /// upstream, what is here is all.
    fn not_asked<T>(&self) -> Listed<T> {
        if self.has_controller {
            Listed::unknown(
                "the upstream is not listed in upstreams, and nothing asks for this repository",
            )
        } else {
            Listed::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_upstream::limits::UPSTREAM_LIST_BYTES;

    #[test]
    fn a_list_is_fresh_then_stale_and_never_empty_for_want_of_an_answer() {
        let start = Instant::now();
        let mut told = CachedList::default();
        assert!(told.answer(start).is_none(), "nobody was asked");
        let away = || Err(Error::Unavailable("connection refused".to_owned()));
        told.record(away(), start);
        let unknown = told.answer(start).unwrap();
        assert!(!unknown.known && unknown.warning.unwrap().contains("connection refused"));
        assert_eq!(told.answer(start + FAILURE_TTL), None, "asked again");
        let pages = Pages {
            entries: vec![1, 2],
            complete: true,
            bytes: 2,
        };
        told.record(Ok(pages), start);
        let fresh = told.answer(start + FRESH / 2).unwrap();
        assert_eq!((&*fresh.entries, fresh.warning), (&[1, 2][..], None));
        let later = start + FRESH * 4;
        assert_eq!(told.answer(later), None, "asked again");
        told.record(away(), later);
        let stale = told.answer(later).unwrap();
        assert!(stale.known && *stale.entries == [1, 2]);
        let warning = stale.warning.unwrap();
        assert!(
            warning.contains("120 s old") && warning.contains("connection refused"),
            "{warning}"
        );
        told.record(
            Ok(Pages {
                entries: vec![3],
                complete: false,
                bytes: 1,
            }),
            later,
        );
        let cut = told.answer(later).unwrap();
        assert!(cut.known && cut.warning.unwrap().contains("more than is listed"));
    }

    fn pages(bytes: usize) -> Pages<u8> {
        Pages {
            entries: vec![7],
            complete: true,
            bytes,
        }
    }

    #[tokio::test]
    async fn a_list_is_asked_for_once() {
        let kept: ListCache<usize, u8> = ListCache::default();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = || async {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(pages(1))
        };
        let many = (0..50).map(|_| kept.get(&0, "a", ask()));
        futures::future::join_all(many).await;
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn lists_are_kept_up_to_so_many_bytes_and_large_ones_make_room() {
        let kept: ListCache<usize, u8> = ListCache::default();
        let small = 1000;
        for key in 0..small {
            kept.get(&key, "honest", async { Ok(pages(1000)) }).await;
        }
        for key in small..small + 60 {
            let large = UPSTREAM_LIST_BYTES;
            kept.get(&key, "hostile", async { Ok(pages(large)) }).await;
            let bytes = kept.lists().bytes();
            assert!(bytes <= UPSTREAM_LISTS_BYTES, "{bytes}");
        }
        let lists = kept.lists();
        let honest = lists.of("honest").count();
        assert_eq!(honest, small, "of another upstream");
        assert!(lists.get(&(small + 59)).is_some(), "the newest");
        assert!(lists.get(&small).is_none());
    }

    #[tokio::test]
    async fn so_many_lists_are_kept_however_small() {
        let kept: ListCache<usize, u8> = ListCache::default();
        for key in 0..MAX_LISTS + 10 {
            kept.get(&key, "a", async { Err(Error::Unauthorized) })
                .await;
        }
        let lists = kept.lists();
        assert_eq!(lists.of("a").count(), MAX_LISTS);
        assert!(lists.get(&9).is_none() && lists.get(&10).is_some());
    }
}
