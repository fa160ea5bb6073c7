//! Clients that go on with uploads by states of their own choice, older ones too, with right bytes
//! and wrong ones, several at once. What the registry signs is a state that was given out, so that
//! is all a client can send.

use bytes::Bytes;
use holdfast_core::digest::Algorithm;
use holdfast_simfs::Rng;
use holdfast_store::{CarriedHash, Result, UploadId};

use crate::{
    program::{Op, Step},
    user::{Run, owner},
};

/// An upload that was begun, and all of its states: offset and hash.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    repo: usize,
    blob: usize,
    id: UploadId,
    states: Vec<(usize, CarriedHash)>,
}

/// Uploads that are under way at a time; what is more replaces the oldest.
const SESSIONS: usize = 3;

impl Run<'_> {
    pub(crate) async fn replay(
        &self,
        op: &Op,
        repo: usize,
        blob: usize,
        steps: &[Step],
        rng: &mut Rng,
    ) {
        let Some(id) = self.session(op, repo, blob, rng).await else {
            return;
        };
        for step in steps {
            // Somebody else may have added states, or have pushed the upload out.
            let known = self
                .sessions
                .lock()
                .unwrap()
                .iter()
                .find(|known| known.id == id)
                .cloned();
            let Some(session) = known else { return };
            match *step {
                Step::Chunk {
                    state,
                    end,
                    wrong,
                    breaks_off,
                } => {
                    let bytes = self.bytes(session.blob, wrong);
                    let sent = (state, bytes, end, breaks_off);
                    self.chunk(op, &session, sent, rng).await;
                }
                Step::End { state, rest, wrong } => {
                    let bytes = rest.then(|| self.bytes(session.blob, wrong));
                    self.end(op, &session, state, bytes, rng).await;
                }
            }
        }
    }

    /// An upload that is under way, or a new one.
    async fn session(&self, op: &Op, repo: usize, blob: usize, rng: &mut Rng) -> Option<UploadId> {
        let under_way: Vec<_> = {
            let sessions = self.sessions.lock().unwrap();
            sessions.iter().map(|session| session.id.clone()).collect()
        };
        if !under_way.is_empty() && rng.chance(4_000) {
            return Some(rng.pick(&under_way).clone());
        }
        let (replica, store) = self.store(rng);
        let name = &self.world.repos[repo];
        let begun = store.create_upload(name, "2026-01-01T00:00:00Z").await;
        self.succeeded(replica, op, &begun);
        let id = begun.ok()?;
        let mut sessions = self.sessions.lock().unwrap();
        if sessions.len() >= SESSIONS {
            sessions.remove(0);
        }
        sessions.push(Session {
            repo,
            blob,
            id: id.clone(),
            states: vec![(0, CarriedHash::none(Algorithm::Sha256))],
        });
        Some(id)
    }

    /// The bytes of a blob, or other ones.
    fn bytes(&self, blob: usize, wrong: bool) -> Bytes {
        let bytes = &self.world.blobs[blob].1;
        if wrong {
            bytes.iter().map(|byte| !byte).collect()
        } else {
            bytes.clone()
        }
    }

    async fn chunk(
        &self,
        op: &Op,
        session: &Session,
        (state, bytes, end, breaks_off): (usize, Bytes, usize, bool),
        rng: &mut Rng,
    ) {
        let (replica, store) = self.store(rng);
        let name = &self.world.repos[session.repo];
        let (offset, carried) = &session.states[state % session.states.len()];
        let result: Result<_> = async {
            let mut writer = store
                .upload_writer(
                    name,
                    &session.id,
                    *offset as u64,
                    carried.clone(),
                    &owner(replica),
                )
                .await?;
            // The upload may be of another blob than the step was made for.
            let end = end.min(bytes.len()).max(*offset);
            for part in bytes.slice(*offset..end).chunks(200) {
                writer.append(Bytes::copy_from_slice(part)).await?;
            }
            if breaks_off {
                return Ok(None);
            }
            writer.finish().await.map(Some)
        }
        .await;
        if self.succeeded(replica, op, &result)
            && let Ok(Some((size, carried))) = result
        {
            let size = usize::try_from(size).unwrap();
            let mut sessions = self.sessions.lock().unwrap();
            if let Some(known) = sessions.iter_mut().find(|known| known.id == session.id) {
                known.states.push((size, carried));
            }
        }
    }

    /// What is committed is found by every reader, and by the look at all files.
    async fn end(
        &self,
        op: &Op,
        session: &Session,
        state: usize,
        rest: Option<Bytes>,
        rng: &mut Rng,
    ) {
        let (replica, store) = self.store(rng);
        let name = &self.world.repos[session.repo];
        let (offset, carried) = &session.states[state % session.states.len()];
        let now = self.tick();
        let write = self
            .model()
            .blob(session.repo, session.blob)
            .begin(Some(()), now, true);
        let result = async {
            let mut writer = store
                .upload_writer(
                    name,
                    &session.id,
                    *offset as u64,
                    carried.clone(),
                    &owner(replica),
                )
                .await?;
            if let Some(bytes) = rest {
                writer.append(bytes.slice(*offset..)).await?;
            }
            writer.commit(&self.world.blobs[session.blob].0).await
        }
        .await;
        let done = self.succeeded(replica, op, &result);
        let end = self.tick();
        self.model()
            .blob(session.repo, session.blob)
            .end(write, end, done);
    }
}
