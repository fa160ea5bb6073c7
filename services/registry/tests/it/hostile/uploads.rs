//! Clients that send older states of their own uploads again, with other bytes.

use std::{fs, time::Duration};

use holdfast_core::digest::{Algorithm, Digest};
use holdfast_store::Hasher;
use reqwest::StatusCode;

use crate::harness::{Registry, code, header, noise};

const REPO: &str = "team/app";

/// One upload, with every state that the registry ever gave for it.
struct Upload<'a> {
    registry: &'a Registry,
    states: Vec<String>,
    good: Vec<u8>,
    evil: Vec<u8>,
    digest: Digest,
}

/// One request of an upload. The number is that of the state it is sent with, in the order in which
/// they were given.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A chunk of the right bytes, from the state's offset to this one.
    Good(usize, usize),
    /// A chunk of other bytes of the same length.
    Evil(usize, usize),
    /// The end, with the right digest, and the right bytes from the state's offset on, or none.
    End(usize, Rest),
    /// The state is asked for, which gives one without a hash.
    Status(usize),
}

#[derive(Clone, Copy, Debug)]
enum Rest {
    None,
    Good,
    Evil,
}

use Step::{End, Evil, Good, Status};

impl<'a> Upload<'a> {
    async fn begin(registry: &'a Registry, size: usize, algorithm: Algorithm) -> Self {
        let target = format!("/v2/{REPO}/blobs/uploads/?digest-algorithm={algorithm}");
        let answer = registry.send("POST", &target, &[], "").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let good = noise(size);
        Self {
            registry,
            states: vec![header(answer.headers(), "location").to_owned()],
            evil: good.iter().map(|byte| !byte).collect(),
            digest: Hasher::digest(algorithm, &good),
            good,
        }
    }

    /// The offset that a state carries, as its client can read it.
    fn offset(&self, state: usize) -> usize {
        let (_, text) = self.states[state].split_once("_state=").unwrap();
        let engine = base64::engine::general_purpose::URL_SAFE;
        let bytes = base64::Engine::decode(&engine, text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes[32..]).unwrap();
        usize::try_from(json["Offset"].as_u64().unwrap()).unwrap()
    }

    /// Sends one request; returns its status.
    async fn step(&mut self, step: Step) -> u16 {
        let (method, state, body) = match step {
            Good(state, end) => ("PATCH", state, self.good[self.offset(state)..end].to_vec()),
            Evil(state, end) => ("PATCH", state, self.evil[self.offset(state)..end].to_vec()),
            Status(state) => ("GET", state, Vec::new()),
            End(state, rest) => {
                let from = self.offset(state);
                let body = match rest {
                    Rest::None => Vec::new(),
                    Rest::Good => self.good[from..].to_vec(),
                    Rest::Evil => self.evil[from..].to_vec(),
                };
                ("PUT", state, body)
            }
        };
        let mut target = self.states[state].clone();
        if method == "PUT" {
            target = format!("{target}&digest={}", self.digest);
        }
        let kind = [("content-type", "application/octet-stream")];
        let answer = self.registry.send(method, &target, &kind, body).await;
        let location = header(answer.headers(), "location").to_owned();
        if location.contains("_state=") {
            self.states.push(location);
        }
        answer.status().as_u16()
    }

    async fn stored(&self, repo: &str) -> Option<Vec<u8>> {
        let target = format!("/v2/{repo}/blobs/{}", self.digest);
        let answer = self.registry.get(&target).await;
        match answer.status() {
            StatusCode::OK => Some(answer.bytes().await.unwrap().to_vec()),
            StatusCode::NOT_FOUND => None,
            other => panic!("{other}"),
        }
    }
}

