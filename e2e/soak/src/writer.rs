//! Writers: each owns its tags and images, pushes, moves, mounts and deletes them through random
//! replicas, and keeps the ledger.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use holdfast_testkit::image::OCI_MANIFEST;
use reqwest::Method;

use crate::{
    client::outcome,
    content::{Blob, Manifest},
    ledger::{Key, Kind, Outcome, Value},
    reader::Shared,
};

/// A client that writes.
pub(crate) struct Writer {
    /// What it reads and writes.
    pub(crate) shared: Shared,
    /// Its luck.
    pub(crate) random: Rng,
    /// Tells its tags from others'.
    pub(crate) number: u64,
    /// Its own repository and the one that all share.
    pub(crate) repos: Vec<String>,
    /// Layers that all use.
    pub(crate) bases: Arc<Vec<Blob>>,
    /// Bytes of new content that may still be pushed.
    pub(crate) budget: Arc<AtomicU64>,
    /// Images pushed so far.
    pub(crate) count: u64,
    /// Images that it owns and that are there.
    pub(crate) images: Vec<(String, Manifest)>,
}

impl Writer {
    /// Works until `end`.
    pub(crate) async fn work(mut self, end: Instant) {
        while Instant::now() < end {
            match self.random.u64(..100) {
                0..45 => self.push().await,
                45..60 => self.delete().await,
                60..70 => self.retag().await,
                70..78 => self.race().await,
                78..86 => self.mount().await,
                86..94 => self.list().await,
                _ => self.abandon().await,
            }
            let pause = self.random.u64(5..60);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    pub(crate) fn repo(&mut self) -> String {
        self.repos[self.random.usize(..self.repos.len())].clone()
    }

    fn tag(&mut self) -> String {
        format!("w{}-{}", self.number, self.random.u64(..40))
    }

    /// A new blob, or an existing one when the volume has no space for new ones.
    fn blob(&mut self) -> Blob {
        let size = match self.random.u64(..100) {
            0..70 => self.random.u64(200..40_000),
            70..95 => self.random.u64(40_000..400_000),
            _ => self.random.u64(1_000_000..3_000_000),
        };
        let spent = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(size)
            });
        if spent.is_err() || self.random.u8(..100) < 15 {
            return self.bases[self.random.usize(..self.bases.len())].clone();
        }
        Blob::new(self.random.u64(..), usize::try_from(size).unwrap_or(200))
    }

    /// Pushes an image under a tag, reads it back through another replica.
    async fn push(&mut self) {
        let repo = self.repo();
        let mut blobs = Vec::new();
        for _ in 0..=self.random.u64(1..4) {
            let blob = self.blob();
            if !blobs.contains(&blob) {
                blobs.push(blob);
            }
        }
        for blob in &blobs {
            if !self.ensure_blob(&repo, blob).await {
                return;
            }
        }
        self.count += 1;
        let mark = self.number * 1_000_000 + self.count;
        let Some((config, layers)) = blobs.split_first() else {
            return;
        };
        let manifest = Manifest::new(config, layers, mark);
        self.shared.library.add(&manifest);
        let tag = self.tag();
        self.put_manifest(&repo, &tag, &manifest).await;
    }

    /// Puts a manifest under a tag; true when it was acknowledged.
    async fn put_manifest(&mut self, repo: &str, tag: &str, manifest: &Manifest) -> bool {
        let keys = [
            Key::new(Kind::Manifest, repo, &manifest.digest),
            Key::new(Kind::Tag, repo, tag),
        ];
        let before: Vec<_> = {
            let ledger = self.shared.ledger();
            let blobs = manifest.blobs.iter();
            blobs
                .map(|blob| ledger.certain(&Key::new(Kind::Blob, repo, &blob.digest)))
                .collect()
        };
        let digest: Value = Some(manifest.digest.clone());
        let changes = keys
            .iter()
            .map(|key| (key.clone(), digest.clone()))
            .collect();
        let pending = self.shared.ledger().begin(changes);
        let replica = self.shared.client.pick(&mut self.random);
        let path = format!("/v2/{repo}/manifests/{tag}");
        let request = self
            .shared
            .client
            .request(replica, Method::PUT, &path)
            .header("content-type", OCI_MANIFEST)
            .body(manifest.bytes.clone());
        let reply = self
            .shared
            .client
            .send("put manifest", replica, request)
            .await;
        let done = outcome(&reply, &[201]);
        self.shared.settle(pending, done);
        if let Ok(reply) = &reply
            && reply.is(&[404, 400])
            && before.iter().all(|blob| matches!(blob, Some(Some(_))))
        {
            self.shared.client.report().violation(
                "what was acknowledged is there",
                format!(
                    "manifest {} in {repo} refused: {}",
                    manifest.digest,
                    String::from_utf8_lossy(&reply.body)
                ),
            );
        }
        if done != Outcome::Done {
            return false;
        }
        self.images.push((repo.to_owned(), manifest.clone()));
        for key in keys {
            self.read_back(&key).await;
        }
        true
    }

