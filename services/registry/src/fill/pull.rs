//! What a pull that misses gets: a manifest as soon as it is verified, a blob as soon as its first bytes are there.

use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_core::{Digest, RepositoryName, Tag};

use super::{
    Error, Fills, Result,
    arriving::Entry,
    blob::{Relay, State},
    document::{self, Document},
    image::pointer,
};
use crate::{
    source::{self, Freshness, ManifestRef, SourceBlob, SourceError},
    upstream::{self, Source},
};

/// Between two looks at what others do on the volume.
const LOOK: Duration = Duration::from_millis(200);
/// Tags of a repository whose manifests are searched for a blob.
const SEARCHED_TAGS: usize = 200;

impl source::Source for Fills {
    fn fetches(&self, repo: &RepositoryName) -> bool {
        self.source(repo).is_some()
    }

    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        reference: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<source::Manifest, SourceError>> {
        Box::pin(async move {
            let entry = self.pull_manifest(repo, reference).await?;
            Ok(source::Manifest {
                digest: entry.digest,
                bytes: entry.bytes,
            })
        })
    }

    fn blob<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<SourceBlob, SourceError>> {
        Box::pin(async move { Ok(self.pull_blob(repo, digest).await?) })
    }

    fn revalidate<'a>(
        &'a self,
        repo: &'a RepositoryName,
        tag: &'a Tag,
        local: &'a Digest,
    ) -> BoxFuture<'a, Freshness> {
        Box::pin(self.fresh(repo, tag, local))
    }
}