/// What a client tries, and how the last request ends.
const SEQUENCES: [(&str, &[Step], u16); 12] = [
    (
        "the first chunk again, other bytes, and the end by the old state",
        &[Good(0, 4096), Evil(0, 4096), End(1, Rest::None)],
        400,
    ),
    (
        "the same with a state in the middle",
        &[
            Good(0, 1000),
            Good(1, 4096),
            Evil(1, 4096),
            End(2, Rest::None),
        ],
        400,
    ),
    (
        "the first chunk is replaced, the second comes by its old state",
        &[
            Good(0, 1000),
            Evil(0, 1000),
            Good(1, 4096),
            End(3, Rest::None),
        ],
        400,
    ),
    (
        "a longer chunk of other bytes, cut off by the old state",
        &[Good(0, 1000), Evil(0, 4096), End(1, Rest::Good)],
        400,
    ),
    (
        "other bytes behind the offset alone harm nobody",
        &[Good(0, 1000), Evil(1, 4096), End(1, Rest::Good)],
        201,
    ),
    (
        "the right bytes again",
        &[Good(0, 4096), Good(0, 4096), End(2, Rest::None)],
        201,
    ),
    (
        "the right bytes again, and the end by the old state",
        &[Good(0, 4096), Good(0, 4096), End(1, Rest::None)],
        201,
    ),
    (
        "the state is asked for between",
        &[
            Good(0, 4096),
            Evil(0, 1000),
            Status(0),
            Evil(3, 4096),
            End(1, Rest::None),
        ],
        400,
    ),
    (
        "all at once by the first state, after a chunk",
        &[Good(0, 4096), End(0, Rest::Evil)],
        400,
    ),
    (
        "all at once by the first state, beside other bytes",
        &[Evil(0, 4096), End(0, Rest::Good)],
        201,
    ),
    (
        "a state from before an upload was cut short",
        &[Good(0, 4096), Evil(0, 10), End(1, Rest::None)],
        416,
    ),
    (
        "twice cut, and the end by the first hash",
        &[
            Good(0, 4096),
            Evil(0, 10),
            Evil(2, 4096),
            Good(2, 4096),
            End(1, Rest::None),
        ],
        400,
    ),
];

#[tokio::test]
async fn what_is_committed_by_any_sequence_of_states_has_its_digest() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for (what, steps, expect) in SEQUENCES {
            let registry = Registry::start().await;
            let mut upload = Upload::begin(&registry, 4096, algorithm).await;
            let mut last = 0;
            for step in steps {
                last = upload.step(*step).await;
            }
            assert_eq!(last, expect, "{algorithm}: {what}");
            let stored = upload.stored(REPO).await;
            let right = (expect == 201).then(|| upload.good.clone());
            assert!(stored == right, "{algorithm}: {what}");
        }
    }
}

/// A wrong blob would be mounted elsewhere, and honest pushes of the right bytes would be
/// acknowledged and dropped.
#[tokio::test]
async fn after_an_attack_the_digest_is_anybodys_to_push() {
    let registry = Registry::start().await;
    let mut upload = Upload::begin(&registry, 1_000_000, Algorithm::Sha256).await;
    for step in [Good(0, 1_000_000), Evil(0, 1_000_000)] {
        assert_eq!(upload.step(step).await, 202);
    }
    assert_eq!(upload.step(End(1, Rest::None)).await, 400);
    let digest = upload.digest.clone();
    let target = format!("/v2/other/app/blobs/uploads/?mount={digest}&from={REPO}");
    let mounted = registry.send("POST", &target, &[], "").await;
    assert_eq!(mounted.status(), StatusCode::ACCEPTED, "nothing to mount");
    let pushed = registry.push_blob("honest/app", upload.good.clone()).await;
    assert_eq!(pushed, digest);
    assert!(upload.stored("honest/app").await.unwrap() == upload.good);
}

/// Pushes a blob in two requests; its hash travels between them.
async fn push_in_chunks(registry: &Registry, repo: &str, bytes: &[u8]) -> Digest {
    let digest = Hasher::digest(Algorithm::Sha256, bytes);
    let target = format!("/v2/{repo}/blobs/uploads/");
    let begun = registry.send("POST", &target, &[], "").await;
    let at = header(begun.headers(), "location").to_owned();
    let sent = registry.send("PATCH", &at, &[], bytes.to_vec()).await;
    let at = format!("{}&digest={digest}", header(sent.headers(), "location"));
    let ended = registry.send("PUT", &at, &[], "").await;
    assert_eq!(ended.status(), StatusCode::CREATED);
    digest
}

#[tokio::test]
async fn content_that_was_never_hashed_wins_over_no_push() {
    for size in [5_000, 4_000] {
        let registry = Registry::start().await;
        let good = noise(5_000);
        let digest = registry.push_blob("first", good.clone()).await;
        let path = registry.store.layout().blob(&digest);
        let damage = async || {
            // Later than the file's modification, by the coarsest clock of a file system.
            tokio::time::sleep(Duration::from_millis(50)).await;
            fs::write(&path, vec![b'x'; size]).unwrap();
        };
        damage().await;
        // In one request, and in two whose hash travels between them.
        for (repo, chunks) in [("honest", false), ("chunked", true)] {
            if chunks {
                push_in_chunks(&registry, repo, &good).await;
            } else {
                registry.push_blob(repo, good.clone()).await;
            }
            let blob = registry.get(&format!("/v2/{repo}/blobs/{digest}")).await;
            assert!(blob.bytes().await.unwrap() == good, "{size}: {repo}");
            damage().await;
        }
    }
}

