//! What is not local: held, fetched, streamed while it grows, or refused with the right status.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_core::{
    ManifestRef,
    digest::Digest,
    reference::{RepositoryName, Tag},
};
use holdfast_fill::Error as FillError;
use holdfast_fill::pull_through::{Freshness, Manifest, PullThrough, PulledBlob};
use holdfast_store::PartialBlob;

use crate::harness::{Registry, Setup, code, header, noise, repo, sha256};

const REPO: &str = "registry.example/team/app";

/// A source that answers what a test tells it.
#[derive(Default)]
struct Told {
    growing: Mutex<Option<PartialBlob>>,
    stale: Option<&'static str>,
    refusal: Option<fn() -> FillError>,
}

impl Told {
    fn refuse(&self) -> FillError {
        self.refusal
            .map_or(FillError::NotAllowed, |refusal| refusal())
    }
}

impl PullThrough for Told {
    fn manifest<'a>(
        &'a self,
        _: &'a RepositoryName,
        _: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<Manifest, FillError>> {
        Box::pin(async move { Err(self.refuse()) })
    }

    fn blob<'a>(
        &'a self,
        _: &'a RepositoryName,
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<PulledBlob, FillError>> {
        let growing = self.growing.lock().unwrap().clone();
        Box::pin(async move {
            growing
                .map(PulledBlob::Growing)
                .ok_or_else(|| self.refuse())
        })
    }

    fn revalidate<'a>(
        &'a self,
        _: &'a RepositoryName,
        _: &'a Tag,
        _: &'a Digest,
    ) -> BoxFuture<'a, Freshness> {
        let stale = self.stale;
        Box::pin(async move {
            stale.map_or(Freshness::Current, |reason| Freshness::Unknown {
                reason: reason.to_owned(),
            })
        })
    }
}

async fn start(told: Told) -> (Registry, Arc<Told>) {
    let told = Arc::new(told);
    let source: Arc<dyn PullThrough> = told.clone();
    (
        Setup {
            source: Some(source),
            ..Setup::default()
        }
        .start()
        .await,
        told,
    )
}

#[tokio::test]
async fn only_the_upstreams_word_is_not_found() {
    let cases: [(fn() -> FillError, u16); 4] = [
        (|| FillError::NotFound, 404),
        (|| FillError::NotAllowed, 503),
        (|| FillError::Unavailable("refused".into()), 502),
        (
            || holdfast_store::Error::NoSpace { available_bytes: 0 }.into(),
            507,
        ),
    ];
    for (refusal, status) in cases {
        let (registry, _) = start(Told {
            refusal: Some(refusal),
            ..Told::default()
        })
        .await;
        for path in [
            format!("/v2/{REPO}/manifests/1"),
            format!("/v2/{REPO}/blobs/{}", sha256(b"x")),
        ] {
            let answer = registry.get(&path).await;
            assert_eq!(
                header(answer.headers(), "retry-after").is_empty(),
                matches!(status, 404 | 507),
                "{path}"
            );
            assert_eq!(code(answer).await.0, status, "{path}");
        }
        assert_eq!(
            registry.get("/v2/team/app/manifests/1").await.status(),
            404,
            "not an upstream's name: nobody is asked"
        );
    }
}

#[tokio::test]
async fn pull_is_held_until_the_image_is_local() {
    let (registry, _) = start(Told::default()).await;
    let (bytes, store) = (Bytes::from_static(b"{}"), registry.store.clone());
    let digest = sha256(&bytes);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        store
            .put_manifest(&repo(REPO), &digest, bytes)
            .await
            .unwrap();
        store
            .set_tag(&repo(REPO), &Tag::latest(), &digest)
            .await
            .unwrap();
    });
    let answer = registry.get(&format!("/v2/{REPO}/manifests/latest")).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn pull_is_held_for_so_long_and_then_told_to_come_later() {
    let (registry, _) = start(Told::default()).await;
    let digest = sha256(b"absent");
    for path in ["manifests/latest".to_owned(), format!("blobs/{digest}")] {
        let begun = std::time::Instant::now();
        let answer = registry.get(&format!("/v2/{REPO}/{path}")).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(header(answer.headers(), "retry-after"), "5", "{path}");
        let took = begun.elapsed();
        // What the harness sets.
        assert!(Duration::from_millis(500) <= took, "{path}: {took:?}");
        assert!(took < Duration::from_secs(5), "{path}: {took:?}");
    }
}

