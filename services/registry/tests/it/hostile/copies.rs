//! What one registry takes by a push, another one copies, checks, exports and imports.

use std::{collections::BTreeMap, io::Cursor, time::SystemTime};

use holdfast_api::fill::FillRequest;
use holdfast_core::{
    Digest, RepositoryName,
    digest::Algorithm,
    oci::{Manifest, ManifestType},
};
use holdfast_registry::limits::JSON_DEPTH;
use holdfast_store::{
    Hasher, LockHolder, Store, View,
    survey::{Depth, survey},
    volume::Disk,
};
use holdfast_volume_tools::{
    archive::{self, Bundle, TarReader, TarWriter},
    fsck,
};
use serde_json::{Value, json};

use super::mirror::{mirror, uplink};
use crate::harness::{Registry, Setup, header};

const REPO: &str = "odd";
const HOST: &str = "first.example";
const OCI: &str = ManifestType::OciManifest.as_str();
const INDEX: &str = ManifestType::OciIndex.as_str();
const DOCKER: &str = ManifestType::DockerManifest.as_str();
const LIST: &str = ManifestType::DockerList.as_str();
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is pushed: blobs, then manifests in order.
#[derive(Default)]
struct Odd {
    algorithm: Option<Algorithm>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    /// Name, digest, `Content-Type` of the push, bytes.
    manifests: Vec<(String, Digest, &'static str, String)>,
}

impl Odd {
    fn digest(&self, bytes: &[u8]) -> Digest {
        Hasher::digest(self.algorithm.unwrap_or(Algorithm::Sha256), bytes)
    }

    /// A descriptor of some bytes that need not be there.
    fn named(&self, kind: &str, bytes: &[u8]) -> Value {
        json!({ "mediaType": kind, "digest": self.digest(bytes), "size": bytes.len() })
    }

    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        self.blobs.insert(self.digest(bytes), bytes.to_vec());
        self.named(kind, bytes)
    }

    /// Adds a manifest under a tag, and returns its descriptor.
    fn add(&mut self, name: &str, kind: &'static str, text: String) -> Value {
        let digest = self.digest(text.as_bytes());
        let descriptor = self.named(kind, text.as_bytes());
        self.manifests.push((name.to_owned(), digest, kind, text));
        descriptor
    }

    /// Adds an image of one layer with these fields beside.
    fn image(&mut self, name: &str, kind: &'static str, fields: &Value) -> Value {
        let (config, layer) = (
            self.blob(
                "application/x-config",
                format!("{{\"of\":\"{name}\"}}").as_bytes(),
            ),
            self.blob(LAYER, name.as_bytes()),
        );
        let mut text = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        let fields = fields.as_object().unwrap().clone();
        text.as_object_mut().unwrap().extend(fields);
        self.add(name, kind, text.to_string())
    }

    fn index(&mut self, name: &str, kind: &'static str, children: &[Value]) -> Value {
        let text = json!({ "schemaVersion": 2, "manifests": children });
        self.add(name, kind, text.to_string())
    }
}

