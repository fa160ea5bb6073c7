//! Blobs on their way in: whole, in chunks that go to different replicas, mounted, or left behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reqwest::{Body, Method};

use crate::{
    client::{Lost, Reply, outcome},
    content::Blob,
    ledger::{Key, Kind, Outcome},
    windows::Kind as Fault,
    writer::Writer,
};

/// How long a client retries: longer than an abandoned lock holds.
const LONG_RETRY_TIMEOUT: Duration = Duration::from_secs(50);
/// How long other clients retry.
const SHORT_RETRY_TIMEOUT: Duration = Duration::from_secs(8);

impl Writer {
    /// Makes sure that a repository has a blob; true when that is certain.
    pub(crate) async fn ensure_blob(&mut self, repo: &str, blob: &Blob) -> bool {
        let key = Key::new(Kind::Blob, repo, &blob.digest);
        let known = self.shared.ledger().certain(&key);
        if matches!(known, Some(Some(_))) {
            return true;
        }
        let pending = self
            .shared
            .ledger()
            .begin(vec![(key.clone(), Some(blob.digest.clone()))]);
        let done = match self.random.u64(..10) {
            0..4 => self.whole(repo, blob).await,
            4..6 => self.chunked(repo, blob, 1).await,
            _ => {
                let chunks = self.random.u64(2..6);
                self.chunked(repo, blob, chunks).await
            }
        };
        self.shared.settle(pending, done);
        if done == Outcome::Done && self.random.u8(..100) < 50 {
            self.read_back(&key).await;
        }
        done == Outcome::Done
    }

