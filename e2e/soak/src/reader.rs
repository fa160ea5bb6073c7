//! Readers: what is there must be there through every replica, whole and right; what was deleted
//! must not come back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures::StreamExt as _;
use holdfast_testkit::image::digest_of;
use parking_lot::{Mutex, MutexGuard};
use reqwest::Method;

use crate::{
    client::{Client, Reply},
    content::{Blob, Library},
    ledger::{Key, Kind, Ledger, Observed, Outcome, PendingWrite, Value, Verdict},
};

/// What readers and writers share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The replicas.
    pub(crate) client: Client,
    /// The ledger.
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    /// The contents.
    pub(crate) library: Arc<Library>,
}

impl Shared {
    /// The ledger, for a moment.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// A write ended.
    pub(crate) fn settle(&self, pending: PendingWrite, outcome: Outcome) {
        let at = self.now();
        self.ledger().settle(pending, outcome, at);
    }

    /// Milliseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        let passed = self.client.report().began().elapsed().as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Reads a key through a replica and judges what came back.
    pub(crate) async fn check(
        &self,
        operation: &str,
        replica: usize,
        key: &Key,
        observed: Observed,
    ) {
        let Some(seen) = self.read(operation, replica, key).await else {
            return;
        };
        let verdict = self.ledger().judge(key, observed, &seen);
        if let Verdict::Wrong(possible) = verdict {
            let rule = match (&seen, possible.as_slice()) {
                (_, [None]) => "what was deleted stays deleted",
                _ => "what was acknowledged is there",
            };
            self.client.report().violation(
                rule,
                format!("{key} through replica {replica} is {seen:?}, must be of {possible:?}"),
            );
        }
    }

    /// What a replica says of a key; `None` when it says nothing.
    async fn read(&self, operation: &str, replica: usize, key: &Key) -> Option<Value> {
        let kind = match key.kind {
            Kind::Blob => "blobs",
            Kind::Manifest | Kind::Tag => "manifests",
        };
        let path = format!("/v2/{}/{kind}/{}", key.repo, key.name);
        let from = Instant::now();
        let request = self.client.request(replica, Method::GET, &path);
        let limit = Duration::from_secs(15);
        let reply = self
            .client
            .send_within(operation, replica, request, limit)
            .await
            .ok()?;
        match reply.status {
            200 if reply.short => None,
            200 => {
                let digest = digest_of(&reply.body);
                let announced = reply.header("docker-content-digest");
                let right = match key.kind {
                    Kind::Tag => announced.is_empty() || announced == digest,
                    Kind::Blob | Kind::Manifest => digest == key.name,
                };
                if !right {
                    self.client.report().violation(
                        "nothing half-written is visible",
                        format!(
                            "{key} through replica {replica} hashes to {digest}, {} bytes",
                            reply.body.len()
                        ),
                    );
                    return None;
                }
                Some(Some(digest))
            }
            404 => Some(None),
            status => {
                self.unreadable(key, &reply, status, from);
                None
            }
        }
    }

    /// Reads never stop: not for a full volume, not for a fault of another replica.
    fn unreadable(&self, key: &Key, reply: &Reply, status: u16, from: Instant) {
        use crate::windows::Kind as Fault;
        let excused = status == 503
            && self
                .client
                .windows()
                .touched(&[Fault::Kill, Fault::Term, Fault::Stop], from);
        if !excused {
            let end = reply.body.len().min(200);
            let text = String::from_utf8_lossy(&reply.body[..end]).into_owned();
            self.client.report().violation(
                "reads never stop",
                format!("{key} through replica {}: {status} {text}", reply.replica),
            );
        }
    }

    /// Reads at random until `end`.
    pub(crate) async fn read_on(self, mut random: Rng, end: Instant) {
        while Instant::now() < end {
            let replica = self.client.pick(&mut random);
            if random.u8(..100) < 60 {
                let any = self.ledger().any(random.u64(..));
                if let Some((key, observed)) = any {
                    self.check("read", replica, &key, observed).await;
                }
            } else {
                self.pull(&mut random).await;
            }
            let pause = random.u64(5..40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Pulls an image: its manifest, then its blobs in ranges, each part through another replica.
    async fn pull(&self, random: &mut Rng) {
        let found = self.ledger().present(Kind::Manifest, random.u64(..));
        let Some((key, digest)) = found else { return };
        let Some(manifest) = self.library.get(&digest) else {
            return;
        };
        for blob in &manifest.blobs {
            let blob_key = Key::new(Kind::Blob, &key.repo, &blob.digest);
            let before = {
                let ledger = self.ledger();
                ledger
                    .certain(&blob_key)
                    .flatten()
                    .and_then(|_| ledger.observe(&blob_key))
            };
            let Some(observed) = before else { continue };
            self.part(random, &blob_key, blob, observed).await;
        }
    }

    async fn part(&self, random: &mut Rng, key: &Key, blob: &Blob, observed: Observed) {
        let size = blob.size as u64;
        let first = random.u64(..size);
        let last = random.u64(first..size);
        let replica = self.client.pick(random);
        let from = Instant::now();
        let path = format!("/v2/{}/blobs/{}", key.repo, key.name);
        let request = self
            .client
            .request(replica, Method::GET, &path)
            .header("range", format!("bytes={first}-{last}"));
        let Ok(reply) = self.client.send("range", replica, request).await else {
            return;
        };
        match reply.status {
            206 if reply.short => {}
            206 => {
                let (first, last) = (index(first), index(last.min(size - 1)));
                if reply.body != blob.bytes().slice(first..=last) {
                    self.client.report().violation(
                        "ranges are exact",
                        format!("{key} bytes {first}-{last} through replica {replica}"),
                    );
                }
            }
            404 => {
                let verdict = self.ledger().judge(key, observed, &None);
                if let Verdict::Wrong(_) = verdict {
                    self.client.report().violation(
                        "what was acknowledged is there",
                        format!("{key} by range through replica {replica} is unknown"),
                    );
                }
            }
            status => self.unreadable(key, &reply, status, from),
        }
    }

    /// Reads every key through every replica, a few at a time.
    pub(crate) async fn check_all(&self) -> usize {
        let keys = self.ledger().keys();
        let reads = keys
            .iter()
            .flat_map(|key| (0..self.client.count()).map(move |replica| (key, replica)));
        let count = keys.len() * self.client.count();
        futures::stream::iter(reads)
            .for_each_concurrent(6, async |(key, replica)| {
                let observed = self.ledger().observe(key);
                if let Some(observed) = observed {
                    self.check("final read", replica, key, observed).await;
                }
            })
            .await;
        count
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