/// Neither its size nor its time tells that it is damaged, and nobody has hashed it: the hash that
/// it was stored by came back from a client.
#[tokio::test]
async fn content_a_client_vouched_for_wins_over_no_push_whatever_its_time() {
    for chunks in [false, true] {
        let registry = Registry::start().await;
        let good = noise(5_000);
        let digest = push_in_chunks(&registry, "first", &good).await;
        let path = registry.store.layout().blob(&digest);
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, vec![b'x'; good.len()]).unwrap();
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(before).unwrap();
        if chunks {
            push_in_chunks(&registry, "honest", &good).await;
        } else {
            registry.push_blob("honest", good.clone()).await;
        }
        let blob = registry.get(&format!("/v2/honest/blobs/{digest}")).await;
        assert!(blob.bytes().await.unwrap() == good, "in chunks: {chunks}");
        assert!(fs::read(&path).unwrap() == good, "in chunks: {chunks}");
    }
}

#[tokio::test]
async fn states_of_a_cancelled_upload_open_nothing() {
    let registry = Registry::start().await;
    let mut upload = Upload::begin(&registry, 4096, Algorithm::Sha256).await;
    assert_eq!(upload.step(Good(0, 4096)).await, 202);
    let cancelled = registry.send("DELETE", &upload.states[1], &[], "").await;
    assert_eq!(cancelled.status(), StatusCode::NO_CONTENT);
    for step in [Evil(0, 4096), End(1, Rest::None), Status(0)] {
        assert_eq!(upload.step(step).await, 404, "{step:?}");
    }
    assert_eq!(upload.stored(REPO).await, None);
}

/// The second request waits for the first, and both go on from the same state.
#[tokio::test]
async fn two_chunks_at_once_by_one_state_end_as_one_after_the_other() {
    let registry = Registry::start().await;
    for _ in 0..8 {
        let mut upload = Upload::begin(&registry, 200_000, Algorithm::Sha256).await;
        let send = |bytes: Vec<u8>| registry.send("PATCH", &upload.states[0], &[], bytes);
        let (one, other) = tokio::join!(send(upload.good.clone()), send(upload.evil.clone()));
        for answer in [one, other] {
            assert_eq!(answer.status(), StatusCode::ACCEPTED);
            let location = header(answer.headers(), "location").to_owned();
            upload.states.push(location);
        }
        // The first state's hash is that of the right bytes, whichever request was the last.
        let ended = upload.step(End(1, Rest::None)).await;
        let stored = upload.stored(REPO).await;
        match ended {
            201 => assert!(stored.unwrap() == upload.good),
            400 => assert!(stored.is_none()),
            other => panic!("{other}"),
        }
        if ended == 201 {
            let target = format!("/v2/{REPO}/blobs/{}", upload.digest);
            let deleted = registry.send("DELETE", &target, &[], "").await;
            assert_eq!(deleted.status(), StatusCode::ACCEPTED);
        }
    }
}

/// A request that breaks off leaves what it brought, and the older state goes on before it.
#[tokio::test]
async fn a_chunk_that_broke_off_is_replaced_by_what_comes_next() {
    let registry = Registry::start().await;
    let mut upload = Upload::begin(&registry, 300_000, Algorithm::Sha256).await;
    assert_eq!(upload.step(Good(0, 1_000)).await, 202);
    let evil = upload.evil[1_000..200_000].to_vec();
    let pieces = futures::stream::iter([Ok(evil), Err(std::io::Error::other("gone"))]);
    let request = reqwest::Client::new()
        .patch(format!("{}{}", registry.url, upload.states[1]))
        .body(reqwest::Body::wrap_stream(pieces));
    assert!(request.send().await.is_err());
    let mut ended = 409;
    for _ in 0..200 {
        ended = upload.step(End(1, Rest::Good)).await;
        if ended != 409 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ended, 201);
    assert!(upload.stored(REPO).await.unwrap() == upload.good);
}

#[tokio::test]
async fn an_answer_to_a_wrong_end_says_what_is_wrong() {
    let registry = Registry::start().await;
    let mut upload = Upload::begin(&registry, 100, Algorithm::Sha256).await;
    upload.step(Good(0, 100)).await;
    upload.step(Evil(0, 100)).await;
    let target = format!("{}&digest={}", upload.states[1], upload.digest);
    let answer = registry.send("PUT", &target, &[], "").await;
    assert_eq!(code(answer).await, (400, "DIGEST_INVALID".to_owned()));
}
