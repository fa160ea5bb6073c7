//! How many uploads clients have under way on this replica, in all and by repository.
//!
//! What is counted was begun here. An upload may end on another replica, or be removed when nobody continues it: that is found out by asking
//! the store, and only when there seems to be no room.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::reference::RepositoryName;
use holdfast_store::{Store, UploadId};

use crate::error::{Error, Result};

/// Uploads that are asked for at the store at one time.
const ASKED: usize = 64;

/// Pause between two such rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// The count.
#[derive(Debug)]
pub(crate) struct Uploads {
    most: usize,
    most_of_repository: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<UploadId, (RepositoryName, Instant)>,
    /// Those of `open`, and those that are being begun.
    of_repository: HashMap<RepositoryName, usize>,
    count: usize,
    asked: Option<Instant>,
}

/// The place of an upload that is being begun; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    uploads: &'a Uploads,
    repo: RepositoryName,
    kept: bool,
}

impl Place<'_> {
    /// The upload is under way, under this name.
    pub(crate) fn keep(mut self, id: UploadId) {
        self.kept = true;
        let entry = (self.repo.clone(), Instant::now());
        self.uploads.lock().open.insert(id, entry);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.uploads.lock().leave(&self.repo);
        }
    }
}

impl Table {
    fn leave(&mut self, repo: &RepositoryName) {
        self.count = self.count.saturating_sub(1);
        if let Some(count) = self.of_repository.get_mut(repo) {
            *count -= 1;
            if *count == 0 {
                self.of_repository.remove(repo);
            }
        }
    }

    fn end(&mut self, id: &UploadId) {
        if let Some((repo, _)) = self.open.remove(id) {
            self.leave(&repo);
        }
    }
}

impl Uploads {
    /// At most so many, and so many to one repository.
    pub(crate) fn new(most: usize, most_of_repository: usize) -> Self {
        Self {
            most,
            most_of_repository,
            table: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more upload to the repository.
    ///
    /// # Errors
    /// 429 when there is none.
    pub(crate) async fn enter(&self, store: &Store, repo: &RepositoryName) -> Result<Place<'_>> {
        if let Some(place) = self.try_enter(repo) {
            return Ok(place);
        }
        self.forget_ended(store).await;
        self.try_enter(repo).ok_or_else(|| {
            Error::too_many("too many uploads are under way to this registry or repository")
        })
    }

    fn try_enter(&self, repo: &RepositoryName) -> Option<Place<'_>> {
        let mut table = self.lock();
        let of_repository = table.of_repository.get(repo).copied().unwrap_or(0);
        if self.most <= table.count || self.most_of_repository <= of_repository {
            return None;
        }
        table.count += 1;
        *table.of_repository.entry(repo.clone()).or_insert(0) += 1;
        Some(Place {
            uploads: self,
            repo: repo.clone(),
            kept: false,
        })
    }

    /// The upload has ended.
    pub(crate) fn end(&self, id: &UploadId) {
        self.lock().end(id);
    }

    /// Forgets uploads that the store no longer has, the oldest first.
    async fn forget_ended(&self, store: &Store) {
        let oldest = {
            let mut table = self.lock();
            let now = Instant::now();
            if table.asked.is_some_and(|at| now.duration_since(at) < PAUSE) {
                return;
            }
            table.asked = Some(now);
            let mut oldest: Vec<_> = table
                .open
                .iter()
                .map(|(id, (repo, begun))| (*begun, id.clone(), repo.clone()))
                .collect();
            oldest.sort_by_key(|(begun, ..)| *begun);
            oldest.truncate(ASKED);
            oldest
        };
        for (_, id, repo) in oldest {
            let mut table = match store.upload_status(&repo, &id).await {
                Ok(None) => self.lock(),
                _ => continue,
            };
            table.end(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_store::Options;

    use super::*;

    #[tokio::test]
    async fn uploads_are_counted_in_all_and_by_repository_until_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Options::default())
            .await
            .unwrap();
        let repo = |name: &str| RepositoryName::parse(name).unwrap();
        let (a, b) = (repo("a"), repo("b"));
        let uploads = Uploads::new(3, 2);
        let mut names = Vec::new();
        for repo in [&a, &a, &b] {
            let place = uploads.enter(&store, repo).await.unwrap();
            let id = store.create_upload(repo, "").await.unwrap();
            names.push(id.clone());
            place.keep(id);
        }
        let refused = uploads.enter(&store, &b).await.unwrap_err();
        assert_eq!(refused.status().as_u16(), 429, "three in all");
        uploads.end(&names[2]);
        assert!(uploads.enter(&store, &a).await.is_err(), "two to one");
        assert!(
            uploads.enter(&store, &b).await.is_ok(),
            "and a place that is not kept is given back"
        );
        assert!(uploads.enter(&store, &b).await.is_ok());
        // It ended on another replica.
        store.cancel_upload(&a, &names[0]).await.unwrap();
        uploads.lock().asked = None;
        assert!(uploads.enter(&store, &a).await.is_ok());
    }
}