// SPEC 12
#[tokio::test]
async fn stale_tag_is_served_with_a_warning() {
    let (registry, _) = start(Told {
        stale: Some("upstream \"x\"\nis away"),
        ..Told::default()
    })
    .await;
    let bytes = Bytes::from_static(b"{}");
    let digest = sha256(&bytes);
    registry
        .store
        .put_manifest(&repo(REPO), &digest, bytes)
        .await
        .unwrap();
    registry
        .store
        .set_tag(&repo(REPO), &Tag::latest(), &digest)
        .await
        .unwrap();
    let answer = registry.get(&format!("/v2/{REPO}/manifests/latest")).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(answer.headers(), "warning")
        ),
        (200, "299 - \"upstream xis away\"")
    );
    let answer = registry
        .get(&format!("/v2/{REPO}/manifests/{digest}"))
        .await;
    assert_eq!(
        header(answer.headers(), "warning"),
        "",
        "a digest does not age"
    );
}

#[tokio::test]
async fn blob_is_streamed_and_ranged_while_it_arrives() {
    let (registry, told) = start(Told::default()).await;
    let bytes = noise(1_500_000);
    let digest = sha256(&bytes);
    let mut incoming = registry.store.ingest_blob(&digest).await.unwrap();
    *told.growing.lock().unwrap() = Some(incoming.reader().claiming(Some(1_500_000)));
    let path = format!("/v2/{REPO}/blobs/{digest}");
    incoming
        .append(Bytes::copy_from_slice(&bytes[..700_000]))
        .await
        .unwrap();
    let mut early = registry
        .send("GET", &path, &[("range", "bytes=600000-699999")], "")
        .await;
    assert_eq!(early.status(), 206);
    // A part that is there does not wait, but for its last byte: that one tells that the whole is
    // right.
    let mut part = Vec::new();
    while part.len() < 99_999 {
        part.extend_from_slice(&early.chunk().await.unwrap().unwrap());
    }
    assert!(part == bytes[600_000..699_999], "other bytes");
    let whole = registry.get(&path).await;
    let tail = registry
        .send("GET", &path, &[("range", "bytes=-10")], "")
        .await;
    assert_eq!(
        (
            whole.status().as_u16(),
            header(whole.headers(), "content-length")
        ),
        (200, "1500000")
    );
    let readers =
        tokio::spawn(async move { (whole.bytes().await.unwrap(), tail.bytes().await.unwrap()) });
    for piece in bytes[700_000..].chunks(50_000) {
        incoming
            .append(Bytes::copy_from_slice(piece))
            .await
            .unwrap();
    }
    incoming.commit().await.unwrap();
    let (whole, tail) = readers.await.unwrap();
    assert_eq!(whole, bytes);
    assert_eq!(tail, &bytes[1_499_990..]);
    assert_eq!(early.bytes().await.unwrap(), &bytes[699_999..700_000]);
}

// SPEC 37
#[tokio::test]
async fn wrong_bytes_of_an_upstream_never_end_cleanly() {
    let (registry, told) = start(Told::default()).await;
    let digest = sha256(&noise(300_000));
    let mut incoming = registry.store.ingest_blob(&digest).await.unwrap();
    *told.growing.lock().unwrap() = Some(incoming.reader().claiming(Some(300_000)));
    let answer = registry.get(&format!("/v2/{REPO}/blobs/{digest}")).await;
    incoming
        .append(Bytes::from(vec![0; 300_000]))
        .await
        .unwrap();
    assert!(matches!(
        incoming.commit().await,
        Err(holdfast_store::Error::DigestMismatch { .. })
    ));
    assert!(answer.bytes().await.is_err());
    assert_eq!(registry.store.stat_blob(&digest).await.unwrap(), None);
}