    pub(crate) async fn read_back(&mut self, key: &Key) {
        let observed = self.shared.ledger().observe(key);
        if let Some(observed) = observed {
            let replica = self.shared.client.pick(&mut self.random);
            self.shared.check("read back", replica, key, observed).await;
        }
    }

    /// An image of its own that is certainly there; forgets those that are not.
    fn own(&mut self) -> Option<(String, Manifest)> {
        let at = self.random.usize(..self.images.len().max(1));
        let (repo, manifest) = self.images.get(at)?.clone();
        let key = Key::new(Kind::Manifest, &repo, &manifest.digest);
        if matches!(self.shared.ledger().certain(&key), Some(Some(_))) {
            return Some((repo, manifest));
        }
        self.images.swap_remove(at);
        None
    }

    /// Deletes a tag, or a manifest with its tags and perhaps a layer of its own.
    async fn delete(&mut self) {
        let Some((repo, manifest)) = self.own() else {
            return;
        };
        if self.random.u8(..100) < 40 {
            let tag = {
                let ledger = self.shared.ledger();
                ledger.tags_of(&repo, &manifest.digest).pop()
            };
            if let Some(tag) = tag {
                self.remove(
                    &repo,
                    "manifests",
                    &tag,
                    vec![Key::new(Kind::Tag, &repo, &tag)],
                )
                .await;
            }
            return;
        }
        let mut keys = vec![Key::new(Kind::Manifest, &repo, &manifest.digest)];
        let tags = self.shared.ledger().tags_of(&repo, &manifest.digest);
        keys.extend(tags.iter().map(|tag| Key::new(Kind::Tag, &repo, tag)));
        let gone = self
            .remove(&repo, "manifests", &manifest.digest, keys)
            .await;
        if gone && self.random.u8(..100) < 50 {
            let used = |blob: &&Blob| {
                self.bases.contains(blob)
                    || self.images.iter().any(|(other, image)| {
                        *other == repo
                            && image.digest != manifest.digest
                            && image.blobs.contains(blob)
                    })
            };
            let blobs: Vec<Blob> = manifest
                .blobs
                .iter()
                .filter(|blob| !used(blob))
                .cloned()
                .collect();
            for blob in blobs {
                let keys = vec![Key::new(Kind::Blob, &repo, &blob.digest)];
                self.remove(&repo, "blobs", &blob.digest, keys).await;
            }
        }
    }

    /// Deletes; the first key is what the request names. True when it was acknowledged.
    async fn remove(&mut self, repo: &str, kind: &str, name: &str, keys: Vec<Key>) -> bool {
        let Some(named) = keys.first().cloned() else {
            return false;
        };
        let (certain, pending, perhaps) = {
            let mut ledger = self.shared.ledger();
            let certain = matches!(ledger.certain(&named), Some(Some(_)));
            // A tag that may name the manifest may go with it, or stay as it is because it names
            // another one.
            let (sure, perhaps): (Vec<Key>, Vec<Key>) = keys
                .iter()
                .cloned()
                .partition(|key| *key == named || ledger.certain(key).is_some());
            let nothing = |keys: Vec<Key>| keys.into_iter().map(|key| (key, None)).collect();
            (
                certain,
                ledger.begin(nothing(sure)),
                ledger.begin(nothing(perhaps)),
            )
        };
        let replica = self.shared.client.pick(&mut self.random);
        let path = format!("/v2/{repo}/{kind}/{name}");
        let request = self.shared.client.request(replica, Method::DELETE, &path);
        let reply = self
            .shared
            .client
            .send(&format!("delete {kind}"), replica, request)
            .await;
        let mut done = outcome(&reply, &[202]);
        if let Ok(reply) = &reply
            && reply.status == 404
        {
            // Gone in any case.
            done = Outcome::Done;
            if certain {
                self.shared.client.report().violation(
                    "what was acknowledged is there",
                    format!("delete of {named} through replica {replica} found nothing"),
                );
            }
        }
        self.shared.settle(pending, done);
        let perhaps_done = if done == Outcome::Done {
            Outcome::Partial
        } else {
            done
        };
        self.shared.settle(perhaps, perhaps_done);
        if done != Outcome::Done {
            return false;
        }
        for key in keys {
            self.read_back(&key).await;
        }
        true
    }

