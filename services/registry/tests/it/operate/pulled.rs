//! Pulls by a tag through the process of a standalone registry: what it takes, what it keeps,
//! and what it calls it.

use std::time::Duration;

use holdfast_config::{ByteSize, RegistrySettings, UpstreamSettings};
use holdfast_testkit::{
    Fault, Image, ImageBuilder, Upstream, eventually,
    faults::Kind,
    image::{OCI_MANIFEST, digest_of},
};

use super::harness::Process;

const LIMIT: Duration = Duration::from_secs(20);
const HTML: &str = "text/html";

/// A process for one upstream.
async fn start(upstream: &Upstream, change: impl FnOnce(&mut RegistrySettings)) -> Process {
    let listed = UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]);
    let process = Process::with(false, |settings| {
        settings.upstreams = vec![listed];
        change(settings);
    });
    process.until("/readyz", 200).await;
    process
}

fn path(upstream: &Upstream, rest: &str) -> String {
    let host = upstream.host().replace(':', "_");
    format!("/v2/{host}/team/app/{rest}")
}

async fn get(process: &Process, path: &str) -> reqwest::Response {
    let get = process.client.get(format!("{}{path}", process.api));
    get.send().await.unwrap()
}

/// Pulls something whole that is there.
async fn pull(process: &Process, path: &str, expect: &[u8]) {
    let answer = get(process, path).await;
    assert_eq!(answer.status(), 200, "{path}");
    assert_eq!(answer.bytes().await.unwrap(), expect, "{path}");
}

/// Waits until the copy of the tag is whole; the tag comes last.
async fn stored(process: &Process, upstream: &Upstream) {
    let host = upstream.host().replace(':', "_");
    let tag =
        format!("docker/registry/v2/repositories/{host}/team/app/_manifests/tags/1/current/link");
    let tag = process.root.join(tag);
    eventually("the tag is stored", LIMIT, || tag.exists()).await;
}

/// The platform of this machine, which a standalone registry copies of an index.
fn own_platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        _ => "linux/amd64",
    }
}

// brew#17395, runwasi#722
#[tokio::test(flavor = "multi_thread")]
async fn an_index_pulled_by_its_tag_is_there_without_its_upstream() {
    let foreign = ImageBuilder::new(1).layer(1000).index(&["linux/s390x"]);
    let mut partly = ImageBuilder::new(2)
        .layer(1000)
        .index(&[own_platform(), own_platform()]);
    let (held, gone) = (partly.children[0].clone(), partly.children[1].clone());
    partly.manifests.remove(&gone);
    for (what, image, held, gone) in [
        ("no platform", &foreign, None, foreign.children[0].clone()),
        ("a child is gone", &partly, Some(held), gone),
    ] {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "1", image);
        let process = start(&upstream, |_| {}).await;
        let by_tag = path(&upstream, "manifests/1");
        pull(&process, &by_tag, &image.bytes()).await;
        stored(&process, &upstream).await;

        upstream.faults().set(Fault::new(Kind::Down));
        let by_digest = path(&upstream, &format!("manifests/{}", image.digest));
        for _ in 0..2 {
            pull(&process, &by_tag, &image.bytes()).await;
            pull(&process, &by_digest, &image.bytes()).await;
        }
        if let Some(held) = held {
            let child = path(&upstream, &format!("manifests/{held}"));
            pull(&process, &child, &image.manifests[&held].1).await;
            let layer = path(&upstream, &format!("blobs/{}", image.layers[0]));
            pull(&process, &layer, &image.blobs[&image.layers[0]]).await;
        }
        let gone = path(&upstream, &format!("manifests/{gone}"));
        let answer = get(&process, &gone).await;
        assert_ne!(answer.status(), 200, "{what}: it was never here");
        process.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_manifests_holds_for_upstreams() {
    let image = ImageBuilder::new(3).layer(1000).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    let length = image.bytes().len() as u64;
    for (limit, expect) in [(length, 200), (length - 1, 502)] {
        let process = start(&upstream, |settings| {
            settings.limits.manifest_bytes = ByteSize::from_bytes(limit);
        })
        .await;
        let answer = get(&process, &path(&upstream, "manifests/1")).await;
        assert_eq!(answer.status(), expect, "{limit}");
        if expect == 502 {
            let text = answer.text().await.unwrap();
            let told = format!("larger than {limit} bytes");
            assert!(text.contains(&told), "{text}");
        }
        process.end().await;
    }
}

/// The image with another media type of its own, or with none, from an upstream that calls it a
/// page.
fn paged(image: &Image, own: Option<&str>) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.bytes()).unwrap();
    match own {
        Some(own) => manifest["mediaType"] = own.into(),
        None => drop(manifest.as_object_mut().unwrap().remove("mediaType")),
    }
    let bytes = manifest.to_string();
    let digest = digest_of(bytes.as_bytes());
    Image {
        manifests: [(digest.clone(), (HTML.to_owned(), bytes.into()))].into(),
        digest,
        ..image.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_upstream_is_served_as_a_page() {
    let image = ImageBuilder::new(4).layer(1000).build();
    for (own, status) in [(None, 200), (Some(OCI_MANIFEST), 200), (Some(HTML), 502)] {
        let image = paged(&image, own);
        let upstream = Upstream::start().await;
        upstream.push("team/app", "1", &image);
        let arrives = Fault::new(Kind::Hang { after: Some(10) });
        upstream.faults().set(arrives.on("GET /v2/team/app/blobs/"));
        let process = start(&upstream, |_| {}).await;
        let by_digest = format!("manifests/{}", image.digest);
        let check = async |when: &str| {
            for rest in ["manifests/1", by_digest.as_str()] {
                let answer = get(&process, &path(&upstream, rest)).await;
                let kind = answer.headers()["content-type"].to_str().unwrap();
                let kind = kind.to_owned();
                assert!(!kind.contains("html"), "{own:?} {when}: {kind}");
                assert_eq!(answer.status(), status, "{own:?} {when}");
                if status == 200 {
                    assert_eq!(kind, OCI_MANIFEST, "{when}");
                    assert_eq!(answer.bytes().await.unwrap(), image.bytes());
                }
            }
        };
        check("while it arrives").await;
        upstream.faults().clear();
        if status == 200 {
            stored(&process, &upstream).await;
            check("stored").await;
        }
        process.end().await;
    }
}
