//! Pulls of what only the upstream has: several clients at a time, in ranges, through random
//! replicas, and what the upstream counted.

use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use holdfast_testkit::{Image, ImageBuilder, Upstream, image::digest_of};
use reqwest::Method;

use crate::{
    client::{Client, Reply},
    windows::{ALL, Kind},
};

/// How long a client retries: longer than the lock of a dead filler holds.
const PULL_TIMEOUT: Duration = Duration::from_secs(70);

/// Pulls new images of an upstream until the end.
pub(crate) struct PullThrough {
    /// The replicas.
    pub(crate) client: Client,
    /// The upstream.
    pub(crate) upstream: Upstream,
    /// Where the images' content begins.
    pub(crate) seed: u64,
}

impl PullThrough {
    /// Works until `end`; the images that were pulled whole while there was no fault, by their
    /// tag's path.
    pub(crate) async fn work(&self, mut random: Rng, end: Instant) -> Vec<(String, Image)> {
        let mut pulled = Vec::new();
        let (mut asked, mut blobs, mut clean, mut number) = (0, 0, 0, 0_u64);
        while Instant::now() < end {
            let mut image = ImageBuilder::new(self.seed.wrapping_mul(31).wrapping_add(number));
            for _ in 0..random.u64(1..4) {
                let size = random.u64(50_000..500_000);
                image = image.layer(usize::try_from(size).unwrap_or(50_000));
            }
            let image = image.build();
            let repo = format!("team/app{}", number % 7);
            let tag = format!("{number}");
            self.upstream.push(&repo, &tag, &image);
            let local = format!("{}/{repo}", self.upstream.host().replace(':', "_"));
            let from = Instant::now();
            let clients = random.u64(2..6);
            let pulls = (0..clients).map(|_| {
                let random = Rng::with_seed(random.u64(..));
                self.pull(&local, &tag, &image, random)
            });
            let whole = join_all(pulls).await.into_iter().all(|whole| whole);
            // Between clients that came and replicas that died the upstream may have been asked
            // again.
            let untouched = !self.client.windows().touched(&ALL, from);
            for digest in image.blobs.keys() {
                let gets = self.upstream.gets(digest);
                asked += gets;
                blobs += 1;
                clean += usize::from(untouched);
                if untouched && gets != 1 {
                    self.client.report().violation(
                        "one request upstream",
                        format!("{local}@{digest}: {gets} requests by {clients} clients, no fault"),
                    );
                }
            }
            // A fault may end a copy before its tag is written; the next client to pull it begins
            // it again.
            if whole && untouched {
                pulled.push((format!("/v2/{local}/manifests/{tag}"), image));
            }
            number += 1;
            let pause = random.u64(200..2_500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let report = self.client.report();
        report.figure("upstream: blobs", blobs);
        report.figure("upstream: requests for blobs", asked);
        report.figure("upstream: blobs copied while there was no fault", clean);
        pulled
    }

    /// One client: the manifest, then each blob, within a time limit; true if it got all of it.
    async fn pull(&self, local: &str, tag: &str, image: &Image, mut random: Rng) -> bool {
        let path = format!("/v2/{local}/manifests/{tag}");
        let began = Instant::now();
        loop {
            match self.get(&path, None, &mut random).await {
                Some(reply) if reply.status == 200 && !reply.short => {
                    if digest_of(&reply.body) != image.digest {
                        self.wrong(&path, &reply, "has other bytes");
                    }
                    break;
                }
                Some(reply) if reply.status == 404 => {
                    self.wrong(&path, &reply, "is unknown, the upstream has it");
                    return false;
                }
                _ => {}
            }
            if began.elapsed() > PULL_TIMEOUT {
                self.gave_up(&path, began);
                return false;
            }
            let pause = random.u64(100..900);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        for (digest, bytes) in &image.blobs {
            let path = format!("/v2/{local}/blobs/{digest}");
            let began = Instant::now();
            let mut have: Vec<u8> = Vec::new();
            while have.len() < bytes.len() {
                let whole = have.is_empty() && random.u8(..100) < 50;
                let last = if random.u8(..100) < 40 {
                    random.u64(have.len() as u64..bytes.len() as u64)
                } else {
                    bytes.len() as u64 - 1
                };
                let range = (!whole).then(|| format!("bytes={}-{last}", have.len()));
                match self.get(&path, range.as_deref(), &mut random).await {
                    // Bytes before a cut count: the next request continues after them.
                    Some(reply) if reply.is(&[200, 206]) => {
                        if (reply.status == 200) != whole {
                            self.wrong(&path, &reply, "is answered whole, or in part, unasked");
                            return false;
                        }
                        have.extend_from_slice(&reply.body);
                        if have[..] != bytes[..have.len().min(bytes.len())] {
                            // What an upstream sends is streamed before all of it is verified. It
                            // must never end like something whole; who
                            // reads parts learns it from the digest, and begins again.
                            let spoilt = self.client.windows().touched(&[Kind::Upstream], began);
                            if !spoilt || (whole && !reply.short) {
                                self.wrong(&path, &reply, "has other bytes");
                                return false;
                            }
                            self.client
                                .report()
                                .answer("pull through", "spoilt, begun again");
                            have.clear();
                        }
                    }
                    Some(reply) if reply.status == 404 => {
                        self.wrong(&path, &reply, "is unknown, the upstream has it");
                        return false;
                    }
                    _ => {
                        let pause = random.u64(100..900);
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                }
                if began.elapsed() > PULL_TIMEOUT {
                    self.gave_up(&path, began);
                    return false;
                }
            }
        }
        true
    }

    async fn get(&self, path: &str, range: Option<&str>, random: &mut Rng) -> Option<Reply> {
        let replica = self.client.pick(random);
        let mut request = self.client.request(replica, Method::GET, path);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let limit = Duration::from_secs(20);
        self.client
            .send_within("pull through", replica, request, limit)
            .await
            .ok()
    }

    fn wrong(&self, path: &str, reply: &Reply, what: &str) {
        self.client.report().violation(
            "pull-through is exact",
            format!("{path} through replica {} {what}", reply.replica),
        );
    }

    fn gave_up(&self, path: &str, began: Instant) {
        self.client.report().violation(
            "pulls end",
            format!(
                "{path} was not to be had for {:.0} s",
                began.elapsed().as_secs_f64()
            ),
        );
    }

    /// What was pulled is there without the upstream, through every replica.
    pub(crate) async fn check(&self, pulled: &[(String, Image)]) {
        use holdfast_testkit::{Fault, faults::Kind as Spoilt};
        self.upstream.faults().set(Fault::new(Spoilt::Down));
        for (path, image) in pulled {
            let base = path.split("/manifests/").next().unwrap_or_default();
            for replica in 0..self.client.count() {
                let blobs = image
                    .blobs
                    .keys()
                    .map(|digest| (format!("{base}/blobs/{digest}"), digest));
                for (path, digest) in blobs.chain([(path.clone(), &image.digest)]) {
                    let request = self.client.request(replica, Method::GET, &path);
                    let limit = Duration::from_secs(15);
                    let reply = self
                        .client
                        .send_within("final pull", replica, request, limit)
                        .await;
                    match reply {
                        Ok(reply) if reply.status == 200 && digest_of(&reply.body) == *digest => {}
                        other => self.client.report().violation(
                            "what was pulled stays",
                            format!(
                                "{path} through replica {replica}: {:?}",
                                other.map(|reply| reply.status)
                            ),
                        ),
                    }
                }
            }
        }
    }
}
