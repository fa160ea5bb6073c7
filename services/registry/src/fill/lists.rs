//! What upstreams list of the repositories that are copied from them: asked for by pulls, kept for a while, stale when the
//! upstream is away. What could not be learned is never told as "there is nothing".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::{Digest, RepositoryName, Tag};

use super::Fills;
use crate::{
    source::Listed,
    upstream::{Error, Pages, Referrer, Result, Source},
};

/// How long a list counts as fresh.
const FRESH: Duration = Duration::from_secs(30);
/// For how long an upstream that did not tell is not asked for this list again.
const UNTOLD: Duration = Duration::from_secs(5);
/// Most entries of all lists that are kept; above, the memory starts over.
const MAX_ENTRIES: usize = 100_000;
/// Most lists that are kept; above, the memory starts over.
const MAX_LISTS: usize = 2000;

/// A list as it was told last.
#[derive(Debug)]
struct Told<T> {
    pages: Option<(Arc<Pages<T>>, Instant)>,
    failed: Option<(String, Instant)>,
}

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self {
            pages: None,
            failed: None,
        }
    }
}

impl<T: Clone> Told<T> {
    /// What may be answered at `now` without asking.
    fn answer(&self, now: Instant) -> Option<Listed<T>> {
        let is_within = |at: Instant, limit| now.saturating_duration_since(at) < limit;
        match (&self.pages, &self.failed) {
            (Some((pages, at)), _) if is_within(*at, FRESH) => Some(Listed {
                entries: pages.entries.clone(),
                warning: (!pages.complete)
                    .then(|| "the upstream has more than is listed".to_owned()),
                known: true,
            }),
            (pages, Some((why, at))) if is_within(*at, UNTOLD) => Some(match pages {
                Some((pages, told)) => Listed {
                    entries: pages.entries.clone(),
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
                    pages: Some((Arc::new(pages), now)),
                    failed: None,
                }
            }
            Err(error) => self.failed = Some((error.to_string(), now)),
        }
    }

    fn entries(&self) -> usize {
        self.pages
            .as_ref()
            .map_or(0, |(pages, _)| pages.entries.len())
    }
}

/// The lists of one kind. Who asks for one that is being asked for waits for it.
#[derive(Debug)]
struct Kept<K, T> {
    held: Mutex<HashMap<K, Arc<tokio::sync::Mutex<Told<T>>>>>,
}

impl<K, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, T: Clone> Kept<K, T> {
    async fn get(&self, key: &K, ask: impl Future<Output = Result<Pages<T>>>) -> Listed<T> {
        let told = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if !held.contains_key(key) {
                let kept = held.values().filter_map(|told| told.try_lock().ok());
                let entries: usize = kept.map(|told| told.entries()).sum();
                if held.len() >= MAX_LISTS || entries >= MAX_ENTRIES {
                    held.clear();
                }
            }
            Arc::clone(held.entry(key.clone()).or_default())
        };
        let mut told = told.lock().await;
        if let Some(answer) = told.answer(Instant::now()) {
            return answer;
        }
        told.record(ask.await, Instant::now());
        let answer = told.answer(Instant::now());
        answer.unwrap_or_else(|| Listed::unknown("the upstream did not tell"))
    }
}

/// What upstreams listed.
#[derive(Debug, Default)]
pub(super) struct Lists {
    tags: Kept<RepositoryName, Tag>,
    referrers: Kept<(RepositoryName, Digest), Referrer>,
}

impl Fills {
    /// The tags that the upstream of a repository has.
    pub(super) async fn list_tags(&self, repo: &RepositoryName) -> Listed<Tag> {
        let Some(source) = self.list_source(repo) else {
            return self.not_asked();
        };
        let upstreams = &self.inner.upstreams;
        let ask = async {
            match upstreams.tags(&source).await {
                // It has no such repository, which is an answer.
                Err(Error::NotFound) => Ok(Pages::default()),
                found => found,
            }
        };
        Box::pin(self.inner.lists.tags.get(repo, ask)).await
    }

    /// Who refers to a manifest at the upstream of a repository.
    pub(super) async fn list_referrers(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
    ) -> Listed<Referrer> {
        let Some(source) = self.list_source(repo) else {
            return self.not_asked();
        };
        let key = (repo.clone(), subject.clone());
        let ask = self.inner.upstreams.referrers(&source, subject);
        Box::pin(self.inner.lists.referrers.get(&key, ask)).await
    }

    /// Whom a list is asked of, and with what: the credentials of the settings. Those of a fill request serve what that request
    /// named, and no list.
    fn list_source(&self, repo: &RepositoryName) -> Option<Source> {
        let is_named = self.inner.grants.names(repo, Instant::now());
        self.source(repo, is_named.then(Vec::new))
    }

    /// What is known of a list that nobody may be asked for. Where no controller can name the upstream, what is here is all.
    fn not_asked<T>(&self) -> Listed<T> {
        if self.inner.settings.has_controller {
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

    #[test]
    fn a_list_is_fresh_then_stale_and_never_empty_for_want_of_an_answer() {
        let start = Instant::now();
        let mut told = Told::default();
        assert_eq!(told.answer(start), None, "nobody was asked");
        let away = || Err(Error::Unavailable("connection refused".to_owned()));
        told.record(away(), start);
        let unknown = told.answer(start).unwrap();
        assert!(!unknown.known && unknown.warning.unwrap().contains("connection refused"));
        assert_eq!(told.answer(start + UNTOLD), None, "asked again");
        let pages = Pages {
            entries: vec![1, 2],
            complete: true,
        };
        told.record(Ok(pages), start);
        let fresh = told.answer(start + FRESH / 2).unwrap();
        assert_eq!((fresh.entries, fresh.warning), (vec![1, 2], None));
        let later = start + FRESH * 4;
        assert_eq!(told.answer(later), None, "asked again");
        told.record(away(), later);
        let stale = told.answer(later).unwrap();
        assert!(stale.known && stale.entries == [1, 2]);
        let warning = stale.warning.unwrap();
        assert!(
            warning.contains("120 s old") && warning.contains("connection refused"),
            "{warning}"
        );
        told.record(
            Ok(Pages {
                entries: vec![3],
                complete: false,
            }),
            later,
        );
        let cut = told.answer(later).unwrap();
        assert!(cut.known && cut.warning.unwrap().contains("more than is listed"));
    }

    #[tokio::test]
    async fn a_list_is_asked_for_once_and_the_memory_is_bounded() {
        let kept: Kept<usize, u8> = Kept::default();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = || async {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(Pages {
                entries: vec![7; MAX_ENTRIES / 10],
                complete: true,
            })
        };
        let many = (0..50).map(|_| kept.get(&0, ask()));
        futures::future::join_all(many).await;
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
        for key in 1..100 {
            kept.get(&key, ask()).await;
            let held = kept.held.lock().unwrap();
            assert!(held.len() <= 11, "{}", held.len());
        }
    }
}