/// Everything odd that a push takes, but for SHA-512.
fn odd() -> Odd {
    let mut odd = Odd::default();
    let layer = odd.blob(LAYER, b"layer");
    let many = vec![layer.clone(); 2500];
    odd.image("many-layers", OCI, &json!({ "layers": many }));
    let gone = odd.named(OCI, b"gone");
    odd.index("many-children", INDEX, &vec![gone.clone(); 2500]);
    let mut elsewhere = odd.named(LAYER, b"elsewhere");
    elsewhere["urls"] = json!(["https://elsewhere.example/layer"]);
    odd.image("layer-elsewhere", OCI, &json!({ "layers": [elsewhere] }));
    let mut also = odd.blob(LAYER, b"also elsewhere");
    also["urls"] = json!(["https://elsewhere.example/layer"]);
    odd.image("layer-also-elsewhere", OCI, &json!({ "layers": [also] }));
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let foreign = odd.named(kind, b"foreign");
    odd.image("foreign", OCI, &json!({ "layers": [foreign, layer] }));
    let subject = odd.image("subject", OCI, &json!({}));
    let empty = odd.blob("application/vnd.oci.empty.v1+json", b"{}");
    let fields = json!({ "config": empty, "layers": [], "artifactType": "a/b",
        "subject": subject, "annotations": { "a": "1", "A": "2" } });
    odd.image("artifact", OCI, &fields);
    let absent = odd.named(OCI, b"absent subject");
    odd.image(
        "artifact-of-nothing",
        OCI,
        &json!({ "layers": null, "subject": absent }),
    );
    let nothing = odd.blob(LAYER, b"");
    odd.image("layer-of-nothing", OCI, &json!({ "layers": [nothing] }));
    let mut child = odd.image("inner", OCI, &json!({}));
    for level in 0..3 {
        child = odd.index(&format!("level-{level}"), INDEX, &[child]);
    }
    odd.index("twice", INDEX, &[child.clone(), child, gone.clone()]);
    let config = odd.blob(DOCKER_CONFIG, b"{\"docker\":1}");
    let mut child = odd.image("docker", DOCKER, &json!({ "config": config }));
    child["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    odd.index("docker-list", LIST, &[child]);
    odd.image("docker-typed", DOCKER, &json!({ "mediaType": DOCKER }));
    let nulls = json!({ "mediaType": null, "subject": null, "annotations": null,
        "artifactType": null, "manifests": null });
    odd.image("null", OCI, &nulls);
    let mut nulls = odd.blob(LAYER, b"null");
    for field in ["urls", "annotations", "platform", "data", "artifactType"] {
        nulls[field] = Value::Null;
    }
    odd.image("null-in-layer", OCI, &json!({ "layers": [nulls] }));
    odd.image("no-version", OCI, &json!({ "schemaVersion": null }));
    let cache = odd.blob("application/vnd.buildkit.cacheconfig.v0", b"{\"cache\":1}");
    let layer = odd.blob(LAYER, b"layer of a cache");
    odd.index("build-cache", INDEX, &[layer, cache]);
    let mut other = gone;
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    odd.index("sparse", INDEX, &[other]);
    odd.index("nothing", INDEX, &[]);
    let mut deep = json!(1);
    for _ in 0..JSON_DEPTH - 1 {
        deep = json!([deep]);
    }
    odd.image("unknown", OCI, &json!({ "x": deep, "y": { "z": null } }));
    let length = odd.manifests.last().unwrap().3.len();
    let pad = "p".repeat((4 << 20) - length);
    odd.image("unknown", OCI, &json!({ "x": pad }));
    let (name, _, kind, text) = odd.manifests.pop().unwrap();
    let most = format!("{text}{}", " ".repeat((4 << 20) - text.len()));
    odd.add(&format!("{name}-large"), kind, most);
    odd
}

fn sha512() -> Odd {
    let mut odd = Odd {
        algorithm: Some(Algorithm::Sha512),
        ..Odd::default()
    };
    let child = odd.image("child", OCI, &json!({}));
    odd.index("index", INDEX, &[child]);
    odd
}

async fn push(to: &Registry, odd: &Odd) {
    for (digest, bytes) in &odd.blobs {
        let target = format!("/v2/{REPO}/blobs/uploads/?digest={digest}");
        let answer = to.send("POST", &target, &[], bytes.clone()).await;
        assert_eq!(answer.status(), 201);
    }
    for (name, digest, kind, text) in &odd.manifests {
        let reference = match digest.algorithm() {
            Algorithm::Sha256 => name,
            Algorithm::Sha512 => digest.as_str(),
        };
        let target = format!("/v2/{REPO}/manifests/{reference}");
        let kind = [("content-type", *kind)];
        let answer = to.send("PUT", &target, &kind, text.clone()).await;
        let status = answer.status();
        assert_eq!(status, 201, "{name}: {}", answer.text().await.unwrap());
    }
}

/// A manifest as it is served: type, digest, bytes.
async fn pull(from: &Registry, repo: &str, reference: &str) -> (String, String, String) {
    let answer = from.get(&format!("/v2/{repo}/manifests/{reference}")).await;
    let headers = answer.headers().clone();
    let (kind, digest) = (
        header(&headers, "content-type").to_owned(),
        header(&headers, "docker-content-digest").to_owned(),
    );
    (kind, digest, answer.text().await.unwrap())
}

/// The image and everything that it names and that is there, as [`Bundle`].
fn bundle(store: &Store, repo: &str, digest: &Digest) -> Bundle {
    let view = View::open(store.root()).unwrap();
    let repo = RepositoryName::parse(repo).unwrap();
    Bundle::collect(&mut archive::in_repository(&view, &repo), digest, &[])
        .unwrap_or_else(|error| panic!("{digest}: {error}"))
}

#[tokio::test]
async fn what_a_push_takes_goes_through_a_second_registry() {
    let first = Registry::start().await;
    let second = mirror(HOST, &first.url, &uplink()).await;
    let copy = format!("{HOST}/{REPO}");
    let mut names = Vec::new();
    for odd in [odd(), sha512()] {
        push(&first, &odd).await;
        for (name, digest, _, text) in &odd.manifests {
            let is_tagged = digest.algorithm() == Algorithm::Sha256;
            let reference = if is_tagged { name } else { digest.as_str() };
            let served = pull(&first, REPO, reference).await;
            assert_eq!(served.2, *text, "{name}");
            let through = pull(&second.registry, &copy, reference).await;
            assert!(served == through, "{name}: {:?}", (&through.0, &through.1));
            let mark = if is_tagged { ":" } else { "@" };
            let request = FillRequest {
                source: format!("{HOST}/{REPO}{mark}{reference}"),
                ..FillRequest::default()
            };
            let filled = second.fills.fill(&request).await;
            let filled = filled.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((&filled.digest, &filled.media_type), (&served.1, &served.0));
            let kept = second
                .registry
                .store
                .manifest(&copy.parse().unwrap(), digest)
                .await;
            assert_eq!(kept.unwrap().unwrap(), *text, "{name}");
            if is_tagged {
                names.push((name.clone(), digest.clone()));
            }
        }
        for (digest, bytes) in &odd.blobs {
            let target = format!("/v2/{copy}/blobs/{digest}");
            let through = second.registry.get(&target).await;
            assert_eq!(through.status(), 200, "{digest}");
            assert_eq!(through.bytes().await.unwrap(), *bytes);
        }
    }
    let subject = odd()
        .manifests
        .into_iter()
        .find(|(name, ..)| name == "subject")
        .unwrap()
        .1;
    let listed = async |registry: &Registry, repo: &str| {
        let answer = registry
            .get(&format!("/v2/{repo}/referrers/{subject}"))
            .await;
        answer.text().await.unwrap()
    };
    let at_first = listed(&first, REPO).await;
    assert!(at_first.contains("\"a/b\""), "{at_first}");
    assert_eq!(listed(&second.registry, &copy).await, at_first);
    assert_sound(&second.registry.store);
    let third = import(&second.registry.store, &copy, &names).await;
    for (name, digest) in &names {
        let (from, to) = (&second.registry.store, &third.store);
        assert!(
            bundle(from, &copy, digest) == bundle(to, &copy, digest),
            "{name}"
        );
        let (before, after) = (
            pull(&first, REPO, name).await,
            pull(&third, &copy, name).await,
        );
        assert!(before == after, "{name}");
    }
    assert_sound(&third.store);
}

/// Nothing that the check of a volume could find is wrong.
fn assert_sound(store: &Store) {
    let (disk, root) = (Disk::at(store.root()), store.root());
    let depth = Depth::Deep;
    let found = survey(&disk, root, SystemTime::now(), &depth, &mut |_| ()).unwrap();
    assert_eq!(fsck::plan(&found, &fsck::Policy::default()), []);
}

/// A third registry with an import of an export of these images.
async fn import(from: &Store, repo: &str, names: &[(String, Digest)]) -> Registry {
    let third = Setup::default().start().await;
    let view = View::open(from.root()).unwrap();
    let images = names.iter().map(|(name, digest)| {
        let (found, at) = archive::resolve(&view, &format!("{repo}:{name}")).unwrap();
        assert_eq!(at, *digest, "{name}");
        (found, bundle(from, repo, digest))
    });
    let images: Vec<_> = images.collect();
    let mut tar = TarWriter::new(Vec::new());
    archive::export(&view, &images, &mut tar, &mut |_| ()).unwrap();
    let mut source = TarReader::open(Cursor::new(tar.into_inner())).unwrap();
    let plan = archive::plan(&mut source, None, &[]).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "import".to_owned(),
    };
    archive::import(&mut source, &plan, &third.store, &owner, &mut |_| ())
        .await
        .unwrap();
    third
}

#[test]
fn the_odd_things_are_what_their_names_say() {
    let odd = odd();
    let parsed = |name: &str| {
        let found = odd
            .manifests
            .iter()
            .find(|(found, ..)| found == name)
            .unwrap();
        (Manifest::parse(found.3.as_bytes()).unwrap(), found.3.len())
    };
    assert_eq!(parsed("unknown-large").1, 4 << 20);
    assert_eq!(parsed("docker").0.media_type, ManifestType::DockerManifest);
    assert_eq!(parsed("docker-list").0.media_type, ManifestType::DockerList);
    assert!(parsed("many-children").0.manifests.len() > 2000);
}