    /// Moves a tag to an image that is there already.
    async fn retag(&mut self) {
        if let Some((repo, manifest)) = self.own() {
            let tag = self.tag();
            self.put_manifest(&repo, &tag, &manifest).await;
        }
    }

    /// Moves a tag from one image to another while the first image is deleted: in either order the
    /// tag names the second one.
    async fn race(&mut self) {
        let Some((repo, first)) = self.own() else {
            return;
        };
        let Some((other, second)) = self.own() else {
            return;
        };
        if repo != other || first.digest == second.digest {
            return;
        }
        let tag = format!("w{}-race-{}", self.number, self.random.u64(..8));
        if !self.put_manifest(&repo, &tag, &first).await {
            return;
        }
        let mut changes = vec![
            (Key::new(Kind::Manifest, &repo, &first.digest), None),
            (
                Key::new(Kind::Tag, &repo, &tag),
                Some(second.digest.clone()),
            ),
        ];
        {
            let ledger = self.shared.ledger();
            let others = ledger.tags_of(&repo, &first.digest);
            let others = others.into_iter().filter(|other| *other != tag);
            let others: Vec<_> = others
                .map(|other| (Key::new(Kind::Tag, &repo, &other), None))
                .collect();
            if others
                .iter()
                .any(|(key, _)| ledger.certain(key) != Some(Some(first.digest.clone())))
            {
                return;
            }
            changes.extend(others);
        }
        let pending = self.shared.ledger().begin(changes);
        let replicas = [
            self.shared.client.pick(&mut self.random),
            self.shared.client.pick(&mut self.random),
        ];
        let put = self
            .shared
            .client
            .request(
                replicas[0],
                Method::PUT,
                &format!("/v2/{repo}/manifests/{tag}"),
            )
            .header("content-type", OCI_MANIFEST)
            .body(second.bytes.clone());
        let delete = self.shared.client.request(
            replicas[1],
            Method::DELETE,
            &format!("/v2/{repo}/manifests/{}", first.digest),
        );
        let pause = Duration::from_micros(self.random.u64(..3_000));
        let (put, delete) = tokio::join!(
            self.shared.client.send("race: put", replicas[0], put),
            async {
                tokio::time::sleep(pause).await;
                self.shared
                    .client
                    .send("race: delete", replicas[1], delete)
                    .await
            }
        );
        let moved = outcome(&put, &[201]);
        let done = match (moved, outcome(&delete, &[202, 404])) {
            (Outcome::Done, Outcome::Done) => Outcome::Done,
            (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
            _ => Outcome::Partial,
        };
        if moved != Outcome::Done {
            // The tag may also have gone with the manifest, without coming to name the second one.
            let gone = vec![(Key::new(Kind::Tag, &repo, &tag), None)];
            let also = self.shared.ledger().begin(gone);
            self.shared.settle(also, done);
        }
        self.shared.settle(pending, done);
        if done == Outcome::Done {
            self.read_back(&Key::new(Kind::Tag, &repo, &tag)).await;
        }
    }

    /// Looks at all tags of a repository, of which it alone writes its own.
    async fn list(&mut self) {
        let repo = self.repo();
        let replica = self.shared.client.pick(&mut self.random);
        let own = format!("w{}-", self.number);
        self.shared
            .check_list(replica, &repo, |tag| tag.starts_with(&own))
            .await;
    }
}