    /// A body at once, or in pieces with pauses.
    fn body(&mut self, bytes: Bytes) -> Body {
        if self.random.u8(..100) < 70 || bytes.len() < 1_000 {
            return bytes.into();
        }
        let piece = bytes.len() / 4 + 1;
        let pause = Duration::from_millis(self.random.u64(..250));
        let pieces: Vec<Bytes> = (0..bytes.len())
            .step_by(piece)
            .map(|at| bytes.slice(at..(at + piece).min(bytes.len())))
            .collect();
        Body::wrap_stream(stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(piece)
        }))
    }

    async fn whole(&mut self, repo: &str, blob: &Blob) -> Outcome {
        let replica = self.shared.client.pick(&mut self.random);
        let path = format!("/v2/{repo}/blobs/uploads/?digest={}", blob.digest);
        let body = self.body(blob.bytes());
        let request = self
            .shared
            .client
            .request(replica, Method::POST, &path)
            .body(body);
        let reply = self
            .shared
            .client
            .send("push whole", replica, request)
            .await;
        self.digest_must_fit(&reply, repo, blob);
        outcome(&reply, &[201])
    }

    /// The location of a new session.
    async fn begin(&mut self, repo: &str) -> Option<String> {
        let replica = self.shared.client.pick(&mut self.random);
        let path = format!("/v2/{repo}/blobs/uploads/");
        let request = self.shared.client.request(replica, Method::POST, &path);
        let reply = self
            .shared
            .client
            .send("begin upload", replica, request)
            .await;
        let reply = reply.ok().filter(|reply| reply.status == 202)?;
        Some(reply.header("location").to_owned())
    }

    async fn chunked(&mut self, repo: &str, blob: &Blob, chunks: u64) -> Outcome {
        let Some(mut location) = self.begin(repo).await else {
            return Outcome::Refused;
        };
        let began = Instant::now();
        let limit = if self.random.u8(..100) < 30 {
            LONG_RETRY_TIMEOUT
        } else {
            SHORT_RETRY_TIMEOUT
        };
        let bytes = blob.bytes();
        let step = blob.size / usize::try_from(chunks).unwrap_or(1) + 1;
        let (mut offset, mut lost_end) = (0, false);
        // The last chunk sometimes comes with the PUT.
        let with_end = self.random.u8(..100) < 50;
        while began.elapsed() < limit {
            let end = (offset + step).min(blob.size);
            let last = end == blob.size && with_end;
            let replica = self.shared.client.pick(&mut self.random);
            if offset < blob.size && !last {
                let body = self.body(bytes.slice(offset..end));
                let mut request = self
                    .shared
                    .client
                    .request(replica, Method::PATCH, &location);
                if self.random.u8(..100) < 60 {
                    request = request.header("content-range", format!("{offset}-{}", end - 1));
                }
                let reply = self
                    .shared
                    .client
                    .send("chunk", replica, request.body(body))
                    .await;
                match &reply {
                    Ok(reply) if reply.status == 202 => {
                        if received(reply) != end {
                            self.shared.client.report().violation(
                                "sessions count right",
                                format!("{repo}: {} after {end} bytes", reply.header("range")),
                            );
                        }
                        reply.header("location").clone_into(&mut location);
                        offset = end;
                        continue;
                    }
                    Ok(reply) if reply.is(&[507]) => return Outcome::Refused,
                    _ => {}
                }
            } else {
                let body = self.body(bytes.slice(offset..));
                let joint = if location.contains('?') { '&' } else { '?' };
                let target = format!("{location}{joint}digest={}", blob.digest);
                let request = self
                    .shared
                    .client
                    .request(replica, Method::PUT, &target)
                    .body(body);
                let reply = self
                    .shared
                    .client
                    .send("end upload", replica, request)
                    .await;
                self.digest_must_fit(&reply, repo, blob);
                match &reply {
                    Ok(reply) if reply.status == 201 => return Outcome::Done,
                    Ok(reply) if reply.status == 507 => return Outcome::Partial,
                    Err(Lost::Sent) => lost_end = true,
                    _ => {}
                }
            }
            // Something went wrong: where are we?
            tokio::time::sleep(Duration::from_millis(self.random.u64(50..400))).await;
            match self.upload_status(repo, &location, began).await {
                UploadStatus::At(at, target) => {
                    location = target;
                    offset = at;
                }
                UploadStatus::Gone if lost_end => return Outcome::Unknown,
                UploadStatus::Gone => return Outcome::Refused,
                UploadStatus::NoAnswer => {}
            }
        }
        if lost_end {
            Outcome::Unknown
        } else {
            Outcome::Refused
        }
    }

    async fn upload_status(&mut self, repo: &str, location: &str, began: Instant) -> UploadStatus {
        let replica = self.shared.client.pick(&mut self.random);
        let request = self.shared.client.request(replica, Method::GET, location);
        match self
            .shared
            .client
            .send("upload status", replica, request)
            .await
        {
            Ok(reply) if reply.status == 204 => {
                UploadStatus::At(received(&reply), reply.header("location").to_owned())
            }
            Ok(reply) if reply.status == 404 => {
                // Only an end that was not heard of, or whose content was refused, ends a session.
                let faults = [Fault::Kill, Fault::Term, Fault::Stop, Fault::Full];
                if !self.shared.client.windows().touched(&faults, began) {
                    self.shared.client.report().violation(
                        "sessions last",
                        format!("{repo}: {}", String::from_utf8_lossy(&reply.body)),
                    );
                }
                UploadStatus::Gone
            }
            _ => UploadStatus::NoAnswer,
        }
    }

    fn digest_must_fit(&self, reply: &Result<Reply, Lost>, repo: &str, blob: &Blob) {
        if let Ok(reply) = reply
            && reply.status == 400
        {
            self.shared.client.report().violation(
                "right bytes are taken",
                format!(
                    "{} of {} bytes to {repo} through replica {}: {}",
                    blob.digest,
                    blob.size,
                    reply.replica,
                    String::from_utf8_lossy(&reply.body)
                ),
            );
        }
    }

    /// Mounts a blob that another repository has.
    pub(crate) async fn mount(&mut self) {
        let found = {
            let ledger = self.shared.ledger();
            ledger
                .present(Kind::Blob, self.random.u64(..))
                .and_then(|(key, digest)| Some((ledger.observe(&key)?, key, digest)))
        };
        let Some((observed, from, digest)) = found else {
            return;
        };
        let repo = self.repo();
        let key = Key::new(Kind::Blob, &repo, &digest);
        let pending = self
            .shared
            .ledger()
            .begin(vec![(key.clone(), Some(digest.clone()))]);
        let replica = self.shared.client.pick(&mut self.random);
        let path = format!(
            "/v2/{repo}/blobs/uploads/?mount={digest}&from={}",
            from.repo
        );
        let request = self.shared.client.request(replica, Method::POST, &path);
        let reply = self.shared.client.send("mount", replica, request).await;
        let mut done = outcome(&reply, &[201]);
        let mut session = None;
        if let Ok(reply) = &reply
            && reply.status == 202
        {
            done = Outcome::Refused;
            session = Some(reply.header("location").to_owned());
            let same_repo = from.repo == repo;
            let verdict = self.shared.ledger().judge(&from, observed, &None);
            if !same_repo && matches!(verdict, crate::ledger::Verdict::Wrong(_)) {
                self.shared.client.report().violation(
                    "what was acknowledged is there",
                    format!("{from} could not be mounted through replica {replica}"),
                );
            }
        }
        self.shared.settle(pending, done);
        if let Some(location) = session {
            self.cancel(&location).await;
        }
        if done == Outcome::Done {
            self.read_back(&key).await;
        }
    }

    /// Begins an upload and leaves it: by a cancel, or by a body that breaks off.
    pub(crate) async fn abandon(&mut self) {
        let repo = self.repo();
        let Some(location) = self.begin(&repo).await else {
            return;
        };
        let replica = self.shared.client.pick(&mut self.random);
        if self.random.u8(..100) < 60 {
            let pieces = vec![
                Ok(Bytes::from(vec![1; 20_000])),
                Err(std::io::Error::other("the client leaves")),
            ];
            let body = Body::wrap_stream(stream::iter(pieces));
            let request = self
                .shared
                .client
                .request(replica, Method::PATCH, &location)
                .body(body);
            // It is meant to fail; it is not counted as an answer.
            drop(request.timeout(Duration::from_secs(5)).send().await);
        }
        self.cancel(&location).await;
    }

    async fn cancel(&mut self, location: &str) {
        let replica = self.shared.client.pick(&mut self.random);
        let request = self
            .shared
            .client
            .request(replica, Method::DELETE, location);
        drop(
            self.shared
                .client
                .send("cancel upload", replica, request)
                .await,
        );
    }
}

enum UploadStatus {
    /// The session holds this number of bytes and goes on there.
    At(usize, String),
    /// There is no such session.
    Gone,
    /// No replica answered.
    NoAnswer,
}

/// Bytes that a session holds by its `Range`; `0-0` is nothing here, where no chunk has one byte.
fn received(reply: &Reply) -> usize {
    let last = reply.header("range").rsplit('-').next().unwrap_or_default();
    match last.parse::<usize>() {
        Ok(0) | Err(_) => 0,
        Ok(last) => last + 1,
    }
}
