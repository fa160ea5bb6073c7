//! Bounds the uploads of clients in progress on this replica, in all and by repository.
//!
//! Uploads that began here are counted. An upload may end on another replica, or be removed when it
//! is abandoned: only the store knows, and it is asked only when the limit seems to be reached.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::reference::RepositoryName;
use holdfast_store::{CarriedHash, Store, UploadId};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;

use crate::error::{Error, Result};

/// Uploads that are asked for at the store at one time.
const ASKED: usize = 64;

/// Pause between two such rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// The uploads in progress. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Uploads {
    most: usize,
    most_of_repository: usize,
    table: Arc<Mutex<Table>>,
}

/// An upload that continues with further requests.
#[derive(Debug)]
struct OpenUpload {
    repo: RepositoryName,
    begun: Instant,
    /// Where its last request ended, and the hash up to there.
    latest: Option<(u64, CarriedHash)>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<UploadId, OpenUpload>,
    /// The uploads of `open`, and those that are being begun.
    of_repository: HashMap<RepositoryName, usize>,
    count: usize,
    asked: Option<Instant>,
}

/// The place of an upload that is being begun; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    uploads: Uploads,
    repo: RepositoryName,
    kept: bool,
}

impl Place {
    /// The upload is in progress under this name.
    pub(crate) fn keep(mut self, id: UploadId) {
        self.kept = true;
        let open = OpenUpload {
            repo: self.repo.clone(),
            begun: Instant::now(),
            latest: None,
        };
        self.uploads.lock().open.insert(id, open);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.uploads.lock().leave(&self.repo);
        }
    }
}

/// An upload that was begun and whose name no client knows yet. Dropped, as with a request whose
/// client vanishes, it is cancelled; its place is free once its session is gone.
#[derive(Debug)]
pub(crate) struct NewUpload {
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    /// `None` once the upload was ended, kept or cancelled.
    place: Option<Place>,
}

impl NewUpload {
    /// The session's name.
    pub(crate) fn id(&self) -> &UploadId {
        &self.id
    }

    /// The client gets the name: its next request continues the upload.
    pub(crate) fn keep(mut self) -> UploadId {
        if let Some(place) = self.place.take() {
            place.keep(self.id.clone());
        }
        self.id.clone()
    }

    /// The session has ended.
    pub(crate) fn end(mut self) {
        self.place = None;
    }

    /// Ends the session, even if the caller leaves.
    pub(crate) async fn cancel(mut self) {
        if let Some(place) = self.place.take() {
            tokio::spawn(self.cancelled(place)).await.ok();
        }
    }

    fn cancelled(&self, place: Place) -> impl Future<Output = ()> + Send + use<> {
        let (store, repo, id) = (self.store.clone(), self.repo.clone(), self.id.clone());
        async move {
            // If the volume fails, the session is removed later as an abandoned upload.
            store.cancel_upload(&repo, &id).await.ok();
            drop(place);
        }
    }
}

impl Drop for NewUpload {
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(self.cancelled(place));
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
        if let Some(open) = self.open.remove(id) {
            self.leave(&open.repo);
        }
    }
}

impl Uploads {
    /// At most this many, and this many to one repository.
    pub(crate) fn new(most: usize, most_of_repository: usize) -> Self {
        Self {
            most,
            most_of_repository,
            table: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// A place for one more upload to the repository.
    ///
    /// # Errors
    /// 429 when there is none.
    pub(crate) async fn enter(&self, store: &Store, repo: &RepositoryName) -> Result<Place> {
        if let Some(place) = self.try_enter(repo) {
            return Ok(place);
        }
        self.forget_ended(store).await;
        self.try_enter(repo).ok_or_else(|| {
            Error::too_many("too many uploads are under way to this registry or repository")
        })
    }

    /// Begins an upload, with a place for it.
    ///
    /// # Errors
    /// 429 when there is no place, or what the store says.
    pub(crate) async fn begin(
        &self,
        store: &Store,
        repo: &RepositoryName,
        started_at: &str,
    ) -> Result<NewUpload> {
        let place = self.enter(store, repo).await?;
        let (store, repo, started_at) = (store.clone(), repo.clone(), started_at.to_owned());
        // Beside the request: a client that vanishes meanwhile leaves no uncounted session.
        let begun = tokio::spawn(async move {
            let id = store.create_upload(&repo, &started_at).await?;
            Ok::<_, Error>(NewUpload {
                store,
                repo,
                id,
                place: Some(place),
            })
        });
        let ended = |_| Err(Error::later("the upload was not begun"));
        begun.await.unwrap_or_else(ended)
    }

    /// Keeps the hash of an upload's bytes for requests that bring none: the registry's own state
    /// travels through the client, and some clients send an older one, or none.
    pub(crate) fn remember(&self, id: &UploadId, size: u64, carried: &CarriedHash) {
        if let Some(open) = self.lock().open.get_mut(id) {
            open.latest = Some((size, carried.clone()));
        }
    }

    /// The hash of an upload's first `size` bytes, if its last request here ended there. The store
    /// looks whether the file is still the one that it was taken over.
    pub(crate) fn carried(&self, id: &UploadId, size: u64) -> Option<CarriedHash> {
        let table = self.lock();
        let (at, carried) = table.open.get(id)?.latest.as_ref()?;
        (*at == size).then(|| carried.clone())
    }

    fn try_enter(&self, repo: &RepositoryName) -> Option<Place> {
        let mut table = self.lock();
        let of_repository = table.of_repository.get(repo).copied().unwrap_or(0);
        if self.most <= table.count || self.most_of_repository <= of_repository {
            return None;
        }
        table.count += 1;
        *table.of_repository.entry(repo.clone()).or_insert(0) += 1;
        Some(Place {
            uploads: self.clone(),
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
                .map(|(id, open)| (open.begun, id.clone(), open.repo.clone()))
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
        let store = Store::open(folder.path(), Options::unlimited())
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