impl Fills {
    async fn pull_manifest(&self, repo: &RepositoryName, reference: &ManifestRef) -> Result<Entry> {
        let waits = async {
            loop {
                if let Some(entry) = self.known(repo, reference).await? {
                    return Ok(entry);
                }
                if let Some(source) = self.source(repo) {
                    return self.begin_image(&source, repo, reference).await;
                }
                if let Some(entry) = self.ask_owner(repo, reference).await? {
                    return Ok(entry);
                }
                // The controller may be about to name it, or another replica to finish it.
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(self.inner.settings.hold, waits)
            .await
            .unwrap_or(Err(Error::NotAllowed))
    }

    /// What is verified in memory or stored already.
    async fn known(&self, repo: &RepositoryName, reference: &ManifestRef) -> Result<Option<Entry>> {
        if let Some(entry) = self.inner.arriving.manifest(repo, reference) {
            return Ok(Some(entry));
        }
        let stored = match reference {
            ManifestRef::Tag(tag) => self.inner.store.tagged_manifest(repo, tag).await?,
            ManifestRef::Digest(digest) => self
                .inner
                .store
                .manifest(repo, digest)
                .await?
                .map(|bytes| (digest.clone(), bytes)),
        };
        Ok(stored.map(|(digest, bytes)| Entry {
            digest,
            media_type: String::new(),
            bytes,
        }))
    }

    /// Begins to fill an image and returns when its manifest is verified; the rest goes on alone.
    async fn begin_image(
        &self,
        source: &Source,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Entry> {
        let mut changed = self.inner.arriving.changed();
        let fill = self.image(source, repo, reference, &self.inner.settings.platforms);
        let mut fill = std::pin::pin!(fill);
        loop {
            tokio::select! {
                biased;
                result = &mut fill => {
                    let filled = result;
                    // The manifest may have been good and a blob not: the client learns that from the blob.
                    return match (self.known(repo, reference).await?, filled) {
                        (Some(entry), _) => Ok(entry),
                        (None, Err(error)) => Err(error),
                        (None, Ok(_)) => Err(Error::NotFound),
                    };
                }
                _ = changed.changed() => {
                    if let Some(entry) = self.inner.arriving.manifest(repo, reference) {
                        return Ok(entry);
                    }
                }
            }
        }
    }

    /// Asks the replica that fills images of this repository, if there is one.
    async fn ask_owner(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<Entry>> {
        let Some(owner) = self.inner.store.lock_owner(&pointer(repo)).await? else {
            return Ok(None);
        };
        if owner == self.inner.owner || owner.address.is_empty() {
            return Ok(None);
        }
        let Some((media_type, bytes)) = self
            .inner
            .peers
            .manifest(&owner.address, repo, reference)
            .await
        else {
            return Ok(None);
        };
        let algorithm = match reference {
            ManifestRef::Digest(digest) => digest.algorithm(),
            ManifestRef::Tag(_) => holdfast_core::Algorithm::Sha256,
        };
        let digest = holdfast_store::Hasher::digest(algorithm, &bytes);
        if matches!(reference, ManifestRef::Digest(wanted) if *wanted != digest) {
            return Ok(None);
        }
        self.arrived(
            repo,
            reference,
            upstream::Manifest {
                digest,
                media_type,
                bytes,
            },
        )?;
        Ok(self.inner.arriving.manifest(repo, reference))
    }

    async fn pull_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<SourceBlob> {
        // Only what a manifest of this repository names: nobody reads another repository's blobs through here.
        let Some(size) = self.named_size(repo, digest).await? else {
            return Err(Error::NotFound);
        };
        let source = self.source(repo);
        let mut begun_by_others = 0;
        loop {
            if let Some(file) = self.inner.store.open_blob(digest).await? {
                self.inner.store.link_blob(repo, digest).await?;
                return Ok(SourceBlob::Stored(file));
            }
            let (mut state, ours) = self.begin(source.as_ref(), digest, Some(size));
            match Self::readable(&mut state).await {
                State::Growing(growing) => {
                    self.link_when_done(repo, digest, state);
                    return Ok(SourceBlob::Growing(growing));
                }
                State::Elsewhere(_) => {
                    self.link_when_done(repo, digest, state);
                    let relay = Relay {
                        fills: self.clone(),
                        source,
                        digest: digest.clone(),
                        size: Some(size),
                    };
                    return Ok(SourceBlob::Remote(Box::new(relay)));
                }
                State::Failed(error) if ours || begun_by_others > 2 => return Err(error),
                State::Failed(_) => begun_by_others += 1,
                State::Starting | State::Done => {}
            }
        }
    }

    fn link_when_done(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        mut state: tokio::sync::watch::Receiver<State>,
    ) {
        let (fills, repo, digest) = (self.clone(), repo.clone(), digest.clone());
        tokio::spawn(async move {
            let done = {
                let end = state
                    .wait_for(|state| matches!(state, State::Done | State::Failed(_)))
                    .await;
                matches!(end.as_deref(), Ok(State::Done))
            };
            if done && let Err(error) = fills.inner.store.link_blob(&repo, &digest).await {
                tracing::warn!(image.digest = %digest, %error, "a copied blob was not linked");
            }
        });
    }

    /// The size that a manifest of the repository gives for a blob.
    async fn named_size(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<u64>> {
        if let Some(size) = self.inner.arriving.blob(repo, digest) {
            return Ok(Some(size));
        }
        let mut left = Vec::new();
        for tag in self
            .inner
            .store
            .tags(repo)
            .await?
            .unwrap_or_default()
            .iter()
            .take(SEARCHED_TAGS)
        {
            left.extend(self.inner.store.tag(repo, tag).await?);
        }
        let mut seen = std::collections::BTreeSet::new();
        while let Some(next) = left.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let Ok(Some(bytes)) = self.inner.store.manifest(repo, &next).await else {
                continue;
            };
            match document::parse(&bytes, "").map(|parsed| parsed.document) {
                Ok(Document::Image(blobs)) => {
                    if let Some(blob) = blobs.iter().find(|blob| blob.digest == *digest) {
                        return Ok(Some(blob.size));
                    }
                }
                Ok(Document::Index(children)) => {
                    left.extend(children.into_iter().map(|child| child.descriptor.digest));
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }

    async fn fresh(&self, repo: &RepositoryName, tag: &Tag, local: &Digest) -> Freshness {
        if !self.inner.settings.revalidate_pulls {
            return Freshness::Current;
        }
        let Some(source) = self.source(repo) else {
            return Freshness::Current;
        };
        match self.inner.upstreams.revalidate(&source, tag.as_str()).await {
            Ok(Some(current)) if current != *local => {
                let (fills, repo, reference) =
                    (self.clone(), repo.clone(), ManifestRef::Tag(tag.clone()));
                let platforms = self.inner.settings.platforms.clone();
                // What is local is served now; the next pull gets the new one.
                tokio::spawn(async move {
                    drop(fills.image(&source, &repo, &reference, &platforms).await);
                });
                Freshness::Unknown {
                    reason: "the tag moved upstream, the new image is being copied".to_owned(),
                }
            }
            Ok(_) => Freshness::Current,
            Err(error) => Freshness::Unknown {
                reason: format!("not revalidated: {}", one_line(&error.to_string())),
            },
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || c == '"' { ' ' } else { c })
        .take(200)
        .collect()
}
