//! A client's requests, carried out as the registry carries them out, with what they may find
//! checked against the model.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::digest::Algorithm;
use holdfast_simfs::{Rng, SimFs};
use holdfast_store::{CarriedHash, Error, LockAttempt, LockHolder, Result, Store};

use crate::{
    model::{Model, Time},
    program::{Op, World},
    replay::Session,
};

/// What all clients of a run share.
pub(crate) struct Run<'a> {
    pub(crate) world: &'a World,
    pub(crate) fs: SimFs,
    pub(crate) stores: Vec<Store>,
    pub(crate) model: Mutex<Model>,
    /// Nothing fails in this run, so no request may.
    pub(crate) calm: bool,
    /// Uploads that clients go on with by states of their own choice.
    pub(crate) sessions: Mutex<Vec<Session>>,
}

impl Run<'_> {
    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tick(&self) -> Time {
        self.model().tick()
    }

    /// Any replica that lives.
    pub(crate) fn store(&self, rng: &mut Rng) -> (usize, &Store) {
        let alive: Vec<_> = (0..self.stores.len())
            .filter(|replica| !self.fs.is_dead(*replica))
            .collect();
        let replica = if alive.is_empty() {
            0
        } else {
            *rng.pick(&alive)
        };
        (replica, &self.stores[replica])
    }

    /// Whether the request succeeded; failures that nothing explains are violations.
    pub(crate) fn succeeded<T>(&self, replica: usize, what: &Op, result: &Result<T>) -> bool {
        self.fs.note(|| {
            let outcome = result.as_ref().map(|_| "ok");
            format!("== replica {replica}: {what:?}: {outcome:?}")
        });
        match result {
            Ok(_) => true,
            Err(Error::Io { .. } | Error::Corrupt { .. } | Error::NoSpace { .. } | Error::Busy)
                if self.calm && !self.fs.is_dead(replica) =>
            {
                let error = result.as_ref().err();
                self.model()
                    .violation(format!("{what:?} failed without a reason: {error:?}"));
                false
            }
            Err(_) => false,
        }
    }

    pub(crate) async fn perform(&self, op: &Op, rng: &mut Rng) {
        self.fs.note(|| format!("== {op:?}"));
        match op {
            Op::Push { repo, blob, cuts } => self.push(op, *repo, *blob, cuts, rng).await,
            Op::PushWrong { repo, blob } => self.push_wrong(op, *repo, *blob, rng).await,
            Op::Fill { repo, blob, wrong } => self.fill(op, *repo, *blob, *wrong, rng).await,
            Op::Replay { repo, blob, steps } => self.replay(op, *repo, *blob, steps, rng).await,
            Op::Mount { from, repo, blob } => self.mount(op, *from, *repo, *blob, rng).await,
            Op::Unlink { repo, blob } => {
                let (replica, store) = self.store(rng);
                let now = self.tick();
                let write = self.model().blob(*repo, *blob).begin(None, now, true);
                let (name, digest) = (&self.world.repos[*repo], &self.world.blobs[*blob].0);
                let result = store.unlink_blob(name, digest).await;
                let done = self.succeeded(replica, op, &result);
                let end = self.tick();
                let mut model = self.model();
                let register = model.blob(*repo, *blob);
                // "It was not there" promises nothing for later.
                register.end(write, end, done && matches!(result, Ok(true)));
                if let Ok(false) = result
                    && !register.allows(None, now, end)
                {
                    model.violation(format!("{op:?} on replica {replica} found nothing"));
                }
            }
            Op::PutManifest {
                repo,
                manifest,
                tags,
            } => {
                self.put_manifest(op, *repo, *manifest, tags, rng).await;
            }
            Op::DeleteManifest { repo, manifest } => {
                self.delete_manifest(op, *repo, *manifest, rng).await;
            }
            Op::DeleteTag { repo, tag } => {
                let (replica, store) = self.store(rng);
                let now = self.tick();
                let write = self.model().tag(*repo, *tag).begin(None, now, true);
                let (name, tag_name) = (&self.world.repos[*repo], &self.world.tags[*tag]);
                let result = store.delete_tag(name, tag_name).await;
                let done = self.succeeded(replica, op, &result);
                let end = self.tick();
                let mut model = self.model();
                let register = model.tag(*repo, *tag);
                // "It was not there" promises nothing for later.
                register.end(write, end, done && matches!(result, Ok(true)));
                if let Ok(false) = result
                    && !register.allows(None, now, end)
                {
                    model.violation(format!("{op:?} on replica {replica} found nothing"));
                }
            }
            Op::ReadBlob { repo, blob } => {
                let (replica, _) = self.store(rng);
                self.read_blob(replica, *repo, *blob).await;
            }
            Op::ReadManifest { repo, manifest } => {
                let (replica, _) = self.store(rng);
                self.read_manifest(replica, *repo, *manifest).await;
            }
            Op::ReadTag { repo, tag } => {
                let (replica, _) = self.store(rng);
                self.read_tag(replica, *repo, *tag).await;
            }
            Op::ListTags { repo } => {
                let (replica, _) = self.store(rng);
                self.list_tags(replica, *repo).await;
            }
            Op::Scrub { blob } => {
                let (replica, store) = self.store(rng);
                let result = store.verify_blob(&self.world.blobs[*blob].0).await;
                self.succeeded(replica, op, &result);
            }
            Op::Finish => {
                let (replica, store) = self.store(rng);
                let result = store.finish_deletes().await;
                self.succeeded(replica, op, &result);
            }
            Op::Purge => {
                let (replica, store) = self.store(rng);
                let result = store.purge_idle(Duration::from_secs(3600)).await;
                self.succeeded(replica, op, &result);
            }
        }
    }

    async fn push(&self, op: &Op, repo: usize, blob: usize, cuts: &[usize], rng: &mut Rng) {
        let now = self.tick();
        let write = self.model().blob(repo, blob).begin(Some(()), now, true);
        let (digest, bytes) = &self.world.blobs[blob];
        let result = self.upload(repo, bytes, cuts, digest, rng).await;
        let done = self.succeeded(result.0, op, &result.1);
        let end = self.tick();
        self.model().blob(repo, blob).end(write, end, done);
    }

    /// Uploads piece by piece, each through any replica; returns the last replica too.
    async fn upload(
        &self,
        repo: usize,
        bytes: &Bytes,
        cuts: &[usize],
        digest: &holdfast_core::digest::Digest,
        rng: &mut Rng,
    ) -> (usize, Result<u64>) {
        let name = &self.world.repos[repo];
        let (mut replica, store) = self.store(rng);
        let id = match store.create_upload(name, "2026-01-01T00:00:00Z").await {
            Ok(id) => id,
            Err(error) => return (replica, Err(error)),
        };
        let mut offset = 0;
        let mut carried = CarriedHash::none(Algorithm::Sha256);
        let mut ends = cuts.to_vec();
        ends.push(bytes.len());
        let last = ends.len() - 1;
        for (piece, end) in ends.into_iter().enumerate() {
            let store;
            (replica, store) = self.store(rng);
            let result = async {
                let mut writer = if cuts.is_empty() {
                    let algorithm = Algorithm::Sha256;
                    store.whole_upload_writer(name, &id, algorithm).await?
                } else {
                    let owner = owner(replica);
                    store
                        .upload_writer(name, &id, offset as u64, carried.clone(), &owner)
                        .await?
                };
                for part in bytes.slice(offset..end).chunks(256) {
                    writer.append(Bytes::copy_from_slice(part)).await?;
                }
                if piece == last {
                    return writer.commit(digest).await.map(Some);
                }
                (_, carried) = writer.finish().await?;
                Ok(None)
            }
            .await;
            match result {
                Ok(None) => offset = end,
                Ok(Some(size)) => return (replica, Ok(size)),
                Err(error) => return (replica, Err(error)),
            }
        }
        (replica, Err(Error::UploadUnknown))
    }

    async fn push_wrong(&self, op: &Op, repo: usize, blob: usize, rng: &mut Rng) {
        let digest = &self.world.blobs[blob].0;
        let bytes = Bytes::from_static(b"these are other bytes");
        let (replica, result) = self.upload(repo, &bytes, &[], digest, rng).await;
        self.succeeded(replica, op, &result);
        if result.is_ok() {
            self.model()
                .violation(format!("{op:?}: wrong bytes were taken"));
        }
    }

    async fn fill(&self, op: &Op, repo: usize, blob: usize, wrong: bool, rng: &mut Rng) {
        let (replica, store) = self.store(rng);
        let now = self.tick();
        let write = self.model().blob(repo, blob).begin(Some(()), now, true);
        let (digest, bytes) = &self.world.blobs[blob];
        let result = async {
            let name = format!("fill-{}", digest.hex());
            let LockAttempt::Acquired(lock) = store.try_lock(&name, &owner(replica)).await? else {
                return Ok(false);
            };
            let mut incoming = store.ingest_blob(digest).await?;
            incoming.attach_lock(lock);
            let offset = bytes.len().min(usize::try_from(incoming.offset()).unwrap());
            let rest: Bytes = if wrong {
                vec![0xEE; bytes.len() - offset].into()
            } else {
                bytes.slice(offset..)
            };
            for part in rest.chunks(300) {
                incoming.append(Bytes::copy_from_slice(part)).await?;
            }
            incoming.commit().await?;
            store.link_blob(&self.world.repos[repo], digest).await?;
            Ok(true)
        }
        .await;
        let done = self.succeeded(replica, op, &result) && matches!(result, Ok(true));
        let end = self.tick();
        self.model().blob(repo, blob).end(write, end, done);
        if wrong && done && blob > 0 && !self.world.blobs[blob].1.is_empty() {
            // Allowed only when an earlier attempt had left all of the right bytes.
            self.fs
                .note(|| "a fill of wrong bytes found right ones".to_owned());
        }
    }

    async fn mount(&self, op: &Op, from: usize, repo: usize, blob: usize, rng: &mut Rng) {
        let (replica, store) = self.store(rng);
        let digest = &self.world.blobs[blob].0;
        let now = self.tick();
        let found = store.repo_has_blob(&self.world.repos[from], digest).await;
        let end = self.tick();
        if !self.succeeded(replica, op, &found) {
            return;
        }
        if !found.unwrap_or(false) {
            let mut model = self.model();
            if !model.blob(from, blob).allows(None, now, end) {
                model.violation(format!("{op:?} on replica {replica}: false miss"));
            }
            return;
        }
        let now = self.tick();
        let write = self.model().blob(repo, blob).begin(Some(()), now, true);
        let result = store.link_blob(&self.world.repos[repo], digest).await;
        let done = self.succeeded(replica, op, &result);
        let end = self.tick();
        self.model().blob(repo, blob).end(write, end, done);
    }

    async fn put_manifest(
        &self,
        op: &Op,
        repo: usize,
        manifest: usize,
        tags: &[usize],
        rng: &mut Rng,
    ) {
        let (replica, store) = self.store(rng);
        let name = &self.world.repos[repo];
        let manifest_of = &self.world.manifests[manifest];
        let digest = &manifest_of.digest;
        let blobs: Vec<_> = manifest_of
            .blobs
            .iter()
            .map(|blob| self.world.blobs[*blob].0.clone())
            .collect();
        let start = self.tick();
        let missing = store.first_missing(name, blobs, Vec::new()).await;
        let end = self.tick();
        if !self.succeeded(replica, op, &missing) {
            return;
        }
        if let Ok(Some(missing)) = missing {
            let mut model = self.model();
            let blob = (0..self.world.blobs.len())
                .find(|blob| self.world.blobs[*blob].0 == missing)
                .unwrap();
            if !model.blob(repo, blob).allows(None, start, end) {
                model.violation(format!(
                    "{op:?} on replica {replica}: blob {blob} is said to be missing"
                ));
            }
            return;
        }
        // What the manifest refers to was found, so it must stay once the manifest is acknowledged.
        let relied: Vec<_> = {
            let mut model = self.model();
            manifest_of
                .blobs
                .iter()
                .map(|blob| (*blob, model.blob(repo, *blob).begin(Some(()), start, true)))
                .collect()
        };
        let now = self.tick();
        let write = self
            .model()
            .manifest(repo, manifest)
            .begin(Some(()), now, true);
        let result = store
            .put_manifest(name, digest, manifest_of.bytes.clone())
            .await;
        let done = self.succeeded(replica, op, &result);
        let end = self.tick();
        {
            let mut model = self.model();
            model.manifest(repo, manifest).end(write, end, done);
            for (blob, write) in relied {
                // Found at the latest when the manifest was written.
                model.blob(repo, blob).end(write, end, done);
            }
            if done {
                model.exists.entry(repo).or_insert(end);
            }
        }
        if !done {
            return;
        }
        for tag in tags {
            let now = self.tick();
            let write = self
                .model()
                .tag(repo, *tag)
                .begin(Some(manifest), now, true);
            let result = store.set_tag(name, &self.world.tags[*tag], digest).await;
            let done = self.succeeded(replica, op, &result);
            let end = self.tick();
            self.model().tag(repo, *tag).end(write, end, done);
        }
    }

    async fn delete_manifest(&self, op: &Op, repo: usize, manifest: usize, rng: &mut Rng) {
        let (replica, store) = self.store(rng);
        let digest = &self.world.manifests[manifest].digest;
        let start = self.tick();
        let write = self
            .model()
            .manifest(repo, manifest)
            .begin(None, start, true);
        let mut tags = Vec::new();
        for tag in 0..self.world.tags.len() {
            let write = self.model().tag(repo, tag).begin(None, start, false);
            tags.push((tag, write));
        }
        let result = store.delete_manifest(&self.world.repos[repo], digest).await;
        let done = self.succeeded(replica, op, &result);
        let end = self.tick();
        let done = done && matches!(result, Ok(true));
        let refused = matches!(result, Err(Error::NoSpace { .. }));
        {
            let mut model = self.model();
            let register = model.manifest(repo, manifest);
            register.end(write, end, done);
            if refused {
                register.refused(write);
            }
            for (tag, write) in tags {
                let register = model.tag(repo, tag);
                register.end(write, end, done);
                match result {
                    Ok(true) => register.removed(manifest, start, end),
                    _ if refused => register.refused(write),
                    _ => {}
                }
            }
            if let Ok(false) = result
                && !model.manifest(repo, manifest).allows(None, start, end)
            {
                model.violation(format!("{op:?} on replica {replica} found nothing"));
            }
        }
        // As a thread of the replica does after the answer; sometimes it is not reached.
        if done && rng.chance(5_000) {
            let result = store.finish_deletes().await;
            self.succeeded(replica, &Op::Finish, &result);
        }
    }

    pub(crate) async fn read_blob(&self, replica: usize, repo: usize, blob: usize) {
        let (digest, expected) = &self.world.blobs[blob];
        let op = Op::ReadBlob { repo, blob };
        let start = self.tick();
        let store = &self.stores[replica];
        let result = async {
            let Some(file) = store
                .open_repo_blob(&self.world.repos[repo], digest)
                .await?
            else {
                return Ok(None);
            };
            let mut bytes = Vec::new();
            loop {
                let part = file.read_at(bytes.len() as u64, file.size() + 1).await?;
                if part.is_empty() {
                    return Ok(Some((file.size(), bytes)));
                }
                bytes.extend_from_slice(&part);
            }
        }
        .await;
        let end = self.tick();
        if !self.succeeded(replica, &op, &result) {
            return;
        }
        let mut model = self.model();
        let found = result.ok().flatten();
        if let Some((size, bytes)) = &found
            && (bytes != expected || *size != bytes.len() as u64)
        {
            model.violation(format!(
                "{op:?} on replica {replica} gave {} bytes that are not the blob's {}",
                bytes.len(),
                expected.len()
            ));
        }
        let value = found.map(|_| ());
        if !model.blob(repo, blob).allows(value.as_ref(), start, end) {
            model.violation(format!("{op:?} on replica {replica} found {value:?}"));
        }
    }

    pub(crate) async fn read_manifest(&self, replica: usize, repo: usize, manifest: usize) {
        let expected = &self.world.manifests[manifest];
        let op = Op::ReadManifest { repo, manifest };
        let start = self.tick();
        let result = self.stores[replica]
            .manifest(&self.world.repos[repo], &expected.digest)
            .await;
        let end = self.tick();
        if !self.succeeded(replica, &op, &result) {
            return;
        }
        let found = result.ok().flatten();
        let mut model = self.model();
        if found.as_ref().is_some_and(|bytes| *bytes != expected.bytes) {
            model.violation(format!("{op:?} on replica {replica} gave other bytes"));
        }
        let value = found.map(|_| ());
        if !model
            .manifest(repo, manifest)
            .allows(value.as_ref(), start, end)
        {
            model.violation(format!("{op:?} on replica {replica} found {value:?}"));
        }
    }

    pub(crate) async fn read_tag(&self, replica: usize, repo: usize, tag: usize) {
        let op = Op::ReadTag { repo, tag };
        let start = self.tick();
        let result = self.stores[replica]
            .tagged_manifest(&self.world.repos[repo], &self.world.tags[tag])
            .await;
        let end = self.tick();
        if !self.succeeded(replica, &op, &result) {
            return;
        }
        let mut model = self.model();
        let allowed = model.tag(repo, tag).allowed(start, end);
        let right = match result.ok().flatten() {
            Some((digest, bytes)) => {
                let manifest = self
                    .world
                    .manifests
                    .iter()
                    .position(|manifest| manifest.digest == digest && manifest.bytes == bytes);
                manifest.is_some() && allowed.contains(&manifest)
            }
            // A tag of a manifest that is gone finds nothing, too.
            None => allowed.into_iter().any(|value| match value {
                None => true,
                Some(manifest) => model.manifest(repo, manifest).allows(None, start, end),
            }),
        };
        if !right {
            let allowed = model.tag(repo, tag).allowed(start, end);
            model.violation(format!(
                "{op:?} on replica {replica}: not one of {allowed:?}"
            ));
        }
    }

    pub(crate) async fn list_tags(&self, replica: usize, repo: usize) {
        let op = Op::ListTags { repo };
        let start = self.tick();
        let result = self.stores[replica].tags(&self.world.repos[repo]).await;
        let end = self.tick();
        if !self.succeeded(replica, &op, &result) {
            return;
        }
        let found = result.ok().flatten();
        let mut model = self.model();
        if found.is_none() && model.exists.get(&repo).is_some_and(|at| *at < start) {
            model.violation(format!(
                "{op:?} on replica {replica}: the repository is unknown"
            ));
        }
        let found = found.unwrap_or_default();
        for (tag, name) in self.world.tags.iter().enumerate() {
            let listed = found.contains(name);
            let allowed = model.tag(repo, tag).allowed(start, end);
            if !allowed.iter().any(|value| value.is_some() == listed) {
                model.violation(format!(
                    "{op:?} on replica {replica}: tag {tag} is listed: {listed}, allowed {allowed:?}"
                ));
            }
        }
    }
}

pub(crate) fn owner(replica: usize) -> LockHolder {
    LockHolder {
        address: format!("replica-{replica}:5001"),
        id: format!("replica-{replica}"),
    }
}
